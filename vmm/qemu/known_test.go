package qemu

import (
	"os"
	"path/filepath"
	"testing"

	"manis/host/memo"
)

func TestDriverRemembers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	first := &Driver{Cache: dir}
	if err := first.Prepare(); err != nil {
		t.Skip(err)
	}
	path := memo.Path(dir, subject)
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	second := &Driver{Cache: dir}
	if err := second.Prepare(); err != nil {
		t.Fatal(err)
	}
	if second.tscKHz != first.tscKHz || len(second.install.Closure.Libraries) != len(first.install.Closure.Libraries) {
		t.Error("it remembers something else")
	}
	after, err := os.Stat(path)
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("nothing new was found, yet the file was written again (%v)", err)
	}
	for name, content := range map[string]string{
		"damaged":   "{",
		"foreign":   `["a"]`,
		"outdated":  `{"program":"/other 1 2 3 4","loader":"x","closure":{"program":"/other"},"boot":"x","tsc_khz":1}`,
		"no object": "null",
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			d := &Driver{Cache: dir}
			if err := d.Prepare(); err != nil {
				t.Fatal(err)
			}
			if d.install.Closure.Program != first.install.Closure.Program || d.tscKHz == 1 {
				t.Errorf("it took %q for true: %+v", content, d.install.Closure)
			}
		})
	}
}

func BenchmarkPrepare(b *testing.B) {
	for name, dir := range map[string]string{"anew": "", "remembered": b.TempDir()} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := (&Driver{Cache: dir}).Prepare(); err != nil {
					b.Skip(err)
				}
			}
		})
	}
}
