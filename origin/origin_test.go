package origin

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What was opened is found again by its own path, and nothing that came to its place is taken for it.
func TestOrigin(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, c := range map[string]struct {
		change func() error
		gone   bool
	}{
		"nothing":              {func() error { return nil }, false},
		"its own link":         {func() error { return errors.Join(os.Remove(at("link")), os.Symlink("secret", at("link"))) }, false},
		"another in place":     {func() error { return errors.Join(os.Rename(at("up/it"), at("old")), os.Mkdir(at("up/it"), 0o700)) }, true},
		"a link in place":      {func() error { return errors.Join(os.Rename(at("up/it"), at("old")), os.Symlink("../old", at("up/it"))) }, true},
		"a link further up":    {func() error { return errors.Join(os.Rename(at("up"), at("old")), os.Symlink("old", at("up"))) }, true},
		"nothing in place":     {func() error { return os.Remove(at("up/it")) }, true},
		"one with that ending": {func() error { return errors.Join(os.Remove(at("up/it")), os.Mkdir(at("up/it (deleted)"), 0o700)) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			entries, err := os.ReadDir(dir)
			must(err)
			for _, e := range entries {
				must(os.RemoveAll(at(e.Name())))
			}
			must(os.MkdirAll(at("up/it"), 0o700), os.Mkdir(at("secret"), 0o700), os.Symlink("up/it", at("link")))
			f, err := Open(at("link"))
			must(err)
			defer f.Close()
			o, err := Of(f)
			must(err)
			if o.Path != at("up/it") {
				t.Errorf("it is at %s", o.Path)
			}
			must(c.change())
			again, err := o.Open(unix.O_PATH)
			if c.gone {
				if !errors.Is(err, ErrChanged) {
					t.Errorf("opened again: %v", err)
				}
				return
			}
			must(err)
			defer again.Close()
			if now, err := Of(again); err != nil || now != o {
				t.Errorf("opened again it is %+v, %v; it was %+v", now, err, o)
			}
		})
	}
	must(os.RemoveAll(at("up")), os.MkdirAll(at("up/it"), 0o700))
	f, err := Open(at("up/it"))
	must(err)
	defer f.Close()
	must(os.Remove(at("up/it")), os.Mkdir(at("up/it (deleted)"), 0o700))
	if o, err := Of(f); !errors.Is(err, ErrChanged) {
		t.Errorf("what was removed is %+v, %v", o, err)
	}
}
