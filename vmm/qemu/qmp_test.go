package qemu

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}` + "\n" +
	`{"return": {}, "id": 0}` + "\n"

// says lets a monitor read what a QEMU says, and returns how it ended.
func says(t *testing.T, text string) (*monitor, []event) {
	t.Helper()
	ours, theirs := net.Pipe()
	var seen []event
	m := newMonitor(ours, func(e event) { seen = append(seen, e) })
	go m.run()
	go func() {
		io.WriteString(theirs, text)
		theirs.Close()
	}()
	select {
	case <-m.done:
	case <-time.After(time.Minute):
		t.Fatal("the monitor reads on")
	}
	return m, seen
}

func TestMonitorReads(t *testing.T) {
	m, seen := says(t, greeting+
		`{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-\u001b[2Jreset"}}`+"\n"+
		`{"return": {"late": "answer"}, "id": 77}`+"\n")
	select {
	case <-m.greeted:
	default:
		t.Error("not greeted")
	}
	if got := m.version; got != "7.2.22 (Debian)" {
		t.Errorf("version %q", got)
	}
	if len(seen) != 1 || seen[0].Event != "SHUTDOWN" || seen[0].Data.Reason != "guest-?[2Jreset" {
		t.Errorf("events %+v", seen)
	}
	if !errors.Is(m.err, io.EOF) {
		t.Errorf("ended with %v, want EOF", m.err)
	}
}

func TestMonitorRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"no JSON":              "hello\n",
		"two greetings":        greeting + greeting,
		"return before":        `{"return": {}, "id": 0}` + "\n",
		"refused negotiation":  greeting[:strings.Index(greeting, "\n")+1] + `{"error": {"class": "x", "desc": "no"}, "id": 0}` + "\n",
		"empty object":         greeting + "{}\n",
		"negative ID":          greeting + `{"return": {}, "id": -1}` + "\n",
		"endless line":         greeting + strings.Repeat(" ", maxMessage+1),
		"endless line at once": greeting + strings.Repeat("x", 2*maxMessage) + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			if m, _ := says(t, text); m.err == nil || errors.Is(m.err, io.EOF) {
				t.Errorf("ended with %v, want an error of its own", m.err)
			}
		})
	}
}

// TestMonitorForgetsLateAnswers gives up on a command; its answer must not be taken for
// that of the next one.
func TestMonitorForgetsLateAnswers(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	m := newMonitor(ours, func(event) {})
	go m.run()
	in := bufio.NewReader(theirs)
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { first <- m.execute(ctx, "first", nil, nil) }()
	if _, err := in.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("first: %v", err)
	}
	second := make(chan string, 1)
	go func() {
		var result struct{ Value string }
		if err := m.execute(t.Context(), "second", nil, &result); err != nil {
			result.Value = err.Error()
		}
		second <- result.Value
	}()
	if line, err := in.ReadString('\n'); err != nil || !strings.Contains(line, `"id":2`) {
		t.Fatalf("command %q, %v", line, err)
	}
	io.WriteString(theirs, `{"return": {"value": "of the first"}, "id": 1}`+"\n"+`{"return": {"value": "of the second"}, "id": 2}`+"\n")
	if got := <-second; got != "of the second" {
		t.Errorf("second: %q", got)
	}
	theirs.Close()
	<-m.done
	if err := m.execute(t.Context(), "third", nil, nil); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("third: %v", err)
	}
}

func FuzzMonitor(f *testing.F) {
	f.Add([]byte(greeting))
	f.Add([]byte(greeting + `{"event": "RESET", "data": {"guest": true}}` + "\n"))
	f.Add([]byte(`{"QMP": {}}` + "\n" + `{"error": {"desc": "x"}, "id": 1}` + "\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		m := newMonitor(nil, func(e event) {
			if len(e.Event) > maxText+3 || strings.ContainsFunc(e.Event+e.Data.Reason, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("event %+v is not printable", e)
			}
		})
		r := bufio.NewReader(bytes.NewReader(text))
		for {
			line, err := readLine(r, 1<<16)
			if err != nil || m.handle(line) != nil {
				return
			}
		}
	})
}

func TestTail(t *testing.T) {
	for name, c := range map[string]struct {
		writes []string
		want   string
	}{
		"nothing":       {nil, ""},
		"less":          {[]string{"abc"}, "abc"},
		"exactly":       {[]string{"abcd", "efgh"}, "abcdefgh"},
		"one over":      {[]string{"abcdefgh", "i"}, "bcdefghi"},
		"across end":    {[]string{"abcdef", "ghijk"}, "defghijk"},
		"all at once":   {[]string{"0123456789abcdefgh"}, "abcdefgh"},
		"round thrice":  {[]string{"aaaaa", "bbbbb", "ccccc", "ddddd", "efg"}, "dddddefg"},
		"full then big": {[]string{"xxxxxxxx", "0123456789"}, "23456789"},
	} {
		t.Run(name, func(t *testing.T) {
			tail := newTail(8)
			for _, w := range c.writes {
				if n, err := tail.Write([]byte(w)); n != len(w) || err != nil {
					t.Errorf("write: %d, %v", n, err)
				}
			}
			if got := string(tail.bytes()); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func TestReadable(t *testing.T) {
	for in, want := range map[string]string{
		"": "",
		"qemu-system-x86_64: -device foo: bad\n\nqemu-system-x86_64: gone\x1b[2J\n": "-device foo: bad; gone?[2J",
	} {
		if got := readable([]byte(in)); got != want {
			t.Errorf("readable(%q) = %q, want %q", in, got, want)
		}
	}
}
