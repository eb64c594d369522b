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

	"golang.org/x/sys/unix"

	"manis/host/memo"
	"manis/image/lockfile"
	"manis/template/draft"
	"manis/vmm"
	"manis/vmm/checkpoint"
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

func failed(reason error) error { return fmt.Errorf("%w: %w", errFailed, reason) }

// Machine is a saved machine that was opened. What was verified is continued and nothing else, whatever
// comes to its directory meanwhile.
type Machine struct {
	dir            string
	saved          vmm.Saved
	pages, resumer *os.File
}

// Close gives the files back, when no machine is going to be continued any more.
func (m *Machine) Close() {
	if m != nil {
		m.pages.Close()
		m.resumer.Close()
	}
}

// Saved is what a machine is continued from, until Close.
func (m *Machine) Saved() *vmm.Saved {
	s := m.saved
	s.Pages, s.PagesFile = m.pages.Name(), m.pages
	s.Resumer, s.ResumerFile = m.resumer.Name(), m.resumer
	return &s
}

// Saved is the machine to continue instead of going on from Frozen; nil if there is none. It is
// of use until Close.
func (t *Template) Saved() *vmm.Saved {
	if t.saved == nil {
		return nil
	}
	return t.saved.Saved()
}

// OpenSaved opens what WriteSaved has stored, if it is whole and of this boot.
func OpenSaved(dir string) (_ *Machine, err error) {
	b, err := os.ReadFile(filepath.Join(dir, savedInfoName))
	if err != nil {
		return nil, err
	}
	var info Saved
	if err := json.Unmarshal(b, &info); err != nil {
		return nil, fmt.Errorf("read %s: %w", savedInfoName, err)
	}
	if boot, err := memo.Boot(); err != nil || boot != info.Boot {
		return nil, errors.New("the host has booted since it was saved")
	}
	if info.Failed != "" {
		return nil, failed(errors.New(info.Failed))
	}
	s := &Machine{dir: dir, saved: info.Machine}
	if s.pages, err = checkpoint.OpenFile(filepath.Join(dir, pagesName)); err != nil {
		return nil, err
	}
	if s.resumer, err = checkpoint.OpenFile(filepath.Join(dir, resumerName)); err != nil {
		s.pages.Close()
		return nil, err
	}
	if err := verify(filepath.Join(dir, verifiedName), sealed{s.pages, info.PagesDigest}, sealed{s.resumer, info.ResumerDigest}); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Distrust forgets the saved machine, which could not be continued, until the next boot.
func (t *Template) Distrust(reason error) {
	if t.saved == nil {
		return
	}
	dir := t.saved.dir
	same := t.saved.inPlace()
	t.saved.Close()
	t.saved, t.savedErr = nil, failed(reason)
	if same {
		giveUp(dir, reason)
	}
}

// inPlace reports whether the machine is still the one that others find in its directory.
func (m *Machine) inPlace() bool {
	opened, err := m.pages.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(filepath.Join(m.dir, pagesName))
	return err == nil && os.SameFile(opened, there)
}

// giveUp leaves a note in place of a saved machine.
func giveUp(dir string, reason error) {
	boot, err := memo.Boot()
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

// Exerciser makes a saved machine: it writes the two files, see vmm.VM.Save. In the files'
// directory it may have others, and removes them.
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
	if t.saved, t.savedErr = OpenSaved(dir); t.savedErr == nil || errors.Is(t.savedErr, errFailed) && !insist {
		return t.savedErr
	}
	if err := s.save(ctx, dir, exercise); err != nil {
		if ctx.Err() == nil {
			giveUp(dir, err)
			t.savedErr = failed(err)
		}
		return fmt.Errorf("save an exercised machine: %w", err)
	}
	t.saved, t.savedErr = OpenSaved(dir)
	return t.savedErr
}

// saving is the lock of Save.
func (s *Store) saving(t *Template) string { return filepath.Join(s.dir, "."+t.Info.Key+".saving") }

// WantsSaving reports whether Save would have something to do, as far as was known when t was opened,
// and nobody is at it.
func (s *Store) WantsSaving(t *Template) bool {
	if t.saved != nil || errors.Is(t.savedErr, errFailed) {
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
	draft.Sweep(s.dir)
	d, err := draft.New(s.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := WriteSaved(ctx, d.Dir, exercise); err != nil {
		return err
	}
	// One of an earlier boot, or a damaged one, is in the way.
	if err := os.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Rename(d.Dir, dir)
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
	var fsys unix.Statfs_t
	if err := unix.Fstatfs(int(resumer.Fd()), &fsys); err == nil && fsys.Flags&unix.ST_NOEXEC != 0 {
		return fmt.Errorf("%s is on a filesystem that is mounted noexec, and the machine is saved as a program", tmp)
	}
	info := Saved{Created: time.Now()}
	if info.Boot, err = memo.Boot(); err != nil {
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
