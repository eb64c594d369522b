package pod

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// writeProjected makes a volume with one file.
func writeProjected(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := errors.Join(
		os.Mkdir(filepath.Join(dir, "..one"), 0o755), os.WriteFile(filepath.Join(dir, "..one", "file"), []byte("words"), 0o640),
		os.Symlink("..one", filepath.Join(dir, "..data")), os.Symlink("..data/file", filepath.Join(dir, "file")),
	); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestReadProjected(t *testing.T) {
	dir := writeProjected(t)
	// What the kubelet is about to put in place.
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "..two"), 0o755), os.Symlink("..two", filepath.Join(dir, "..data_tmp"))); err != nil {
		t.Fatal(err)
	}
	c, err := readProjected(volume{dir: dir}, nil, maxContent)
	if err != nil || c.size < len("words") || !c.changing {
		t.Fatal(c.size, c.changing, err)
	}
	files := c.files
	var got []string
	for _, f := range files {
		content := string(f.Content)
		got = append(got, f.Path+"="+content)
	}
	if want := []string{".=", "..data=..one", "..one=", "..one/file=words", "file=..data/file"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if f := files[3]; f.Mode != unix.S_IFREG|0o640 || f.MtimeUnixNs == 0 {
		t.Errorf("the file: %v", f)
	}
	// It is done.
	if err := errors.Join(os.Remove(filepath.Join(dir, "..two")), os.Remove(filepath.Join(dir, "..data_tmp"))); err != nil {
		t.Fatal(err)
	}
	if c, err := readProjected(volume{dir: dir}, nil, maxContent); err != nil || c.changing {
		t.Errorf("what the kubelet is done with: changing %v, error %v", c.changing, err)
	}
}

func TestReadProjectedRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(dir string) error
		want   string
	}{
		"no link": {func(dir string) error { return os.Remove(filepath.Join(dir, "..data")) }, "..data"},
		"a link that leads out": {func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "..data")), os.Symlink("../..", filepath.Join(dir, "..data")))
		}, "..data"},
		"a FIFO":      {func(dir string) error { return unix.Mkfifo(filepath.Join(dir, "..one", "fifo"), 0o600) }, "neither"},
		"a large one": {func(dir string) error { return os.Truncate(filepath.Join(dir, "..one", "file"), 1<<40) }, "larger"},
		"a deep one": {func(dir string) error {
			return os.MkdirAll(filepath.Join(dir, "..one", strings.Repeat("d/", maxProjectedDepth)), 0o755)
		}, "deep"},
		"many files": {func(dir string) error {
			var err error
			for i := range maxProjected + 1 {
				err = errors.Join(err, os.Symlink("x", filepath.Join(dir, "..one", strings.Repeat("n", 1+i%50)+string(rune('a'+i/50%26))+string(rune('a'+i/1300)))))
			}
			return err
		}, "more than"},
		"none": {func(dir string) error { return os.RemoveAll(dir) }, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := writeProjected(t)
			if err := c.change(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := readProjected(volume{dir: dir}, nil, maxContent); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
		})
	}
}

func TestChangedIn(t *testing.T) {
	event := func(wd byte, mask uint32, name string) []byte {
		b := make([]byte, unix.SizeofInotifyEvent+len(name))
		b[0], b[12] = wd, byte(len(name))
		b[4], b[5] = byte(mask), byte(mask>>8)
		copy(b[unix.SizeofInotifyEvent:], name)
		return b
	}
	got := changedIn(append(event(1, unix.IN_CREATE, "name\x00\x00\x00\x00"), event(3, unix.IN_ATTRIB, "")...))
	if len(got) != 2 || !got[1] || !got[3] {
		t.Errorf("got %v", got)
	}
	if got := changedIn(append(event(1, unix.IN_CREATE, ""), event(0xff, unix.IN_Q_OVERFLOW, "")...)); got != nil {
		t.Errorf("after an overflow: %v", got)
	}
	changedIn([]byte("\x01\x00\x00\x00 too short, and with a length beyond its end"))
}
