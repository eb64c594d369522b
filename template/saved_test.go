package template

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"manis/image/lockfile"
	"manis/vmm"
)

// exerciser writes files that say content.
func exerciser(content string) Exerciser {
	return func(_ context.Context, pages, resumer *os.File) (*vmm.Saved, error) {
		_, err := pages.WriteString(content)
		_, err2 := resumer.WriteString(content)
		return &vmm.Saved{Monitor: "monitor"}, errors.Join(err, err2)
	}
}

// holds checks what is in the files of a saved machine that was opened.
func holds(t *testing.T, saved *vmm.Saved, want string) {
	t.Helper()
	for _, f := range []*os.File{saved.PagesFile, saved.ResumerFile} {
		b := make([]byte, 100)
		if n, _ := f.ReadAt(b, 0); string(b[:n]) != want {
			t.Errorf("%s holds %q, want %q", f.Name(), b[:n], want)
		}
	}
}

// What was verified is what is continued, whatever happens to its directory then.
func TestSavedStaysWhatItIs(t *testing.T) {
	s, c := store(t)
	tmpl := get(t, s, c)
	if tmpl.Saved() != nil || !s.WantsSaving(tmpl) {
		t.Fatal("a new template has a saved machine")
	}
	var exercised atomic.Int32
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			other, err := s.Get(t.Context(), c, nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer other.Close()
			if err := s.Save(t.Context(), other, false, func(ctx context.Context, pages, resumer *os.File) (*vmm.Saved, error) {
				exercised.Add(1)
				return exerciser("first")(ctx, pages, resumer)
			}); err != nil || other.Saved() == nil {
				t.Error(other.Saved(), err)
			}
		})
	}
	wg.Wait()
	if exercised.Load() != 1 {
		t.Errorf("four savers exercised %d machines", exercised.Load())
	}
	first := get(t, s, c)
	saved := first.Saved()
	if saved == nil || saved.Monitor != "monitor" || s.WantsSaving(first) {
		t.Fatalf("%+v", saved)
	}
	holds(t, saved, "first")
	dir := filepath.Join(s.dir, first.Info.Key, savedName)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(t.Context(), tmpl, false, exerciser("second")); err != nil {
		t.Fatal(err)
	}
	holds(t, saved, "first")
	holds(t, tmpl.Saved(), "second")

	// Who finds that the first cannot be continued says nothing about the second.
	first.Distrust(errors.New("broken"))
	if first.Saved() != nil || get(t, s, c).Saved() == nil {
		t.Error("the wrong machine is distrusted")
	}
	tmpl.Distrust(errors.New("broken"))
	if again := get(t, s, c); again.Saved() != nil || s.WantsSaving(again) {
		t.Error("a machine that cannot be continued will be")
	}
}

// What cannot be trusted is not continued, and is made again.
func TestSavedIsVerified(t *testing.T) {
	s, c := store(t)
	tmpl := get(t, s, c)
	dir := filepath.Join(s.dir, tmpl.Info.Key, savedName)
	path := func(name string) string { return filepath.Join(dir, name) }
	for what, spoil := range map[string]func() error{
		"other pages": func() error {
			return errors.Join(os.Chmod(path(pagesName), 0o600), os.WriteFile(path(pagesName), []byte("other"), 0))
		},
		"another resumer": func() error {
			return errors.Join(os.Remove(path(resumerName)), os.WriteFile(path(resumerName), []byte("other"), 0o555))
		},
		"no pages":    func() error { return os.Remove(path(pagesName)) },
		"a FIFO":      func() error { return errors.Join(os.Remove(path(pagesName)), unix.Mkfifo(path(pagesName), 0o600)) },
		"no note":     func() error { return os.Remove(path(savedInfoName)) },
		"half a note": func() error { return os.Truncate(path(savedInfoName), 20) },
		"a link": func() error {
			return errors.Join(os.Rename(path(resumerName), path("else")), os.Symlink("else", path(resumerName)))
		},
		"another boot": func() error {
			b, err := os.ReadFile(path(savedInfoName))
			var info Saved
			err = errors.Join(err, json.Unmarshal(b, &info))
			info.Boot = "7c7f1e4a-0000-4000-8000-000000000000"
			b, err2 := json.Marshal(info)
			return errors.Join(err, err2, os.WriteFile(path(savedInfoName), b, 0o600))
		},
	} {
		if err := s.Save(t.Context(), tmpl, true, exerciser("content")); err != nil {
			t.Fatal(err)
		}
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		again := get(t, s, c)
		if again.Saved() != nil {
			t.Errorf("%s: it is continued", what)
		}
		if !s.WantsSaving(again) {
			t.Errorf("%s: it is not made again", what)
		}
		tmpl = again
	}
}

// A failure is remembered, so that it costs one attempt. One that insists tries again, and what was interrupted
// is no failure.
func TestSavingFails(t *testing.T) {
	s, c := store(t)
	tmpl := get(t, s, c)
	full := func(_ context.Context, pages, _ *os.File) (*vmm.Saved, error) {
		if _, err := pages.WriteString("half"); err != nil {
			return nil, err
		}
		return nil, &os.PathError{Op: "write", Path: pages.Name(), Err: unix.ENOSPC}
	}
	interrupted, cancel := context.WithCancel(t.Context())
	if err := s.Save(interrupted, tmpl, false, func(context.Context, *os.File, *os.File) (*vmm.Saved, error) {
		cancel()
		return nil, interrupted.Err()
	}); !errors.Is(err, context.Canceled) || !s.WantsSaving(tmpl) {
		t.Errorf("after an interruption: %v", err)
	}
	if err := s.Save(t.Context(), tmpl, false, full); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("with a full disk: %v", err)
	}
	if got := entries(t, s); len(got) != 2 { // the template, and the lock of those who save
		t.Errorf("left: %v", got)
	}
	if s.WantsSaving(tmpl) {
		t.Error("the next start tries again")
	}
	err := s.Save(t.Context(), tmpl, false, exerciser("content"))
	if err == nil || !strings.Contains(err.Error(), "no space left") || strings.Contains(err.Error(), "\n") {
		t.Errorf("the reason afterwards: %v", err)
	}
	if err := s.Save(t.Context(), tmpl, true, exerciser("content")); err != nil || tmpl.Saved() == nil {
		t.Errorf("one that insists: %v", err)
	}
}

// What a saver that was killed has left goes with the next saving; what is being saved stays. A template that is
// removed meanwhile does not come back.
func TestSavingOnBadDays(t *testing.T) {
	s, c := store(t)
	tmpl := get(t, s, c)
	left, busy := filepath.Join(s.dir, ".new-left"), filepath.Join(s.dir, ".new-busy")
	for _, dir := range []string{left, busy} {
		if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, pagesName), []byte("x"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Now().Add(-time.Minute)
	if err := errors.Join(os.Chtimes(left, old, old), os.Chtimes(busy, old, old)); err != nil {
		t.Fatal(err)
	}
	lock, err := lockfile.Try(busy, lockfile.Exclusive, false)
	if err != nil || lock == nil {
		t.Fatal(lock, err)
	}
	defer lock.Release()
	tmpl.Relinquish()
	err = s.Save(t.Context(), tmpl, false, func(ctx context.Context, pages, resumer *os.File) (*vmm.Saved, error) {
		if err := s.Remove(tmpl.Info.Key); err != nil {
			t.Error(err)
		}
		return exerciser("content")(ctx, pages, resumer)
	})
	if err == nil {
		t.Error("saved for a template that is gone")
	}
	var names []string
	for _, name := range entries(t, s) {
		if !strings.HasSuffix(name, ".saving") {
			names = append(names, name)
		}
	}
	if len(names) != 1 || names[0] != ".new-busy" {
		t.Errorf("left: %v", names)
	}
	if again := get(t, s, c); again.Saved() != nil || !s.WantsSaving(again) {
		t.Error("the new template has the old one's machine")
	}
}
