package terminal

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestParseKeys(t *testing.T) {
	tests := []struct {
		in   string
		want string
		ok   bool
	}{
		{"ctrl-p,ctrl-q", "\x10\x11", true},
		{"a", "a", true},
		{"ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_", "\x00\x1b\x1c\x1d\x1e\x1f", true},
		{"ctrl-a,b,ctrl-z", "\x01b\x1a", true},
		{"", "", false},
		{"ctrl-", "", false},
		{"ctrl-pp", "", false},
		{"ctrl-1", "", false},
		{"abc", "", false},
		{"a,,b", "", false},
	}
	for _, tt := range tests {
		got, err := ParseKeys(tt.in)
		if (err == nil) != tt.ok || string(got) != tt.want {
			t.Errorf("ParseKeys(%q) = %q, %v", tt.in, got, err)
		}
	}
}

func TestKeyReader(t *testing.T) {
	tests := []struct {
		name, keys, in, want string
		detached             bool
	}{
		{"nothing", "ab", "", "", false},
		{"no keys", "", "abab", "abab", false},
		{"plain", "ab", "hello", "hello", false},
		{"at the end", "ab", "xyzab", "xyz", true},
		{"rest is not passed on", "ab", "xabyz", "x", true},
		{"beginning only", "ab", "xa", "xa", false},
		{"beginning twice", "ab", "aab", "a", true},
		{"false start", "ab", "acab", "ac", true},
		{"falls back", "aab", "aaab", "a", true},
		{"falls back far", "abac", "ababac", "ab", true},
		{"falls back and fails", "abac", "ababad", "ababad", false},
		{"one key", "q", "xq", "x", true},
		{"same keys", "\x10\x10", "\x10x\x10\x10", "\x10x", true},
	}
	for _, tt := range tests {
		for how, in := range map[string]io.Reader{
			"whole":       strings.NewReader(tt.in),
			"byte a time": iotest.OneByteReader(strings.NewReader(tt.in)),
			"data+EOF":    iotest.DataErrReader(strings.NewReader(tt.in)),
		} {
			t.Run(tt.name+" "+how, func(t *testing.T) {
				got, err := io.ReadAll(NewKeyReader(in, []byte(tt.keys)))
				if string(got) != tt.want || errors.Is(err, ErrDetached) != tt.detached {
					t.Errorf("got %q, %v; want %q, detached %v", got, err, tt.want, tt.detached)
				}
			})
		}
	}
}

func TestPaint(t *testing.T) {
	if got := Painter(false).Paint(Red, "x"); got != "x" {
		t.Errorf("no terminal: %q", got)
	}
	if got := Painter(true).Paint(Red, "x"); got != "\x1b[31mx\x1b[0m" {
		t.Errorf("terminal: %q", got)
	}
	if Paints(nil) {
		t.Error("colours on nothing")
	}
}

// FuzzKeyReader holds that, without the sequence in it, input passes unchanged,
// and that with it exactly what stands before it passes.
func FuzzKeyReader(f *testing.F) {
	f.Add("aab", "aaaab")
	f.Add("\x10\x11", "text\x10\x10\x11")
	f.Fuzz(func(t *testing.T, keys, in string) {
		if keys == "" || len(keys) > 16 {
			return
		}
		before, _, found := strings.Cut(in, keys)
		got, err := io.ReadAll(NewKeyReader(iotest.HalfReader(strings.NewReader(in)), []byte(keys)))
		if string(got) != before || errors.Is(err, ErrDetached) != found {
			t.Errorf("keys %q, input %q: got %q, %v", keys, in, got, err)
		}
	})
}
