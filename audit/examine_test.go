package audit_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"manis/audit"
	"manis/audit/audittest"
	"manis/audit/ledger"
)

const quoted = "argument of Jane Doe"

func denial(l *audit.Log) {
	l.Add(audit.Denied, map[string]string{"request": "Exec", "reason": quoted})
}

func TestExamine(t *testing.T) {
	good := audittest.New(t, audittest.Manifest(), denial)
	r := audit.Examine(audittest.File(t, good), audittest.Expect())
	if err := r.Err(); err != nil || r.Events[2].What["reason"] != quoted {
		t.Fatalf("got %v, events %+v", err, r.Events)
	}
	for name, c := range map[string]struct {
		change func(b *audit.Bundle, e *audit.Expect)
		check  string // fails or is not made
		want   string
	}{
		"no owner":      {func(_ *audit.Bundle, e *audit.Expect) { e.Owner = nil }, audit.CheckOwner, "owner's public key"},
		"no reference":  {func(_ *audit.Bundle, e *audit.Expect) { e.Reference = nil }, audit.CheckEvidence, "reference values"},
		"no manifest":   {func(b *audit.Bundle, _ *audit.Expect) { b.Envelope = []byte("null") }, audit.CheckOwner, "envelope"},
		"no evidence":   {func(b *audit.Bundle, _ *audit.Expect) { b.Evidence = []byte("null") }, audit.CheckEvidence, "another manifest"},
		"no events":     {func(b *audit.Bundle, _ *audit.Expect) { b.Entries = nil }, audit.CheckAttestation, "no attestation"},
		"another kind":  {func(b *audit.Bundle, _ *audit.Expect) { b.Format = "x" }, audit.CheckBundle, "format"},
		"cut off":       {func(b *audit.Bundle, _ *audit.Expect) { b.Entries = b.Entries[:3] }, audit.CheckEnd, "no end"},
		"another order": {func(b *audit.Bundle, _ *audit.Expect) { b.Entries[1], b.Entries[2] = b.Entries[2], b.Entries[1] }, audit.CheckEvents, "order"},
		"another text": {func(b *audit.Bundle, _ *audit.Expect) {
			b.Entries[2] = bytes.Replace(b.Entries[2], []byte(quoted), []byte("argument of John Doe"), 1)
		}, audit.CheckEvents, "committed"},
		"another log": {func(b *audit.Bundle, _ *audit.Expect) {
			m := audittest.Manifest()
			m.Version++
			b.Entries = audittest.New(t, m, nil).Entries
		}, audit.CheckEvents, "does not follow"},
	} {
		t.Run(name, func(t *testing.T) {
			bad, expect := *good, audittest.Expect()
			bad.Entries = append([]json.RawMessage(nil), good.Entries...)
			c.change(&bad, &expect)
			r := audit.Examine(audittest.File(t, &bad), expect)
			if err := r.Err(); err == nil || !strings.Contains(err.Error(), c.want) || r.Passed(c.check) {
				t.Errorf("got %v, want an error about %q at the check %q: %+v", err, c.want, c.check, r.Findings)
			}
			if len(r.Findings) != len(audit.Examine(audittest.File(t, good), expect).Findings) {
				t.Errorf("checks are missing: %+v", r.Findings)
			}
			if c.check != audit.CheckEnd && r.Events != nil || errors.Is(r.Err(), audit.ErrUnfinished) != (c.check == audit.CheckEnd) {
				t.Errorf("events of a refused log: %+v, %v", r.Events, r.Err())
			}
		})
	}
}

// TestWithhold: what quotes a request can be left out, cannot be guessed from what stays, and the rest verifies.
func TestWithhold(t *testing.T) {
	b := audittest.New(t, audittest.Manifest(), func(l *audit.Log) { denial(l); denial(l) })
	if err := audit.Withhold(b.Entries); err != nil {
		t.Fatal(err)
	}
	file := audittest.File(t, b)
	if bytes.Contains(file, []byte("Jane")) {
		t.Error("the text is still there")
	}
	r := audit.Examine(file, audittest.Expect())
	if err := r.Err(); err != nil || len(r.Events[2].Withheld) != 1 {
		t.Fatalf("got %v, %+v", err, r.Events)
	}
	if bytes.Equal(r.Events[2].Committed["reason"], r.Events[3].Committed["reason"]) {
		t.Error("the same text has the same commitment: it could be guessed")
	}
}

// FuzzExamine: a bundle is foreign bytes; without keys nothing of it is shown, and with keys nothing breaks.
func FuzzExamine(f *testing.F) {
	f.Add([]byte(`{"format":"manis.bundle/1","manifest":{},"evidence":{},"events":[{}]}`))
	f.Add([]byte(`{}`))
	expect := audittest.Expect()
	f.Fuzz(func(t *testing.T, b []byte) {
		r := audit.Examine(b, expect)
		if r.Err() == nil || r.Manifest != nil {
			t.Errorf("%q was accepted", b)
		}
		if bundle, err := audit.Parse(b); err == nil {
			audit.Withhold(bundle.Entries)
		}
	})
}

// entered is a bundle in a ledger that a witness has seen.
func entered(t *testing.T, l *ledger.Ledger, b *audit.Bundle, since []byte) *audit.Bundle {
	t.Helper()
	index, salt, err := b.Enter(l)
	if err != nil {
		t.Fatal(err)
	}
	line, err := ledger.Cosign(l.Checkpoint(), l.Key(), witnessKey)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := ledger.AddCosignature(l.Checkpoint(), line, l.Key(), ledger.WitnessKey(audittest.Public(witnessKey)))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Cosigned(signed); err != nil {
		t.Fatal(err)
	}
	proof, err := l.Prove(index, since)
	if err != nil {
		t.Fatal(err)
	}
	made := *b
	made.Log = &audit.Logged{Salt: salt, Proof: *proof}
	return &made
}

var (
	logKey     = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, 32))
	witnessKey = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{9}, 32))
)

// TestLogged: that a bundle is in the ledger, that the ledger has only grown, and that the witness has seen it.
func TestLogged(t *testing.T) {
	l, err := ledger.Open(t.TempDir(), logKey)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	plain := audittest.New(t, audittest.Manifest(), denial)
	entered(t, l, plain, nil)
	kept := l.Checkpoint()
	m := audittest.Manifest()
	m.Version++
	entered(t, l, audittest.New(t, m, nil), nil)
	good := entered(t, l, plain, kept)
	expect := audittest.Expect()
	expect.Log, expect.Witness, expect.Since = l.Key(), ledger.WitnessKey(audittest.Public(witnessKey)), kept
	r := audit.Examine(audittest.File(t, good), expect)
	if err := r.Err(); err != nil || r.Checkpoint.Size != 3 || r.Checkpoint.Cosigned.IsZero() {
		t.Fatalf("got %v, %+v", err, r.Checkpoint)
	}
	// Entering it again finds it.
	again := entered(t, l, good, kept)
	if again.Log.Proof.Index != good.Log.Proof.Index || len(l.Entries()) != 3 {
		t.Errorf("it was entered twice: %d entries", len(l.Entries()))
	}
	forkDir := t.TempDir()
	fork, err := ledger.Open(forkDir, logKey)
	if err != nil {
		t.Fatal(err)
	}
	defer fork.Close()
	for range 2 {
		entered(t, fork, audittest.New(t, m, nil), nil)
	}
	forked := entered(t, fork, plain, nil)

	for name, c := range map[string]struct {
		change func(b *audit.Bundle, e *audit.Expect)
		check  string // fails, or is not made and not missed
		want   string // empty: verified
	}{
		"suppressed":             {func(b *audit.Bundle, _ *audit.Expect) { b.Log = nil }, audit.CheckInclusion, "not in the ledger"},
		"not asked for":          {func(b *audit.Bundle, e *audit.Expect) { b.Log, e.Log = nil, nil }, audit.CheckInclusion, ""},
		"without the key":        {func(_ *audit.Bundle, e *audit.Expect) { e.Log = nil }, audit.CheckInclusion, ""},
		"without the witness":    {func(_ *audit.Bundle, e *audit.Expect) { e.Witness = nil }, audit.CheckWitness, ""},
		"another ledger's key":   {func(_ *audit.Bundle, e *audit.Expect) { e.Log = ledger.LogKey(audittest.Public(witnessKey)) }, audit.CheckInclusion, "not signed by the log"},
		"another witness":        {func(_ *audit.Bundle, e *audit.Expect) { e.Witness = ledger.WitnessKey(audittest.Public(logKey)) }, audit.CheckWitness, "not cosigned"},
		"another salt":           {func(b *audit.Bundle, _ *audit.Expect) { b.Log.Salt = bytes.Repeat([]byte{1}, 32) }, audit.CheckInclusion, "not the entry"},
		"a short salt":           {func(b *audit.Bundle, _ *audit.Expect) { b.Log.Salt = nil }, audit.CheckInclusion, "salt"},
		"another entry":          {func(b *audit.Bundle, _ *audit.Expect) { b.Log.Proof.Index = 1 }, audit.CheckInclusion, "not the entry"},
		"no such entry":          {func(b *audit.Bundle, _ *audit.Expect) { b.Log.Proof.Index = 3 }, audit.CheckInclusion, "entry 3 of 3"},
		"changed after entering": {func(b *audit.Bundle, _ *audit.Expect) { b.Entries = b.Entries[:3] }, audit.CheckInclusion, "no end"},
		"without texts":          {func(b *audit.Bundle, _ *audit.Expect) { audit.Withhold(b.Entries) }, "", ""},
		"another consistency":    {func(b *audit.Bundle, _ *audit.Expect) { b.Log.Proof.Consistency = nil }, audit.CheckInclusion, "does not continue"},
		"no older checkpoint":    {func(b *audit.Bundle, _ *audit.Expect) { b.Log.Proof.Since = "" }, audit.CheckConsistency, "no proof from the checkpoint of 1"},
		"forked":                 {func(b *audit.Bundle, e *audit.Expect) { e.Since, b.Log = l.Checkpoint(), forked.Log }, audit.CheckConsistency, "forked"},
	} {
		t.Run(name, func(t *testing.T) {
			bad, logged, expect := *good, *good.Log, expect
			bad.Log, bad.Entries = &logged, append([]json.RawMessage(nil), good.Entries...)
			c.change(&bad, &expect)
			r := audit.Examine(audittest.File(t, &bad), expect)
			err := r.Err()
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) || c.check != "" && r.Passed(c.check) {
				t.Errorf("got %v, want %q at the check %q", err, c.want, c.check)
			}
		})
	}
	t.Run("an older one is shown", func(t *testing.T) {
		first := entered(t, fork, plain, nil)
		first.Log.Proof = forked.Log.Proof
		expect := expect
		expect.Since = fork.Checkpoint()
		first.Log.Salt = forked.Log.Salt
		if err := audit.Examine(audittest.File(t, first), expect).Err(); err == nil || !strings.Contains(err.Error(), "rolled back") {
			t.Errorf("got %v", err)
		}
	})
}
