package draft

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// What is being made stays, however long it takes, and what was put in place; what a process that was
// killed has left goes.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	busy, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	done, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(done.Dir, filepath.Join(dir, "done")); err != nil {
		t.Fatal(err)
	}
	done.Close()
	left, gone, young := filepath.Join(dir, newPrefix+"left"), Gone(dir, "it"), filepath.Join(dir, newPrefix+"young")
	for _, path := range []string{left, gone, young} {
		if err := errors.Join(os.Mkdir(path, 0o700), os.WriteFile(filepath.Join(path, "file"), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Now().Add(-2 * restTime)
	for _, path := range []string{left, gone, busy.Dir, filepath.Join(dir, "done")} {
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	Sweep(dir)
	for path, stays := range map[string]bool{left: false, gone: false, young: true, busy.Dir: true, filepath.Join(dir, "done"): true} {
		if _, err := os.Lstat(path); (err == nil) != stays || err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", filepath.Base(path), err)
		}
	}
	busy.Close()
	if _, err := os.Lstat(busy.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after its end: %v", err)
	}
}
