package template

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"manis/image/lockfile"
	"manis/vmm"
)

// The files of a saved machine, below a template's directory.
const (
	savedName     = "saved"
	pagesName     = "pages"
	resumerName   = "resumer"
	savedInfoName = "saved.json"
)

// Saved describes the machine that was saved together with its monitor's process, after it
// went on from the template and was exercised. It is of use until the host's next boot.
type Saved struct {
	Created time.Time `json:"created"`
	// BuildTime is how long it took to exercise and to save it.
	BuildTime     time.Duration `json:"build_ns"`
	Boot          string        `json:"boot"`
	Machine       vmm.Saved     `json:"machine"`
	PagesDigest   string        `json:"pages_digest"`
	ResumerDigest string        `json:"resumer_digest"`
	// Failed says why there is none; it is not tried again until the next boot.
	Failed string `json:"failed,omitempty"`
}

// errFailed: saving has failed before.
var errFailed = errors.New("saving an exercised machine has failed since the host's boot (manis template build tries again)")

// Saved is the machine to continue instead of going on from Frozen; nil if there is none.
func (t *Template) Saved() *vmm.Saved { return t.saved }

// OpenSaved opens what WriteSaved has stored, if it is whole and of this boot.
func OpenSaved(dir string) (*vmm.Saved, error) {
	b, err := os.ReadFile(filepath.Join(dir, savedInfoName))
	if err != nil {
		return nil, err
	}
	var info Saved
	if err := json.Unmarshal(b, &info); err != nil {
		return nil, fmt.Errorf("read %s: %w", savedInfoName, err)
	}
	if boot, err := bootID(); err != nil || boot != info.Boot {
		return nil, errors.New("the host has booted since it was saved")
	}
	if info.Failed != "" {
		return nil, fmt.Errorf("%w: %s", errFailed, info.Failed)
	}
	saved := &info.Machine
	saved.Pages, saved.Resumer = filepath.Join(dir, pagesName), filepath.Join(dir, resumerName)
	pages, err := os.Open(saved.Pages)
	if err != nil {
		return nil, err
	}
	defer pages.Close()
	resumer, err := os.Open(saved.Resumer)
	if err != nil {
		return nil, err
	}
	defer resumer.Close()
	return saved, verify(filepath.Join(dir, verifiedName), sealed{pages, info.PagesDigest}, sealed{resumer, info.ResumerDigest})
}

// Distrust forgets the saved machine, which could not be continued, until the next boot.
func (t *Template) Distrust(reason error) {
	if t.saved == nil {
		return
	}
	dir := filepath.Dir(t.saved.Pages)
	t.saved = nil
	giveUp(dir, reason)
}

// giveUp leaves a note in place of a saved machine.
func giveUp(dir string, reason error) {
	boot, err := bootID()
	if err != nil {
		return
	}
	b, err := json.MarshalIndent(Saved{Created: time.Now(), Boot: boot, Failed: reason.Error()}, "", "  ")
	if err != nil {
		return
	}
	// Without the template there is nothing to give up.
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return
	}
	writeFile(filepath.Join(dir, savedInfoName), b)
	os.Remove(filepath.Join(dir, pagesName))
	os.Remove(filepath.Join(dir, resumerName))
}

// Exerciser makes a saved machine: it writes the two files, see vmm.VM.Save.
type Exerciser func(ctx context.Context, pages, resumer *os.File) (*vmm.Saved, error)

// Save adds a saved machine to a template that has none. While one caller makes it, the others
// wait. Where that has failed since the host's boot, only a caller that insists tries again.
func (s *Store) Save(ctx context.Context, t *Template, insist bool, exercise Exerciser) error {
	if t.saved != nil {
		return nil
	}
	lock, err := lockfile.Acquire(ctx, s.saving(t), lockfile.Exclusive, true)
	if err != nil {
		return fmt.Errorf("save an exercised machine: %w", err)
	}
	defer lock.Release()
	dir := filepath.Join(s.dir, t.Info.Key, savedName)
	if t.saved, err = OpenSaved(dir); err == nil || errors.Is(err, errFailed) && !insist {
		return err
	}
	if err := s.save(ctx, dir, exercise); err != nil {
		if ctx.Err() == nil {
			giveUp(dir, err)
		}
		return fmt.Errorf("save an exercised machine: %w", err)
	}
	t.saved, err = OpenSaved(dir)
	return err
}

// saving is the lock of Save.
func (s *Store) saving(t *Template) string { return filepath.Join(s.dir, "."+t.Info.Key+".saving") }

// WantsSaving reports whether Save would have something to do, and nobody is at it.
func (s *Store) WantsSaving(t *Template) bool {
	if t.saved != nil {
		return false
	}
	if _, err := OpenSaved(filepath.Join(s.dir, t.Info.Key, savedName)); err == nil || errors.Is(err, errFailed) {
		return false
	}
	lock, err := lockfile.Try(s.saving(t), lockfile.Exclusive, true)
	if err != nil || lock == nil {
		return false
	}
	lock.Release()
	return true
}

func (s *Store) save(ctx context.Context, dir string, exercise Exerciser) error {
	tmp, err := os.MkdirTemp(s.dir, ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := WriteSaved(ctx, tmp, exercise); err != nil {
		return err
	}
	// One of an earlier boot, or a damaged one, is in the way.
	if err := os.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Rename(tmp, dir)
}

// WriteSaved has a machine saved into a directory of this user's alone.
func WriteSaved(ctx context.Context, tmp string, exercise Exerciser) error {
	begun := time.Now()
	pages, err := os.OpenFile(filepath.Join(tmp, pagesName), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer pages.Close()
	resumer, err := os.OpenFile(filepath.Join(tmp, resumerName), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer resumer.Close()
	info := Saved{Created: time.Now()}
	if info.Boot, err = bootID(); err != nil {
		return err
	}
	machine, err := exercise(ctx, pages, resumer)
	if err != nil {
		return err
	}
	info.Machine = *machine
	// A QEMU of another user opens them; the directory is this user's alone.
	if err := errors.Join(pages.Chmod(0o444), resumer.Chmod(0o555)); err != nil {
		return err
	}
	if info.PagesDigest, err = digest(pages); err != nil {
		return err
	}
	if info.ResumerDigest, err = digest(resumer); err != nil {
		return err
	}
	info.BuildTime = time.Since(begun)
	b, err := json.MarshalIndent(info, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, savedInfoName), b, 0o600); err != nil {
		return err
	}
	// What was read just now need not be read again.
	if seal, err := seal([]sealed{{pages, info.PagesDigest}, {resumer, info.ResumerDigest}}); err == nil {
		writeFile(filepath.Join(tmp, verifiedName), seal)
	}
	return nil
}
