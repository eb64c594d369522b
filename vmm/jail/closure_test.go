package jail

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func BenchmarkFindClosure(b *testing.B) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		b.Skip("no QEMU")
	}
	for b.Loop() {
		if _, err := FindClosure(qemu, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// TestClosureIsTheLoaders compares with what the dynamic loader itself says.
func TestClosureIsTheLoaders(t *testing.T) {
	for _, name := range []string{"qemu-system-x86_64", "sh", "git"} {
		t.Run(name, func(t *testing.T) {
			program, err := exec.LookPath(name)
			if err != nil {
				t.Skip(name + " is not installed")
			}
			out, err := exec.Command("ldd", program).Output()
			if err != nil {
				t.Skip("ldd: ", err)
			}
			c, err := FindClosure(program, nil)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for line := range strings.Lines(string(out)) {
				lib, path, ok := strings.Cut(strings.TrimSpace(line), " => ")
				if !ok {
					continue
				}
				n++
				path, _, _ = strings.Cut(path, " ")
				want, _ := filepath.EvalSymlinks(path)
				got, _ := filepath.EvalSymlinks(c.Libraries[lib])
				if got != want {
					t.Errorf("%s: %q, the loader takes %q", lib, got, want)
				}
			}
			if n != len(c.Libraries) {
				t.Errorf("%d libraries, the loader takes %d", len(c.Libraries), n)
			}
			if _, err := os.Stat(c.Interpreter); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestLoaderCacheOfThisHost(t *testing.T) {
	cache, err := readLoaderCache("/etc/ld.so.cache")
	if err != nil {
		t.Fatal(err)
	}
	if cache == nil {
		t.Skip("this host has no loader cache")
	}
	if len(cache["libc.so.6"]) == 0 {
		t.Error("no C library in it")
	}
}

func FuzzLoaderCache(f *testing.F) {
	if b, err := os.ReadFile("/etc/ld.so.cache"); err == nil {
		f.Add(b[:min(len(b), 4096)])
	}
	f.Add([]byte("glibc-ld.so.cache1.1\x01\x00\x00\x00" + strings.Repeat("\x00", 64)))
	f.Fuzz(func(t *testing.T, b []byte) {
		cache, err := parseLoaderCache(b)
		if err != nil {
			return
		}
		for name, paths := range cache {
			if len(name) > 4096 || len(paths) > len(b) {
				t.Error("out of nothing")
			}
		}
	})
}
