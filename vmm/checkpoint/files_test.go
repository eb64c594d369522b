package checkpoint

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// opened is a descriptor of this process as it is read.
func opened(t *testing.T, f *os.File) descriptor {
	t.Helper()
	d, err := readDescriptor(os.Getpid(), int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// What is open is opened again by its path as long as that leads to it.
func TestIdentify(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for what, c := range map[string]struct {
		change func() error
		says   string // none: it can be
	}{
		"as it was": {func() error { return nil }, ""},
		"renamed":   {func() error { return os.Rename(path("f"), path("a name\nof two lines")) }, ""},
		"removed":   {func() error { return os.Remove(path("f")) }, "removed or replaced"},
		"replaced": {func() error {
			return errors.Join(os.WriteFile(path("g"), []byte("12345"), 0o600), os.Rename(path("g"), path("f")))
		}, "removed or replaced"},
		"removed, with another of the name that it is shown by": {func() error {
			return errors.Join(os.Remove(path("f")), os.WriteFile(path("f (deleted)"), []byte("12345"), 0o600))
		}, "removed or replaced"},
	} {
		if err := os.WriteFile(path("f"), []byte("12345"), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path("f"), os.O_RDWR|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.change(); err != nil {
			t.Fatal(err)
		}
		got, err := identify(os.Getpid(), opened(t, f))
		var failed *FileError
		switch {
		case c.says == "":
			if err != nil || got.Size != 5 || got.Directory || !strings.HasPrefix(got.Path, dir+"/") {
				t.Errorf("%s: %+v, %v", what, got, err)
			}
		case !errors.As(err, &failed) || !strings.Contains(failed.Reason, c.says) || failed.Path != path("f"):
			t.Errorf("%s: %+v, %v", what, got, err)
		}
		f.Close()
		os.Remove(path("f (deleted)"))
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if got, err := identify(os.Getpid(), opened(t, d)); err != nil || !got.Directory || got.Path != dir {
		t.Errorf("%+v, %v", got, err)
	}
	fifo := path("fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if got, err := identify(os.Getpid(), opened(t, p)); err == nil || !strings.Contains(err.Error(), "neither") {
		t.Errorf("%+v, %v", got, err)
	}
}

// Each open file takes the number that it had, its flags and its offset, and no other that links lead to.
func TestReopenSteps(t *testing.T) {
	dir := t.TempDir()
	f, err := os.OpenFile(filepath.Join(dir, "f"), os.O_RDWR|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.WriteString("12345")
	p := &plan{pid: os.Getpid(), keep: dir}
	d := opened(t, f)
	if err := p.descriptors([]descriptor{d}, []int{0, 1, 2}, nil); err != nil {
		t.Fatal(err)
	}
	var open, seek *step
	for i := range p.steps {
		switch p.steps[i].nr {
		case unix.SYS_OPENAT2:
			open = &p.steps[i]
		case unix.SYS_LSEEK:
			seek = &p.steps[i]
		}
	}
	if open == nil || open.flags&checked == 0 || open.wanted != uint64(d.fd) {
		t.Fatalf("%+v", open)
	}
	if seek == nil || seek.args[0] != uint64(d.fd) || seek.args[1] != 5 {
		t.Errorf("%+v", seek)
	}
	how := p.data.Bytes()[open.args[2]-p.base-dataOffset:]
	if flags := int(how[0]) | int(how[1])<<8; flags&unix.O_APPEND == 0 || flags&unix.O_ACCMODE != unix.O_RDWR || flags&(unix.O_CREAT|unix.O_EXCL|unix.O_TRUNC) != 0 || how[16] != unix.RESOLVE_NO_SYMLINKS {
		t.Errorf("flags %o, resolve %x", flags, how[16])
	}
	if len(p.files) != 1 || p.files[0].Path != f.Name() || p.files[0].Size != 5 {
		t.Errorf("%+v", p.files)
	}
	// What is beside the directory is not kept.
	other := &plan{pid: os.Getpid(), keep: dir + "x"}
	if err := other.descriptors([]descriptor{d}, []int{0, 1, 2}, nil); err == nil {
		t.Error("a file elsewhere is opened again")
	}
}
