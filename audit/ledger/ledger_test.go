package ledger

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
)

var (
	logKey     = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32))
	witnessKey = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{2}, 32))
)

func public(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

func entry(i int) Entry {
	d := sha256.Sum256(fmt.Append(nil, i))
	return Entry{Bundle, d[:]}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// grow opens a ledger and adds entries from a number on.
func grow(t testing.TB, dir string, from, to int) *Ledger {
	t.Helper()
	l, err := Open(dir, logKey)
	check(t, err)
	t.Cleanup(func() { l.Close() })
	for i := from; i < to; i++ {
		n, err := l.Add(entry(i))
		check(t, err)
		if want := int64(len(l.Entries())) - 1; n != want {
			t.Fatalf("entry %d has number %d", want, n)
		}
	}
	return l
}

// TestLedger: every entry has a proof from every older checkpoint, and what was closed goes on.
func TestLedger(t *testing.T) {
	dir := t.TempDir()
	var checkpoints [][]byte
	for i := range 9 {
		l := grow(t, dir, i, i+1)
		checkpoints = append(checkpoints, l.Checkpoint())
		for j := range i + 1 {
			for _, since := range checkpoints {
				p, err := l.Prove(int64(j), since)
				check(t, err)
				if c, err := p.Check(entry(j), l.Key()); err != nil || c.Size != int64(i+1) {
					t.Fatalf("entry %d of %d: %v", j, i+1, err)
				}
				if _, err := p.Check(entry(j+100), l.Key()); err == nil {
					t.Fatalf("entry %d of %d proves another", j, i+1)
				}
				if _, err := p.Check(entry(j), LogKey(public(witnessKey))); err == nil {
					t.Fatal("it is another's ledger, too")
				}
			}
		}
		if _, err := Open(dir, logKey); err == nil || !strings.Contains(err.Error(), "another process") {
			t.Fatalf("it is open twice: %v", err)
		}
		check(t, l.Close())
	}
	for _, since := range checkpoints {
		if c, _, err := Check(dir, LogKey(public(logKey)), nil, since); err != nil || c.Size != 9 {
			t.Errorf("got %+v, %v", c, err)
		}
	}
}

// TestAttacks: who keeps the files can change them, and is found out by the log's key, by an older checkpoint, or by a proof.
func TestAttacks(t *testing.T) {
	base := t.TempDir()
	l := grow(t, base, 0, 6)
	old := l.Checkpoint()
	check(t, l.Close())
	l = grow(t, base, 6, 8)
	check(t, l.Close())
	good, err := os.ReadFile(filepath.Join(base, entriesFile))
	check(t, err)
	last, err := os.ReadFile(filepath.Join(base, checkpointFile))
	check(t, err)
	lines := bytes.SplitAfter(good, []byte("\n"))[:8]
	without := func(n int) []byte { return bytes.Join(append(append([][]byte{}, lines[:n]...), lines[n+1:]...), nil) }
	fork := filepath.Join(t.TempDir(), "fork")
	forked := grow(t, fork, 100, 108)

	for name, c := range map[string]struct {
		entries, checkpoint []byte
		want                string // of Check
		opens               bool   // the keeper cannot know
	}{
		"edited":              {bytes.Replace(good, lines[2], append(entry(77).line(), '\n'), 1), last, "was changed", false},
		"deleted":             {without(2), last, "was cut", false},
		"truncated":           {bytes.Join(lines[:7], nil), last, "was cut", false},
		"reordered":           {bytes.Join([][]byte{lines[1], lines[0], bytes.Join(lines[2:], nil)}, nil), last, "was changed", false},
		"of another key":      {good, bytes.Replace(last, []byte(Name(public(logKey))), []byte(Name(public(witnessKey))), 1), "signature", false},
		"no checkpoint":       {good, nil, "no such file", false},
		"empty checkpoint":    {good, []byte{}, "read the checkpoint", false},
		"added by another":    {append(append([]byte{}, good...), bytes.Join(lines[:2], nil)...), last, "", false},
		"rolled back":         {bytes.Join(lines[:5], nil), signedAt(t, 5), "rolled back", true},
		"forked":              {readAll(t, filepath.Join(fork, entriesFile)), forked.Checkpoint(), "since the other checkpoint", true},
		"no entry":            {append([]byte("x\n"), good...), last, "no entry", false},
		"in order":            {good, last, "", true},
		"killed while adding": {append(append([]byte{}, good...), "bundle abc"...), last, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			check(t, os.WriteFile(filepath.Join(dir, entriesFile), c.entries, 0o600))
			if c.checkpoint != nil {
				check(t, os.WriteFile(filepath.Join(dir, checkpointFile), c.checkpoint, 0o600))
			}
			_, _, err := Check(dir, LogKey(public(logKey)), nil, old)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("checked: got %v, want %q", err, c.want)
			}
			l, err := Open(dir, logKey)
			if (err == nil) != c.opens {
				t.Errorf("opened: %v", err)
			}
			if err == nil {
				_, err = l.Add(entry(50))
				check(t, err)
				check(t, l.Close())
				if _, _, err := Check(dir, LogKey(public(logKey)), nil, nil); err != nil {
					t.Errorf("it does not go on: %v", err)
				}
			}
		})
	}
}

func readAll(t *testing.T, path string) []byte {
	b, err := os.ReadFile(path)
	check(t, err)
	return b
}

// signedAt is the checkpoint of the first entries.
func signedAt(t *testing.T, size int) []byte { return grow(t, t.TempDir(), 0, size).Checkpoint() }

// TestUnsigned: an entry whose checkpoint was not written any more gets one.
func TestUnsigned(t *testing.T) {
	dir := t.TempDir()
	l := grow(t, dir, 0, 3)
	before := l.Checkpoint()
	_, err := l.Add(entry(3))
	check(t, err)
	check(t, l.Close())
	check(t, os.WriteFile(filepath.Join(dir, checkpointFile), before, 0o600))
	l, err = Open(dir, logKey)
	check(t, err)
	defer l.Close()
	if c, err := OpenCheckpoint(l.Checkpoint(), l.Key(), nil); err != nil || c.Size != 4 {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestCosignature(t *testing.T) {
	l := grow(t, t.TempDir(), 0, 2)
	witness := WitnessKey(public(witnessKey))
	if _, err := OpenCheckpoint(l.Checkpoint(), l.Key(), witness); err == nil {
		t.Error("a checkpoint that nobody has cosigned is taken for one that the witness has")
	}
	line, err := Cosign(l.Checkpoint(), l.Key(), witnessKey)
	check(t, err)
	both, err := AddCosignature(l.Checkpoint(), line, l.Key(), witness)
	check(t, err)
	c, err := OpenCheckpoint(both, l.Key(), witness)
	check(t, err)
	if since := time.Since(c.Cosigned); since < 0 || since > time.Hour {
		t.Errorf("cosigned at %v", c.Cosigned)
	}
	again, err := ParseWitnessKey(witness.String())
	check(t, err)
	if _, err := OpenCheckpoint(both, l.Key(), again); err != nil {
		t.Error(err)
	}
	// Others read the log's signature, too.
	other, err := note.NewVerifier(l.Key().String())
	check(t, err)
	if _, err := note.Open(both, note.VerifierList(other)); err != nil {
		t.Error(err)
	}
	for name, bad := range map[string][]byte{
		"another time": bytes.Replace(line, line[len(line)-90:len(line)-86], []byte("AAAA"), 1),
		"nothing":      nil,
		"another's":    func() []byte { b, _ := Cosign(l.Checkpoint(), l.Key(), logKey); return b }(),
	} {
		if _, err := AddCosignature(l.Checkpoint(), bad, l.Key(), witness); err == nil {
			t.Errorf("%s: it was taken", name)
		}
	}
	for _, bad := range []string{"", "a+b+c", strings.Replace(witness.String(), "+", "x+", 1), l.Key().String()} {
		if _, err := ParseWitnessKey(bad); err == nil {
			t.Errorf("%q was taken for a key", bad)
		}
	}
}

// FuzzCheckpoint: what is not signed is refused, whatever it is.
func FuzzCheckpoint(f *testing.F) {
	c, err := Checkpoint{Origin: Name(public(logKey)), Size: 3}.sign(logKey)
	check(f, err)
	f.Add(c)
	f.Add([]byte("manis.log/x\n1\nAAAA\n\n— a b\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := OpenCheckpoint(b, LogKey(public(logKey)), nil)
		if err == nil && (got.Size != 3 || got.Origin != Name(public(logKey))) {
			t.Errorf("%q is a checkpoint that nobody has signed", b)
		}
		if _, err := OpenCheckpoint(b, LogKey(public(witnessKey)), nil); err == nil {
			t.Errorf("%q is another's, too", b)
		}
		read(bytes.NewReader(b))
		ParseWitnessKey(string(b))
	})
}
