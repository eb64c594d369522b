package audit

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
)

var (
	key      = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32))
	manifest = bytes.Repeat([]byte{2}, 32)
)

func entries(l *Log) []json.RawMessage {
	var all []json.RawMessage
	for _, e := range l.From(0, MaxEvents) {
		all = append(all, e)
	}
	return all
}

func log() *Log {
	l := New(key, manifest)
	l.Add(Admitted, map[string]string{"owner": "o"})
	l.Add(Started, map[string]string{"container": "0"})
	l.Add(Exited, map[string]string{"code": "0"})
	l.Add(Closed, nil)
	return l
}

func TestLog(t *testing.T) {
	public := key.Public().(ed25519.PublicKey)
	good := entries(log())
	events, err := Verify(good, public, manifest)
	if err != nil || len(events) != 4 || events[2].What["code"] != "0" {
		t.Fatalf("got %v, %v", events, err)
	}
	other := New(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{3}, 32)), manifest)
	other.Add(Denied, nil)
	for name, c := range map[string]struct {
		change func(l []json.RawMessage) []json.RawMessage
		want   string
	}{
		"edited": {func(l []json.RawMessage) []json.RawMessage {
			l[2] = bytes.Replace(l[2], []byte(`"code":"0"`), []byte(`"code":"1"`), 1)
			return l
		}, "changed"},
		"deleted":       {func(l []json.RawMessage) []json.RawMessage { return slices.Delete(l, 1, 2) }, "missing"},
		"first deleted": {func(l []json.RawMessage) []json.RawMessage { return l[1:] }, "missing"},
		"reordered":     {func(l []json.RawMessage) []json.RawMessage { l[1], l[2] = l[2], l[1]; return l }, "order"},
		"truncated":     {func(l []json.RawMessage) []json.RawMessage { return l[:3] }, "no end"},
		"empty":         {func(l []json.RawMessage) []json.RawMessage { return nil }, "no end"},
		"forked":        {func(l []json.RawMessage) []json.RawMessage { return append(l[:3], entries(log())[3], l[2]) }, "number"},
		"of another":    {func(l []json.RawMessage) []json.RawMessage { return append(entries(other), l[1:]...) }, "not signed"},
		"appended":      {func(l []json.RawMessage) []json.RawMessage { return append(l, l[3]) }, "number"},
		"no JSON":       {func(l []json.RawMessage) []json.RawMessage { l[0] = []byte("x"); return l }, "event 0"},
	} {
		t.Run(name, func(t *testing.T) {
			var mine []json.RawMessage
			for _, e := range good {
				mine = append(mine, bytes.Clone(e))
			}
			if _, err := Verify(c.change(mine), public, manifest); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error about %q", err, c.want)
			}
		})
	}
	if _, err := Verify(good, public, bytes.Repeat([]byte{9}, 32)); err == nil {
		t.Error("the log of another manifest was accepted")
	}
}

// TestFlood: nobody can fill the log by being refused, and nothing is lost of what comes after.
func TestFlood(t *testing.T) {
	l := New(key, manifest)
	for range 5000 {
		l.Add(Denied, map[string]string{"request": "Exec"})
	}
	l.Add(Exited, nil)
	l.Add(Closed, nil)
	l.Add(Exited, nil)
	events, err := Verify(entries(l), key.Public().(ed25519.PublicKey), manifest)
	if err != nil {
		t.Fatal(err)
	}
	last := events[len(events)-1]
	if len(events) != MaxDenials+2 || last.Kind != Closed || last.What["denials"] != "5000" {
		t.Errorf("got %d events, the last one %+v", len(events), last)
	}
	if _, err := Verify(entries(l)[:10], key.Public().(ed25519.PublicKey), manifest); !errors.Is(err, ErrUnfinished) {
		t.Errorf("got %v", err)
	}
}
