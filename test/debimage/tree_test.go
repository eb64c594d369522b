package debimage

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// change runs a function after the file system's clock has moved on from the last snapshot, as
// it has between two steps of a real build.
func change(t *testing.T, root string, mutate func()) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(root, &st); err != nil {
		t.Fatal(err)
	}
	before, probe := st.Ctim, filepath.Join(t.TempDir(), "probe")
	for st.Ctim == before {
		if err := os.WriteFile(probe, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := unix.Stat(probe, &st); err != nil {
			t.Fatal(err)
		}
	}
	mutate()
}

// listing describes every entry of a layer in a line.
func listing(t *testing.T, write func(*tar.Writer) error) []string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := errors.Join(write(w), w.Close()); err != nil {
		t.Fatal(err)
	}
	var lines []string
	r := tar.NewReader(&b)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return lines
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("%c %o %s", h.Typeflag, h.Mode, h.Name)
		if h.Linkname != "" {
			line += " -> " + h.Linkname
		}
		if len(content) > 0 {
			line += " = " + string(content)
		}
		if value := h.PAXRecords["SCHILY.xattr.user.colour"]; value != "" {
			line += " colour=" + value
		}
		lines = append(lines, line)
	}
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, root, name, content string, mode os.FileMode) {
	t.Helper()
	path := filepath.Join(root, name)
	must(t, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), mode), os.Chmod(path, mode))
}

func TestLayerHoldsEveryKindOfFile(t *testing.T) {
	root := t.TempDir()
	write(t, root, "bin/tool", "x", 0o755|os.ModeSetuid)
	must(t,
		os.Link(filepath.Join(root, "bin/tool"), filepath.Join(root, "bin/zz")),
		os.Symlink("../etc", filepath.Join(root, "bin/link")),
		unix.Mkfifo(filepath.Join(root, "pipe"), 0o600),
		os.Mkdir(filepath.Join(root, "tmp"), 0o755),
		os.Chmod(filepath.Join(root, "tmp"), 0o777|os.ModeSticky),
	)
	want := []string{
		"5 755 bin/",
		"2 777 bin/link -> ../etc",
		"0 4755 bin/tool = x",
		"1 4755 bin/zz -> bin/tool",
		"6 600 pipe",
		"5 1777 tmp/",
	}
	if err := unix.Setxattr(filepath.Join(root, "bin/tool"), "user.colour", []byte("red"), 0); err == nil {
		want[2] += " colour=red"
		want[3] += " colour=red"
	}
	got := listing(t, func(w *tar.Writer) error { return writeChanges(w, root, nil) })
	if !slices.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestSecondLayerHoldsOnlyWhatChanged(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{"same/a", "same/b", "edited", "gone", "old/deep/a", "old/b", "becomes-file/x", "becomes-dir"} {
		write(t, root, name, "1", 0o644)
	}
	base, err := takeSnapshot(root)
	must(t, err)
	at := func(name string) string { return filepath.Join(root, name) }
	change(t, root, func() {
		write(t, root, "edited", "2", 0o644)
		write(t, root, "new/file", "n", 0o600)
		must(t,
			os.Remove(at("gone")), os.RemoveAll(at("old")),
			os.RemoveAll(at("becomes-file")), os.Remove(at("becomes-dir")),
		)
		write(t, root, "becomes-file", "f", 0o644)
		write(t, root, "becomes-dir/x", "d", 0o644)
	})
	want := []string{
		"0 600 .wh.gone",
		"0 600 .wh.old",
		"5 755 becomes-dir/",
		"0 644 becomes-dir/x = d",
		"0 644 becomes-file = f",
		"0 644 edited = 2",
		"5 755 new/",
		"0 600 new/file = n",
	}
	got := listing(t, func(w *tar.Writer) error { return writeChanges(w, root, base) })
	if !slices.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
