package dump

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"manis/host/memo"
	"manis/vmm"
	"manis/vmm/checkpoint"
)

// maxManifest bounds a manifest, bytes: one line for each file that was open.
const maxManifest = 16 << 20

// Image is one that was opened. What was verified is continued and nothing else, whatever
// comes to its directory meanwhile.
type Image struct {
	Manifest
	pages, resumer *os.File
}

// Open opens the image in dir, if it is whole, was made with this key, and can be continued here.
// Nothing of it is believed before that is known.
func Open(dir string, key Key) (_ *Image, err error) {
	fail := func(err error) (*Image, error) { return nil, fmt.Errorf("restore from %s: %w", dir, err) }
	f, err := checkpoint.OpenFile(filepath.Join(dir, ManifestName))
	if errors.Is(err, fs.ErrNotExist) {
		return fail(fmt.Errorf("there is no checkpoint (no file %s)", ManifestName))
	}
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	b := make([]byte, maxManifest+1)
	n, err := unix.Pread(int(f.Fd()), b, 0)
	if err != nil {
		return fail(err)
	}
	if n > maxManifest {
		return fail(fmt.Errorf("%s has more than %d bytes", ManifestName, maxManifest))
	}
	body, err := key.open(b[:n])
	if err != nil {
		return fail(err)
	}
	i := new(Image)
	if err := json.Unmarshal(body, &i.Manifest); err != nil {
		return fail(fmt.Errorf("read %s: %w", ManifestName, err))
	}
	if err := i.check(); err != nil {
		return fail(err)
	}
	if err := i.open(filepath.Join(dir, i.Directory)); err != nil {
		i.Close()
		return fail(err)
	}
	return i, nil
}

// check says whether what a manifest describes can go on here.
func (m *Manifest) check() error {
	if m.Version != version {
		return fmt.Errorf("its format has version %d, this manis knows %d", m.Version, version)
	}
	if name := m.Directory; !strings.HasPrefix(name, machinePrefix) || strings.ContainsAny(name, "/\x00") {
		return errors.New("its manifest is damaged")
	}
	boot, err := memo.Boot()
	if err != nil {
		return err
	}
	if boot != m.Boot {
		return fmt.Errorf("the host has booted since it was made (%s, under Linux %s): a saved machine goes on under the same boot only", m.Created.Format("2006-01-02 15:04"), m.Kernel)
	}
	return nil
}

// open opens and verifies the two files.
func (i *Image) open(dir string) (err error) {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("it is damaged: %w", &fs.PathError{Op: "stat", Path: dir, Err: err})
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 {
		return fmt.Errorf("%s is not a directory of this user's alone (chmod 700)", dir)
	}
	for _, x := range []struct {
		name string
		file **os.File
		want Content
	}{{pagesName, &i.pages, i.Pages}, {resumerName, &i.resumer, i.Resumer}} {
		f, err := checkpoint.OpenFile(filepath.Join(dir, x.name))
		if err != nil {
			return fmt.Errorf("it is damaged: %w", err)
		}
		*x.file = f
		st, err := f.Stat()
		if err != nil {
			return err
		}
		if st.Mode()&0o022 != 0 {
			return fmt.Errorf("others may write to %s (chmod go-w)", f.Name())
		}
		// Read only if it can be right: there is no end of what a file may pretend to hold.
		got := Content{Bytes: st.Size()}
		if got.Bytes == x.want.Bytes {
			if got, err = contentOf(f); err != nil {
				return err
			}
		}
		if got != x.want {
			return fmt.Errorf("it is damaged: %s does not hold what was saved", x.name)
		}
	}
	return nil
}

// Saved is what a machine is continued from, until Close. It does not need the image then.
func (i *Image) Saved() *vmm.Saved {
	s := i.Machine
	s.Pages, s.PagesFile = i.pages.Name(), i.pages
	s.Resumer, s.ResumerFile = i.resumer.Name(), i.resumer
	return &s
}

// Close gives the files back.
func (i *Image) Close() {
	for _, f := range []*os.File{i.pages, i.resumer} {
		if f != nil {
			f.Close()
		}
	}
}
