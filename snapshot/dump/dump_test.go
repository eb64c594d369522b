package dump

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"manis/vmm"
)

func key(t *testing.T) (Key, string) {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	k, err := OpenKey(root)
	if err != nil {
		t.Fatal(err)
	}
	return k, root
}

// saving writes files that say content.
func saving(content string) func(context.Context, *os.File, *os.File) (*vmm.Saved, error) {
	return func(_ context.Context, pages, resumer *os.File) (*vmm.Saved, error) {
		_, err := pages.WriteString(content)
		_, err2 := resumer.WriteString(content)
		return &vmm.Saved{Monitor: content, Files: []vmm.SavedFile{{Share: "binds", Path: "0.root/a\nb", Size: 3}}}, errors.Join(err, err2)
	}
}

// holds checks what the files of an image hold.
func holds(t *testing.T, i *Image, want string) {
	t.Helper()
	s := i.Saved()
	for _, f := range []*os.File{s.PagesFile, s.ResumerFile} {
		b := make([]byte, 100)
		if n, _ := f.ReadAt(b, 0); string(b[:n]) != want {
			t.Errorf("%s holds %q, want %q", f.Name(), b[:n], want)
		}
	}
}

func TestWriteAndOpen(t *testing.T) {
	k, _ := key(t)
	dir := filepath.Join(t.TempDir(), "a", "image")
	c := Container{ID: "x", MemoryBytes: 1 << 28, VCPUs: 2, Terminal: true, Mounts: []Mount{{Name: "0.root", Destination: "/"}}}
	if err := Write(t.Context(), dir, k, c, saving("first")); err != nil {
		t.Fatal(err)
	}
	first, err := Open(dir, k)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if first.Container.ID != "x" || !first.Container.Terminal || first.Container.Mounts[0] != c.Mounts[0] || first.Machine.Files[0].Path != "0.root/a\nb" || first.Saved().Monitor != "first" {
		t.Errorf("%+v", first.Manifest)
	}
	for name, mode := range map[string]os.FileMode{first.Directory: 0o700, ManifestName: 0o600} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
	}
	// One that is written in its place leaves what was opened as it was, and one that fails leaves all.
	if err := Write(t.Context(), dir, k, c, func(_ context.Context, pages, _ *os.File) (*vmm.Saved, error) {
		pages.WriteString("half")
		return nil, unix.ENOSPC
	}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a failing writer: %v", err)
	}
	again, err := Open(dir, k)
	if err != nil {
		t.Fatal(err)
	}
	holds(t, again, "first")
	again.Close()
	if err := Write(t.Context(), dir, k, c, saving("second")); err != nil {
		t.Fatal(err)
	}
	holds(t, first, "first")
	second, err := Open(dir, k)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	holds(t, second, "second")
	if entries, _ := os.ReadDir(dir); len(entries) != 2 {
		t.Errorf("left: %v", entries)
	}
	// It may be moved.
	moved := filepath.Join(t.TempDir(), "moved")
	if err := os.Rename(dir, moved); err != nil {
		t.Fatal(err)
	}
	third, err := Open(moved, k)
	if err != nil {
		t.Fatal(err)
	}
	third.Close()
	// Nothing is left of the directory of one that was never there.
	never := filepath.Join(t.TempDir(), "never")
	if err := Write(t.Context(), never, k, c, func(context.Context, *os.File, *os.File) (*vmm.Saved, error) { return nil, unix.EIO }); err == nil {
		t.Error("it was written")
	}
	if _, err := os.Stat(never); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
}

// What was not made with the key, or is not as it was, is not opened.
func TestNotOpened(t *testing.T) {
	k, _ := key(t)
	other, _ := key(t)
	for what, c := range map[string]struct {
		key   Key
		spoil func(dir, machine string) error
		says  string
	}{
		"another installation's": {other, func(string, string) error { return nil }, "not made by this installation"},
		"none":                   {k, func(dir, _ string) error { return os.Remove(filepath.Join(dir, ManifestName)) }, "no checkpoint"},
		"CRIU's": {k, func(dir, _ string) error {
			return os.WriteFile(filepath.Join(dir, ManifestName), []byte("\x40\x59\x10\x55\x31\x12\x03\x58"), 0o600)
		}, "no checkpoint of manis"},
		"a changed manifest": {k, func(dir, _ string) error {
			path := filepath.Join(dir, ManifestName)
			b, err := os.ReadFile(path)
			return errors.Join(err, os.WriteFile(path, []byte(strings.Replace(string(b), `"vcpus": 0`, `"vcpus": 9`, 1)), 0o600))
		}, "not made by this installation"},
		"a manifest cut off":  {k, func(dir, _ string) error { return os.Truncate(filepath.Join(dir, ManifestName), 60) }, "not made by this installation"},
		"an endless manifest": {k, func(dir, _ string) error { return os.Truncate(filepath.Join(dir, ManifestName), 1<<40) }, "more than"},
		"a FIFO": {k, func(dir, _ string) error {
			path := filepath.Join(dir, ManifestName)
			return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600))
		}, "not a file"},
		"other pages": {k, func(_, m string) error {
			return errors.Join(os.Chmod(m+"/pages", 0o600), os.WriteFile(m+"/pages", []byte("CONTENT"), 0), os.Chmod(m+"/pages", 0o400))
		}, "damaged: pages"},
		"endless pages": {k, func(_, m string) error { return os.Truncate(m+"/pages", 1<<40) }, "damaged: pages"},
		"another resumer": {k, func(_, m string) error {
			return errors.Join(os.Remove(m+"/resumer"), os.WriteFile(m+"/resumer", []byte("CONTENT"), 0o555))
		}, "damaged: resumer"},
		"no resumer": {k, func(_, m string) error { return os.Remove(m + "/resumer") }, "damaged"},
		"a link": {k, func(_, m string) error {
			return errors.Join(os.Rename(m+"/pages", m+"/x"), os.Symlink("x", m+"/pages"))
		}, "damaged"},
		"a directory for all": {k, func(_, m string) error { return os.Chmod(m, 0o755) }, "of this user's alone"},
		"a file for all":      {k, func(_, m string) error { return os.Chmod(m+"/pages", 0o666) }, "others may write"},
	} {
		dir := filepath.Join(t.TempDir(), "image")
		if err := Write(t.Context(), dir, k, Container{ID: "x"}, saving("content")); err != nil {
			t.Fatal(err)
		}
		i, err := Open(dir, k)
		if err != nil {
			t.Fatal(err)
		}
		i.Close()
		if err := c.spoil(dir, filepath.Join(dir, i.Directory)); err != nil {
			t.Fatal(err)
		}
		if i, err := Open(dir, c.key); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, %v", what, i, err)
		}
	}
}

// A manifest of the right key is believed, but not everywhere and not of every version.
func TestCheck(t *testing.T) {
	k, _ := key(t)
	dir := filepath.Join(t.TempDir(), "image")
	if err := Write(t.Context(), dir, k, Container{ID: "x"}, saving("content")); err != nil {
		t.Fatal(err)
	}
	i, err := Open(dir, k)
	if err != nil {
		t.Fatal(err)
	}
	i.Close()
	for what, change := range map[string]func(*Manifest){
		"has booted since": func(m *Manifest) { m.Boot = "7c7f1e4a-0000-4000-8000-000000000000" },
		"has version 2":    func(m *Manifest) { m.Version = 2 },
		"is damaged":       func(m *Manifest) { m.Directory = machinePrefix + "/../" + i.Directory },
	} {
		m := i.Manifest
		change(&m)
		if err := m.store(dir, k); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, k); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want: %s", err, what)
		}
	}
}

func TestKey(t *testing.T) {
	k, root := key(t)
	if again, err := OpenKey(root); err != nil || string(again) != string(k) {
		t.Errorf("%x, then %x, %v", k, again, err)
	}
	path := filepath.Join(root, keyName)
	if entries, _ := os.ReadDir(root); len(entries) != 1 {
		t.Errorf("left: %v", entries)
	}
	for what, spoil := range map[string]func() error{
		"readable by others": func() error { return os.Chmod(path, 0o644) },
		"short":              func() error { return errors.Join(os.Chmod(path, 0o600), os.Truncate(path, 5)) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenKey(root); err == nil || !strings.Contains(err.Error(), "alone") {
			t.Errorf("a key that is %s: %v", what, err)
		}
	}
}

func FuzzManifest(f *testing.F) {
	k := Key("key")
	f.Add([]byte{}, []byte("{}"))
	f.Add(k.seal([]byte("{}")), []byte(`{"version":1,"directory":"machine-x"}`))
	f.Fuzz(func(t *testing.T, file, body []byte) {
		if got, err := k.open(file); err == nil && string(k.seal(got)) != string(file) {
			t.Errorf("%q was opened", file)
		}
		if got, err := k.open(k.seal(body)); err != nil || string(got) != string(body) {
			t.Errorf("%q, %v", got, err)
		}
	})
}
