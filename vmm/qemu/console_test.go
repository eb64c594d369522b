package qemu

import (
	"bytes"
	"testing"
)

// FuzzConsole keeps and shows what a guest writes to its console, and QEMU to its standard error.
func FuzzConsole(f *testing.F) {
	f.Add([]byte("Kernel panic - not syncing: \x1b[31mred\nstack"), uint8(7))
	f.Add([]byte("qemu-system-x86_64: one\n\ntwo\nthree\nfour\nfive\n"), uint8(1))
	f.Fuzz(func(t *testing.T, said []byte, piece uint8) {
		const limit = 64
		kept := newTail(limit)
		for rest := said; len(rest) > 0; {
			n := min(int(piece)+1, len(rest))
			kept.Write(rest[:n])
			rest = rest[n:]
		}
		if want := said[max(0, len(said)-limit):]; !bytes.Equal(kept.bytes(), want) {
			t.Errorf("kept %q of %q", kept.bytes(), want)
		}
		for what, text := range map[string]string{"panic": panicLine(said), "stderr": readable(said)} {
			if len(text) > maxLines*(maxText+8) {
				t.Errorf("%s: %d bytes", what, len(text))
			}
			for _, c := range []byte(text) {
				if c < ' ' || c > '~' {
					t.Errorf("%s: %q", what, text)
				}
			}
		}
	})
}
