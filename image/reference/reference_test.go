package reference

import (
	"errors"
	"strings"
	"testing"

	"manis/image/fault"
)

func TestParse(t *testing.T) {
	hex := strings.Repeat("ab", 32)
	tests := []struct{ in, full, short string }{
		{"alpine", "docker.io/library/alpine:latest", "alpine:latest"},
		{"alpine:3.20", "docker.io/library/alpine:3.20", "alpine:3.20"},
		{"library/alpine", "docker.io/library/alpine:latest", "alpine:latest"},
		{"docker.io/alpine", "docker.io/library/alpine:latest", "alpine:latest"},
		{"index.docker.io/a/b", "docker.io/a/b:latest", "a/b:latest"},
		{"a/b", "docker.io/a/b:latest", "a/b:latest"},
		{"localhost/x", "localhost/x:latest", "localhost/x:latest"},
		{"localhost:5000/x", "localhost:5000/x:latest", "localhost:5000/x:latest"},
		{"[::1]:5000/x:y", "[::1]:5000/x:y", "[::1]:5000/x:y"},
		{"127.0.0.1:5000/a/b/c:d", "127.0.0.1:5000/a/b/c:d", "127.0.0.1:5000/a/b/c:d"},
		{"ghcr.io/a/b", "ghcr.io/a/b:latest", "ghcr.io/a/b:latest"},
		{"host:5000/x", "host:5000/x:latest", "host:5000/x:latest"},
		{"alpine@sha256:" + hex, "docker.io/library/alpine@sha256:" + hex, "alpine@sha256:" + hex},
		{"alpine:3@sha256:" + hex, "docker.io/library/alpine@sha256:" + hex, "alpine@sha256:" + hex},
	}
	for _, tt := range tests {
		t.Run(tt.in, func(t *testing.T) {
			n, err := Parse(tt.in)
			if err != nil || n.String() != tt.full || n.Familiar() != tt.short {
				t.Errorf("got %s, %s, %v", n, n.Familiar(), err)
			}
			if again, err := Parse(n.String()); err != nil || again != n {
				t.Errorf("read again: %+v, %v", again, err)
			}
		})
	}
	// Whether sha512 is known at all depends on what else is linked in.
	if _, err := Parse("a@sha512:" + hex + hex); !errors.Is(err, fault.ErrUnsupported) && !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("sha512: %v", err)
	}
	for in, kind := range map[string]error{
		"": fault.ErrInvalid, "A": fault.ErrInvalid, "a b": fault.ErrInvalid, "a:": fault.ErrInvalid, "a@sha256:1": fault.ErrInvalid,
		"../a": fault.ErrInvalid, "a//b": fault.ErrInvalid, "http://a/b": fault.ErrInvalid, "docker://a": fault.ErrInvalid, hex: fault.ErrInvalid,
		"a:b:c": fault.ErrInvalid, strings.Repeat("a", 1025): fault.ErrInvalid,
	} {
		t.Run("refuses "+in[:min(len(in), 20)], func(t *testing.T) {
			if n, err := Parse(in); !errors.Is(err, kind) {
				t.Errorf("got %s, %v, want %v", n, err, kind)
			}
		})
	}
}

func TestIsLoopback(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "127.0.0.1": true, "127.9.8.7:80": true, "[::1]:5000": true, "::1": true, "[::ffff:127.0.0.1]:1": true,
		"localhost.example": false, "example:5000": false, "10.0.0.1": false, "[::2]:5000": false, "0.0.0.0": false, "127.0.0.1.example": false, "": false,
	} {
		if got := IsLoopback(host); got != want {
			t.Errorf("%q: %v", host, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("alpine:3@sha256:" + strings.Repeat("ab", 32))
	f.Add("[::1]:5000/x:y")
	f.Fuzz(func(t *testing.T, s string) {
		n, err := Parse(s)
		if err != nil {
			return
		}
		if again, err := Parse(n.String()); err != nil || again != n {
			t.Fatalf("%q gives %s, which gives %s, %v", s, n, again, err)
		}
	})
}
