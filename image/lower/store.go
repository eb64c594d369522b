package lower

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"manis/image/lockfile"
	"manis/image/rootfs"
)

const (
	imageSuffix = ".erofs"
	noteSuffix  = ".json"
	workPrefix  = ".building-"

	// keep is how many images are kept at most; those that were used last stay.
	keep = 256
	// spare is the part of the disk, 1/spare, that must stay free.
	spare = 10
	// again is when a stack that could not be made an image is tried again.
	again = time.Hour
	// maxNote bounds what is read of a note, bytes.
	maxNote = 4 << 20
)

// note is what is known of an image.
type note struct {
	Dirs []string `json:"dirs"`
	// Error is why there is no image.
	Error string `json:"error,omitempty"`
}

// Store is a directory of images.
type Store struct{ dir string }

// NewStore returns the store in dir, which is made when it is needed.
func NewStore(dir string) *Store { return &Store{dir: dir} }

func (s *Store) path(key, suffix string) string { return filepath.Join(s.dir, key+suffix) }

// Find returns the path of a stack's image. The file is not changed any more, but it may be removed at any time: who
// has it open, or mounted, keeps it.
func (s *Store) Find(st *Stack) (path string, ok bool) {
	path = s.path(st.key, imageSuffix)
	now := time.Now()
	return path, os.Chtimes(path, now, now) == nil
}

// Wants reports whether an image is to be made of the stack: there is none, and making it has not failed lately.
func (s *Store) Wants(st *Stack) bool {
	if _, err := os.Stat(s.path(st.key, imageSuffix)); err == nil {
		return false
	}
	fi, err := os.Stat(s.path(st.key, noteSuffix))
	return err != nil || time.Since(fi.ModTime()) > again
}

// Build makes an image of the stack, if there is none. Who finds another at work leaves it to that one. What has
// become useless is removed first.
func (s *Store) Build(ctx context.Context, st *Stack) (err error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("make an image of layers: %w", err)
	}
	lock, err := lockfile.Try(filepath.Join(s.dir, "lock"), lockfile.Exclusive, true)
	if lock == nil || err != nil {
		return err
	}
	defer lock.Release()
	if err := s.tidy(); err != nil {
		return fmt.Errorf("tidy up images of layers: %w", err)
	}
	if !s.Wants(st) {
		return nil
	}
	defer func() {
		if err == nil || ctx.Err() != nil {
			return
		}
		err = fmt.Errorf("make an image of layers: %w", err)
		s.write(st, note{Dirs: st.dirs, Error: err.Error()})
	}()
	f, err := os.CreateTemp(s.dir, workPrefix)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	free, err := s.reserve()
	if err != nil {
		return err
	}
	if _, err := rootfs.BuildDirectories(ctx, f, st.dirs, rootfs.Options{TempDir: s.dir, Limits: rootfs.Limits{FreeReserve: free}}); err != nil {
		return err
	}
	// They may have been taken away and made again while they were read.
	if now, err := Identify(st.dirs); err != nil || now.key != st.key {
		return errors.Join(errors.New("the directories changed while they were read"), err)
	}
	if err := errors.Join(f.Chmod(0o400), f.Sync()); err != nil {
		return err
	}
	if err := s.write(st, note{Dirs: st.dirs}); err != nil {
		return err
	}
	return os.Rename(f.Name(), s.path(st.key, imageSuffix))
}

// reserve is how many bytes must stay free on the disk.
func (s *Store) reserve() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", s.dir, err)
	}
	return int64(st.Blocks) * st.Bsize / spare, nil
}

func (s *Store) write(st *Stack, n note) error {
	b, err := json.Marshal(n)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(s.dir, workPrefix)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), s.path(st.key, noteSuffix))
}

// tidy removes what killed builders have left, images of stacks that are not there any more, and the oldest of too many
// or when the disk is full. The lock is held.
func (s *Store) tidy() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	type image struct {
		key  string
		used time.Time
	}
	var images []image
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, workPrefix) {
			os.Remove(filepath.Join(s.dir, name))
			continue
		}
		key, isNote := strings.CutSuffix(name, noteSuffix)
		if !isNote {
			if key, ok := strings.CutSuffix(name, imageSuffix); ok {
				if _, err := os.Lstat(s.path(key, noteSuffix)); errors.Is(err, fs.ErrNotExist) {
					os.Remove(filepath.Join(s.dir, name))
				}
			}
			continue
		}
		if !s.valid(key) {
			s.remove(key)
			continue
		}
		used := time.Time{}
		if fi, err := os.Stat(s.path(key, imageSuffix)); err == nil {
			used = fi.ModTime()
		} else if fi, err := e.Info(); err == nil {
			used = fi.ModTime()
		}
		images = append(images, image{key, used})
	}
	slices.SortFunc(images, func(a, b image) int { return a.used.Compare(b.used) })
	reserve, err := s.reserve()
	if err != nil {
		return err
	}
	for _, i := range images {
		var st unix.Statfs_t
		if err := unix.Statfs(s.dir, &st); err != nil {
			return err
		}
		if len(images) < keep && int64(st.Bavail)*st.Bsize > reserve {
			break
		}
		s.remove(i.key)
		images = images[1:]
	}
	return nil
}

// valid reports whether the stack of a note is still what it was.
func (s *Store) valid(key string) bool {
	path := s.path(key, noteSuffix)
	if fi, err := os.Stat(path); err != nil || fi.Size() > maxNote {
		return false
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	var n note
	if json.Unmarshal(b, &n) != nil {
		return false
	}
	st, err := Identify(n.Dirs)
	return err == nil && st.key == key
}

func (s *Store) remove(key string) {
	os.Remove(s.path(key, imageSuffix))
	os.Remove(s.path(key, noteSuffix))
}
