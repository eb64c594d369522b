package erofs

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func blocksOf(t testing.TB, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks
}

// mount mounts an image with this host's kernel, or skips.
func mount(t testing.TB, path string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "erofs", "-o", "loop,ro", path, dir).CombinedOutput(); err != nil {
		t.Skipf("this host cannot mount EROFS: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// TestKernelReads has this host's kernel read what the builder wrote.
func TestKernelReads(t *testing.T) {
	for _, tt := range contents() {
		t.Run(tt.name, func(t *testing.T) {
			w := newWork(t, Options{})
			tt.build(w)
			if _, err := w.b.Finish(t.Context()); err != nil {
				t.Fatal(err)
			}
			dir := mount(t, w.path)
			got := 0
			err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
				if err != nil {
					return err
				}
				got++
				rel, err := filepath.Rel(dir, path)
				if err != nil {
					return err
				}
				n, ok := w.want[rel]
				if !ok {
					return fmt.Errorf("%s should not be there", rel)
				}
				if err := compareFile(path, n); err != nil {
					return fmt.Errorf("%.80s: %w", rel, err)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			if got != len(w.want) {
				t.Errorf("%d entries, want %d", got, len(w.want))
			}
		})
	}
}

func compareFile(path string, n node) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	got := fmt.Sprintf("%o %d:%d %d.%d %d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, st.Nlink)
	want := fmt.Sprintf("%o %d:%d %d.%d %d", n.mode, n.uid, n.gid, n.mtime, n.nsec, n.nlink)
	if got != want {
		return fmt.Errorf("got %s, want %s", got, want)
	}
	if n.rdev != 0 {
		major, minor := unix.Major(st.Rdev), unix.Minor(st.Rdev)
		if d, _ := Device(int64(major), int64(minor)); d != n.rdev {
			return fmt.Errorf("device %d:%d, want %#x", major, minor, n.rdev)
		}
	}
	switch n.mode & TypeMask {
	case TypeRegular:
		data, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(data, n.data) {
			return fmt.Errorf("content differs (%v)", err)
		}
	case TypeSymlink:
		if target, err := os.Readlink(path); err != nil || target != string(n.data) {
			return fmt.Errorf("target %.80q, want %.80q (%v)", target, n.data, err)
		}
	}
	xattrs := map[string]string{}
	list := make([]byte, 1<<16)
	size, err := unix.Llistxattr(path, list)
	if err != nil {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:size]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 1<<16)
		k, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return err
		}
		xattrs[name] = string(value[:k])
	}
	if len(n.xattrs)+len(xattrs) > 0 && !maps.Equal(xattrs, n.xattrs) {
		return fmt.Errorf("xattrs %.200q, want %.200q", xattrs, n.xattrs)
	}
	return nil
}
