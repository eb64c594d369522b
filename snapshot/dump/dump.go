// Package dump keeps a container that was saved while it ran in a directory that its caller names: the
// image of a checkpoint, as an OCI runtime has it. It can be moved, put into an archive and taken out
// again, and any number of containers may go on from it, until the host's next boot (see package
// vmm/checkpoint).
//
// To continue an image is to execute what is in it, so one is continued only where it was made: its
// manifest is authenticated by a key that no other installation has, and everything else is verified by digest.
//
// The directory holds the manifest, by the name under which callers look for it, and beside it a directory
// of its owner's alone with the machine.
package dump

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"manis/host/memo"
	"manis/image/lockfile"
	"manis/template"
	"manis/template/draft"
	"manis/vmm"
)

// The names in an image's directory. Engines take a directory for an image if it has a file of CRIU's name.
const (
	ManifestName  = "inventory.img"
	machinePrefix = "machine-"
	pagesName     = "pages"
	resumerName   = "resumer"
)

// version is that of the format.
const version = 1

// Manifest describes an image.
type Manifest struct {
	Version int       `json:"version"`
	Created time.Time `json:"created"`
	// Boot is the boot of the host, under whose kernel, Kernel, a saved process goes on
	// and under no other.
	Boot      string    `json:"boot"`
	Kernel    string    `json:"kernel"`
	Container Container `json:"container"`
	// Directory holds the two files.
	Directory string    `json:"directory"`
	Pages     Content   `json:"pages"`
	Resumer   Content   `json:"resumer"`
	Machine   vmm.Saved `json:"machine"`
}

// Container is what is to be known of the container that was saved.
type Container struct {
	// ID is the name by which the guest knows it.
	ID string `json:"id"`
	// MemoryBytes and VCPUs are the machine's size.
	MemoryBytes uint64 `json:"memory_bytes"`
	VCPUs       int    `json:"vcpus"`
	Terminal    bool   `json:"terminal"`
	// Paused: its processes were frozen when it was saved.
	Paused bool `json:"paused,omitempty"`
	// Mounts are what it has of the host's files, its root among them.
	Mounts []Mount `json:"mounts"`
}

// Mount is a directory or file of the host in a container.
type Mount struct {
	// Name is that of the share's entry.
	Name        string `json:"name"`
	Destination string `json:"destination"`
	File        bool   `json:"file,omitempty"`
}

// Content identifies what a file holds.
type Content struct {
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// Write makes an image in dir, which is made where it is missing, in place of one that is there. Without
// success an earlier one is as it was. save writes the machine.
func Write(ctx context.Context, dir string, key Key, c Container, save template.Exerciser) (err error) {
	fail := func(err error) error { return fmt.Errorf("write the checkpoint %s: %w", dir, err) }
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return fail(err)
	}
	fresh := os.Mkdir(dir, 0o700)
	if fresh != nil && !errors.Is(fresh, fs.ErrExist) {
		return fail(fresh)
	}
	defer func() {
		if err != nil && fresh == nil {
			os.Remove(dir)
		}
	}()
	lock, err := lockfile.Try(dir, lockfile.Exclusive, false)
	if err == nil && lock == nil {
		err = errors.New("another one is being written there")
	}
	if err != nil {
		return fail(err)
	}
	defer lock.Release()
	draft.Sweep(dir)
	d, err := draft.New(dir)
	if err != nil {
		return fail(err)
	}
	defer d.Close()
	m := Manifest{Version: version, Created: time.Now().UTC(), Container: c}
	if m.Boot, err = memo.Boot(); err != nil {
		return fail(err)
	}
	m.Kernel = kernel()
	if err := m.fill(ctx, d.Dir, save); err != nil {
		return fail(err)
	}
	m.Directory = machinePrefix + strings.TrimPrefix(filepath.Base(d.Dir), ".new-")
	place := filepath.Join(dir, m.Directory)
	if err := os.Rename(d.Dir, place); err != nil {
		return fail(err)
	}
	if err := m.store(dir, key); err != nil {
		os.RemoveAll(place)
		return fail(err)
	}
	// Machines that go on from an earlier one have its files.
	others, _ := filepath.Glob(filepath.Join(dir, machinePrefix+"*"))
	for _, o := range others {
		if o != place {
			os.RemoveAll(o)
		}
	}
	return nil
}

// fill saves the machine into a directory.
func (m *Manifest) fill(ctx context.Context, dir string, save template.Exerciser) error {
	var files [2]*os.File
	for i, name := range []string{pagesName, resumerName} {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		files[i] = f
	}
	var place unix.Statfs_t
	if err := unix.Fstatfs(int(files[0].Fd()), &place); err == nil && place.Flags&unix.ST_NOEXEC != 0 {
		return errors.New("it is on a filesystem that is mounted noexec, and the machine is saved as a program")
	}
	machine, err := save(ctx, files[0], files[1])
	if err != nil {
		return err
	}
	m.Machine = *machine
	// A QEMU of another user opens them; the directory is this user's alone.
	if err := errors.Join(files[0].Chmod(0o444), files[1].Chmod(0o555)); err != nil {
		return err
	}
	for i, c := range []*Content{&m.Pages, &m.Resumer} {
		if *c, err = contentOf(files[i]); err != nil {
			return err
		}
	}
	return nil
}

// store puts the manifest in place: from then on the image is there.
func (m *Manifest) store(dir string, key Key) error {
	body, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if body = key.seal(body); len(body) > maxManifest {
		return errors.New("the container has too many files open")
	}
	tmp, err := os.CreateTemp(dir, ".new-manifest-")
	if err != nil {
		return err
	}
	_, err = tmp.Write(body)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(dir, ManifestName))
	}
	if err != nil {
		os.Remove(tmp.Name())
	}
	return err
}

// contentOf reads a whole file.
func contentOf(f *os.File) (Content, error) {
	st, err := f.Stat()
	if err != nil {
		return Content{}, err
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, st.Size())); err != nil {
		return Content{}, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return Content{Bytes: st.Size(), SHA256: hex.EncodeToString(h.Sum(nil))}, nil
}

// kernel is the release of the host's kernel.
func kernel() string {
	var u unix.Utsname
	unix.Uname(&u)
	return unix.ByteSliceToString(u.Release[:])
}
