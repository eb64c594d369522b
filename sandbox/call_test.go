package sandbox

import (
	"strings"
	"testing"
	"unicode"
)

func TestLastLine(t *testing.T) {
	for in, want := range map[string]string{
		"":                                  "",
		"one\ntwo\n\n":                      "two",
		"a\x1b[31mred\a":                    "a[31mred",
		"x\n[1] Kernel panic: why\nstack\n": "Kernel panic: why",
		strings.Repeat("é", 500):            strings.Repeat("é", 100),
	} {
		if got := lastLine([]byte(in)); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// FuzzLastLine shows what a guest has written to its console.
func FuzzLastLine(f *testing.F) {
	f.Add([]byte("Kernel panic - not syncing: \x1b[31m\nstack"))
	f.Add([]byte("\n\r\xff\xfe"))
	f.Fuzz(func(t *testing.T, console []byte) {
		line := lastLine(console)
		if len(line) > maxLine {
			t.Errorf("%d bytes", len(line))
		}
		for _, r := range line {
			if !unicode.IsPrint(r) {
				t.Errorf("%q", r)
			}
		}
	})
}
