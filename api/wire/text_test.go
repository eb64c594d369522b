package wire

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestLegible(t *testing.T) {
	for in, want := range map[string]string{
		"no such file: naïve": "no such file: naïve",
		"two\nlines\tof it":   "two\nlines\tof it",
		"\x1b[31mred\r\a\x7f": "?[31mred???",
		"left \u202e right":   "left ? right",
		"half \xff":           "half ?",
	} {
		if got := Legible(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
	if got := Legible(strings.Repeat("é", MaxText)); len(got) > MaxText || !utf8.ValidString(got) || !strings.HasSuffix(got, "é...") {
		t.Errorf("%d bytes, ending in %q", len(got), got[len(got)-8:])
	}
}

func FuzzLegible(f *testing.F) {
	f.Add("\x1b[31mred\n")
	f.Add(strings.Repeat("\xff", MaxText+1))
	f.Add(strings.Repeat("é", MaxText))
	f.Fuzz(func(t *testing.T, in string) {
		got := Legible(in)
		if len(got) > MaxText {
			t.Errorf("%d bytes", len(got))
		}
		for _, r := range got {
			if r != '\n' && r != '\t' && (!unicode.IsPrint(r) || r == utf8.RuneError) {
				t.Errorf("%q", r)
			}
		}
		if Legible(got) != got {
			t.Errorf("%q is not the end of it", got)
		}
	})
}
