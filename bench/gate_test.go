package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestGate(t *testing.T) {
	accepted := func(r ...Ratio) string {
		path := filepath.Join(t.TempDir(), "accepted.json")
		if err := (&Accepted{Ratios: r}).write(path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, c := range map[string]struct {
		ours     string
		accepted []Ratio
		fails    string
		says     string
		ran      int // with the first of all, which is not recorded
		busy     bool
	}{
		"good":         {traced, []Ratio{ratio("manis", "runc", 1e5, 1e6, 1e7)}, "", "better", 1 + 2, false},
		"worse, twice": {traced, []Ratio{ratio("manis", "runc", 0.001, 0.001, 0.001)}, "slower", `grew most: "boot"`, 1 + 2 + 3, false},
		"worse, twice, by far, on a busy machine": {traced, []Ratio{ratio("manis", "runc", 0.001, 0.001, 0.001)}, "slower", "others use this machine", 1 + 2 + 3, true},
		"ours does not start on a busy machine":   {"exit 3", []Ratio{ratio("manis", "runc", 1, 2, 3)}, "", "undecided", 1 + 1 + 1, true},
		"a peer is missing":                       {traced, []Ratio{ratio("manis", "runsc", 0.001, 0.001, 0.001)}, "", "skipped", 1 + 2, false},
		"nothing was accepted":                    {traced, nil, "", "not accepted yet", 1 + 2, false},
		"ours does not start":                     {"exit 3", []Ratio{ratio("manis", "runc", 1, 2, 3)}, "slower", "exit status 3", 1 + 1 + 1, false},
		"ours says the wrong":                     {"echo hell", []Ratio{ratio("manis", "runc", 1, 2, 3)}, "slower", `"hell`, 1 + 1 + 1, false},
		"ours says it twice":                      {"echo hello; echo hello", []Ratio{ratio("manis", "runc", 1, 2, 3)}, "slower", "instead of", 1 + 1 + 1, false},
		"ours is not in it all":                   {traced, []Ratio{ratio("manis, other", "runc", 1, 2, 3)}, "", "skipped", 1 + 2, false},
	} {
		t.Run(name, func(t *testing.T) {
			ours := &script{label: "manis", text: c.ours}
			b := testBench(ours, &script{label: "runc", text: "echo hello"})
			if c.busy {
				b.contention = func() float64 { return 2 }
			}
			var out bytes.Buffer
			err := (&gate{path: accepted(c.accepted...), rounds: 2}).run(context.Background(), b, &out)
			if (err == nil) != (c.fails == "") || err != nil && !strings.Contains(err.Error(), c.fails) {
				t.Errorf("error %v, want %q", err, c.fails)
			}
			if !strings.Contains(out.String(), c.says) || ours.ran != c.ran {
				t.Errorf("%d starts, want %d; %q is to be in:\n%s", ours.ran, c.ran, c.says, out.String())
			}
		})
	}
	t.Run("no file", func(t *testing.T) {
		err := (&gate{path: "/nonexistent"}).run(context.Background(), testBench(), io.Discard)
		if err == nil || !strings.Contains(err.Error(), "make bench-accept") {
			t.Error(err)
		}
	})
	t.Run("file of nonsense", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "accepted.json")
		os.WriteFile(path, []byte("{"), 0o644)
		if err := (&gate{path: path}).run(context.Background(), testBench(), io.Discard); err == nil {
			t.Error("it is taken")
		}
	})
}

// The committed ratios can be read, and are of what the gate measures.
func TestAcceptedFile(t *testing.T) {
	a, err := readAccepted("accepted.json")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, w := range ways {
		known[w.label] = true
	}
	if len(a.Ratios) == 0 {
		t.Error("nothing is accepted")
	}
	for _, r := range a.Ratios {
		if !known[r.Of] || r.Median <= 0 || r.Low > r.Median || r.High < r.Median || len(r.Phases) == 0 {
			t.Errorf("%+v", r)
		}
	}
}
