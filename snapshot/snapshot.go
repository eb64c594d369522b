// Package snapshot keeps containers that were saved while they ran, with their memory and their
// disks: any number of containers may go on from each. A snapshot lasts until the
// host's next boot, like the saved machine in it (see package vmm/checkpoint), and needs
// the image of its container.
package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"manis/container"
	"manis/template"
	"manis/template/draft"
	"manis/vmm"
)

// Errors to be told apart.
var (
	ErrNotFound = errors.New("no such snapshot")
	ErrExists   = errors.New("there is a snapshot of this name")
	ErrName     = errors.New("a snapshot's name has 1 to 128 letters, digits, '_', '.' and '-', and begins with a letter or digit")
)

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// Info describes a snapshot.
type Info struct {
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	// Config is that of the container.
	Config container.Config `json:"config"`
	// Hook is a command that is run in every container that goes on from the snapshot, before
	// anybody else reaches it.
	Hook []string `json:"hook,omitempty"`
	// Scratch is set when there is a disk besides the image.
	Scratch bool `json:"scratch"`
}

// The files of a snapshot, besides those of the saved machine.
const (
	infoName    = "snapshot.json"
	scratchName = "scratch.img"
)

// Store is a directory of snapshots.
type Store struct{ dir string }

// Open returns the store in dir, which is made on first use.
func Open(dir string) *Store { return &Store{dir} }

// Check says early what Create would refuse.
func (s *Store) Check(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("%w: %q", ErrName, name)
	}
	if _, err := os.Lstat(filepath.Join(s.dir, name)); err == nil {
		return fmt.Errorf("%w: %s (manis snapshot rm removes it)", ErrExists, name)
	}
	return nil
}

// Create makes a snapshot: save writes the machine, and the disk to the path it is given, if
// info has one. Nothing is left of a snapshot that fails.
func (s *Store) Create(ctx context.Context, info Info, save template.Exerciser, disk func(path string) error) error {
	if err := s.Check(info.Name); err != nil {
		return err
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("make the directory of snapshots: %w", err)
	}
	draft.Sweep(s.dir)
	d, err := draft.New(s.dir)
	if err != nil {
		return fmt.Errorf("make a snapshot: %w", err)
	}
	defer d.Close()
	if err := template.WriteSaved(ctx, d.Dir, save); err != nil {
		return fmt.Errorf("save the machine: %w", err)
	}
	if info.Scratch {
		if err := disk(filepath.Join(d.Dir, scratchName)); err != nil {
			return fmt.Errorf("copy the writable layer: %w", err)
		}
	}
	info.Created = time.Now()
	b, err := json.MarshalIndent(info, "", "  ")
	if err == nil {
		err = os.WriteFile(filepath.Join(d.Dir, infoName), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("describe the snapshot: %w", err)
	}
	// An existing directory with files in it is never replaced.
	if err := os.Rename(d.Dir, filepath.Join(s.dir, info.Name)); err != nil {
		if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("%w: %s", ErrExists, info.Name)
		}
		return fmt.Errorf("store the snapshot: %w", err)
	}
	return nil
}

// Snapshot is one that a container can go on from, until Close.
type Snapshot struct {
	Info    Info
	machine *template.Machine
	dir     string
}

// Machine is what a machine is continued from.
func (s *Snapshot) Machine() *vmm.Saved { return s.machine.Saved() }

// Close gives the snapshot back; machines that were continued do not need it.
func (s *Snapshot) Close() { s.machine.Close() }

// Get reads the description of a snapshot.
func (s *Store) Get(name string) (*Info, error) {
	if !validName.MatchString(name) {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, name)
	}
	b, err := os.ReadFile(filepath.Join(s.dir, name, infoName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, name)
	}
	var info Info
	if err == nil {
		err = json.Unmarshal(b, &info)
	}
	if err != nil {
		return nil, fmt.Errorf("read snapshot %s: %w", name, err)
	}
	return &info, nil
}

// Use opens a snapshot to go on from it, and says why that cannot be.
func (s *Store) Use(name string) (*Snapshot, error) {
	info, err := s.Get(name)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(s.dir, name)
	machine, err := template.OpenSaved(dir)
	if err != nil {
		return nil, fmt.Errorf("snapshot %s cannot be continued: %w", name, err)
	}
	return &Snapshot{Info: *info, machine: machine, dir: dir}, nil
}

// Scratch opens the disk of the snapshot; nil if it has none.
func (s *Snapshot) Scratch() (*os.File, error) {
	if !s.Info.Scratch {
		return nil, nil
	}
	return os.Open(filepath.Join(s.dir, scratchName))
}

// List returns the snapshots, the newest first.
func (s *Store) List() ([]Info, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var all []Info
	for _, e := range entries {
		if info, err := s.Get(e.Name()); err == nil {
			all = append(all, *info)
		}
	}
	slices.SortFunc(all, func(a, b Info) int { return b.Created.Compare(a.Created) })
	return all, nil
}

// Bytes is what a snapshot takes of the disk.
func (s *Store) Bytes(name string) int64 {
	var sum int64
	filepath.WalkDir(filepath.Join(s.dir, name), func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && unix.Lstat(path, &st) == nil {
			sum += st.Blocks * 512
		}
		return nil
	})
	return sum
}

// Remove deletes a snapshot. Containers that went on from it keep what they have.
func (s *Store) Remove(name string) error {
	if _, err := s.Get(name); errors.Is(err, ErrNotFound) {
		return err
	}
	gone := draft.Gone(s.dir, name)
	os.RemoveAll(gone) // of a removal that was killed
	if err := os.Rename(filepath.Join(s.dir, name), gone); err != nil {
		return fmt.Errorf("remove snapshot %s: %w", name, err)
	}
	return os.RemoveAll(gone)
}
