package e2e

import (
	"archive/tar"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// cp takes files and directories to a running container and back, with docker's rules of
// where they land.
func TestCopy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	w.up("--name", "c", "box", "sleep", "1000")
	dir := filepath.Join(w.dir, "src")
	for path, text := range map[string]string{"a": "first", "sub/b": "second", "sub/run": "#!/bin/sh\n"} {
		file := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	os.Chmod(filepath.Join(dir, "sub/run"), 0o755)
	if err := os.Symlink("sub/b", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	t.Run("in", func(t *testing.T) {
		w := w.in(t)
		w.ok("cp", filepath.Join(dir, "a"), "c:/tmp/renamed")
		w.ok("cp", filepath.Join(dir, "a"), "c:/tmp")
		w.ok("cp", dir, "c:/new")
		w.ok("cp", dir+"/.", "c:/tmp")
		if got := w.sh("c", "cat /tmp/renamed /tmp/a /new/sub/b /tmp/sub/b; readlink /new/link; test -x /new/sub/run && echo executable"); got != "firstfirstsecondsecondsub/b\nexecutable" {
			t.Errorf("%q", got)
		}
	})
	t.Run("out", func(t *testing.T) {
		w := w.in(t)
		back := t.TempDir()
		w.sh("c", "mkdir -p /data/deep && echo one >/data/one && echo two >/data/deep/two && chmod 600 /data/one")
		w.ok("cp", "c:/data", back)
		w.ok("cp", "c:/data/one", back+"/renamed")
		for path, want := range map[string]string{"data/one": "one\n", "data/deep/two": "two\n", "renamed": "one\n"} {
			if b, err := os.ReadFile(filepath.Join(back, path)); err != nil || string(b) != want {
				t.Errorf("%s: %q, %v", path, b, err)
			}
		}
		if fi, err := os.Stat(filepath.Join(back, "data/one")); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", fi.Mode(), err)
		}
	})
	t.Run("streams", func(t *testing.T) {
		w := w.in(t)
		r := w.manis("cp", "c:/data", "-")
		names := 0
		for tr := tar.NewReader(strings.NewReader(r.stdout)); ; names++ {
			if _, err := tr.Next(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
		if names != 4 {
			t.Errorf("%d entries in the archive", names)
		}
		if r := w.manisIn(r.stdout, "cp", "-", "c:/mnt"); r.code != 0 {
			w.sh("c", "mkdir -p /mnt")
			if r = w.manisIn(w.manis("cp", "c:/data", "-").stdout, "cp", "-", "c:/mnt"); r.code != 0 {
				t.Error(r)
			}
		}
		if got := w.sh("c", "cat /mnt/data/deep/two"); got != "two" {
			t.Errorf("%q", got)
		}
	})
	t.Run("errors", func(t *testing.T) {
		w := w.in(t)
		w.fails(1, "/no/such", "cp", "c:/no/such", w.tmp)
		w.fails(1, "no such file", "cp", "/no/such/here", "c:/tmp")
		w.fails(1, "no such container", "cp", "nobody:/etc/passwd", w.tmp)
		w.fails(1, "between containers", "cp", "c:/a", "c:/b")
		w.fails(1, "at least one container", "cp", "/a", "/b")
	})
	t.Run("nothing leads out", func(t *testing.T) {
		w := w.in(t)
		back := t.TempDir()
		victim := filepath.Join(w.dir, "victim")
		w.sh("c", "mkdir /evil && ln -s "+w.dir+" /evil/out && ln -s /etc/passwd /evil/passwd")
		w.ok("cp", "c:/evil", back)
		// The link is copied as one; what is behind it on the host is not written to.
		w.sh("c", "rm /evil/out && mkdir /evil/out && echo x >/evil/out/victim")
		w.manis("cp", "c:/evil", back)
		if _, err := os.Lstat(victim); err == nil {
			t.Error("written through a link")
		}
	})
}
