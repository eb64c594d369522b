package lower

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func identify(t *testing.T, dirs ...string) *Stack {
	t.Helper()
	s, err := Identify(dirs)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStackIsWhatItsDirectoriesAre(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	write(t, filepath.Join(a, "f"), "a")
	one := identify(t, a, b)
	if identify(t, a, b).key != one.key {
		t.Error("the same directories have two keys")
	}
	if identify(t, b, a).key == one.key {
		t.Error("another order has the same key")
	}
	// The path is used again for another directory, with the same content.
	if err := os.RemoveAll(a); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(a, "f"), "a")
	if identify(t, a, b).key == one.key {
		t.Error("another directory of that name has the same key")
	}
	for _, dirs := range [][]string{nil, {"relative"}, {filepath.Join(a, "none")}, {filepath.Join(a, "f")}, slices.Repeat([]string{a}, 501)} {
		if _, err := Identify(dirs); err == nil {
			t.Errorf("%.3v is a stack", dirs)
		}
	}
}

func TestImagesOfStacks(t *testing.T) {
	dir, a, b := t.TempDir(), t.TempDir(), t.TempDir()
	s := NewStore(filepath.Join(dir, "lower"))
	write(t, filepath.Join(a, "f"), "a")
	st, other := identify(t, a), identify(t, b, a)
	if _, ok := s.Find(st); ok || !s.Wants(st) {
		t.Error("there is an image that nobody has made")
	}
	if err := s.Build(t.Context(), st); err != nil {
		t.Fatal(err)
	}
	path, ok := s.Find(st)
	if fi, err := os.Stat(path); !ok || err != nil || fi.Mode().Perm() != 0o400 {
		t.Errorf("the image is %s, %v: %v, %v", path, ok, fi, err)
	}
	if s.Wants(st) || !s.Wants(other) {
		t.Error("an image is wanted that is there, or not one that is not")
	}
	// What a killed builder has left, and what lost its note, goes; so do images of directories that have gone.
	for _, name := range []string{workPrefix + "123", "0123.erofs", "0123.other"} {
		write(t, filepath.Join(s.dir, name), "x")
	}
	if err := os.RemoveAll(a); err != nil {
		t.Fatal(err)
	}
	if err := s.Build(t.Context(), identify(t, b)); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Find(st); ok {
		t.Error("the image of a directory that has gone is kept")
	}
	left, _ := filepath.Glob(filepath.Join(s.dir, "*"))
	hidden, _ := filepath.Glob(filepath.Join(s.dir, ".*"))
	if len(left) != 4 || len(hidden) != 0 { // lock, image, note, and what is nobody's
		t.Errorf("left: %v %v", left, hidden)
	}
}

func TestStackThatCannotBeAnImage(t *testing.T) {
	a := t.TempDir()
	write(t, filepath.Join(a, "f"), "a")
	s := NewStore(t.TempDir())
	st := identify(t, a)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Build(ctx, st); err == nil {
		t.Error("an image was made although nobody wanted it any more")
	}
	if !s.Wants(st) {
		t.Error("being cancelled counts as a failure")
	}
	// Not the directory that it was, by the time it is read.
	write(t, filepath.Join(a, "g"), "a")
	if err := s.Build(t.Context(), st); err == nil {
		t.Error("an image was made of a directory that had changed")
	}
	if _, ok := s.Find(st); ok || s.Wants(st) {
		t.Error("a stack that has failed is tried again at once")
	}
	old := time.Now().Add(-2 * again)
	if err := os.Chtimes(s.path(st.key, noteSuffix), old, old); err != nil {
		t.Fatal(err)
	}
	if !s.Wants(st) {
		t.Error("a stack that has failed is never tried again")
	}
}
