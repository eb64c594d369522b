// Package image is the local image store: it pulls, loads, names, lists,
// saves and removes OCI and docker images, and turns an image into the root
// file system that a VM mounts. A store is a directory; many processes may use
// it at once, and any of them may be killed at any moment. The package must
// not know of containers (but for the names of those that use an image), VMs or
// the command line.
package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"manis/image/content"
	"manis/image/fault"
	"manis/image/lockfile"
	"manis/image/rootfs"
)

// The kinds of failure; see package fault for what each means.
var (
	ErrNotFound     = fault.ErrNotFound
	ErrAmbiguous    = fault.ErrAmbiguous
	ErrInvalid      = fault.ErrInvalid
	ErrUnauthorized = fault.ErrUnauthorized
	ErrPlatform     = fault.ErrPlatform
	ErrInUse        = fault.ErrInUse
	ErrDigest       = fault.ErrDigest
	ErrTruncated    = fault.ErrTruncated
	ErrUnsupported  = fault.ErrUnsupported
	ErrLimit        = fault.ErrLimit
	ErrNoSpace      = fault.ErrNoSpace
	ErrUnavailable  = fault.ErrUnavailable
)

// A Store is a directory:
//
//	lock            held while the catalog changes
//	catalog.json    the images, their names and users; replaced as a whole
//	blobs/sha256/   manifests, configs and layers as they came
//	partial/        interrupted downloads, continued by the next pull
//	rootfs/KEY/     image.erofs and meta.json of a converted image
//	rootfs/KEY.lock held while converting or removing
//	lease/          what running operations need; locked by them
//	tmp/            work in progress; locked by who works there
//
// It is safe for concurrent use by goroutines and processes.
type Store struct {
	// Limits protect this host from what images expand to. Set them before use.
	Limits rootfs.Limits

	root  string
	blobs *content.Store
}

// layoutVersion changes when an older Manis could not use the directory.
const layoutVersion = 1

// Open opens the store at root, and makes it if it is not there. What killed
// processes left in its tmp is swept away.
func Open(root string) (*Store, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	s := &Store{root: root}
	for _, d := range []string{"", "rootfs", "lease", "tmp"} {
		if err := os.MkdirAll(s.path(d), 0o700); err != nil {
			return nil, fmt.Errorf("open the image store: %w", fault.Disk(err))
		}
	}
	if s.blobs, err = content.Open(root); err != nil {
		return nil, fmt.Errorf("open the image store: %w", fault.Disk(err))
	}
	c, err := s.catalog()
	if err != nil {
		return nil, fmt.Errorf("open the image store: %w", err)
	}
	if c.Version > layoutVersion {
		return nil, fmt.Errorf("open the image store %s: written by a newer Manis (layout %d, this one knows %d): %w", root, c.Version, layoutVersion, ErrUnsupported)
	}
	s.sweepTemp()
	return s, nil
}

// Root is the store's directory.
func (s *Store) Root() string { return s.root }

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.root}, elem...)...)
}

// workspace is a temporary directory that is swept away when its owner dies.
type workspace struct {
	dir  string
	lock *lockfile.Lock
}

func (s *Store) workspace() (*workspace, error) {
	for {
		dir, err := os.MkdirTemp(s.path("tmp"), "work-")
		if err != nil {
			return nil, fault.Disk(err)
		}
		l, err := lockfile.Try(dir, lockfile.Exclusive, false)
		if errors.Is(err, fs.ErrNotExist) || (err == nil && l == nil) {
			continue // another process swept it before it was locked
		}
		if err != nil {
			return nil, err
		}
		return &workspace{dir: dir, lock: l}, nil
	}
}

func (w *workspace) close() {
	os.RemoveAll(w.dir)
	w.lock.Release()
}

// sweepTemp removes workspaces whose owner is gone.
func (s *Store) sweepTemp() (freed int64) {
	entries, err := os.ReadDir(s.path("tmp"))
	if err != nil {
		return 0
	}
	for _, e := range entries {
		path := s.path("tmp", e.Name())
		l, err := lockfile.Try(path, lockfile.Exclusive, false)
		if l == nil || err != nil {
			continue
		}
		freed += diskUsage(path)
		os.RemoveAll(path)
		l.Release()
	}
	return freed
}

// locked runs fn while no other process changes the catalog.
func (s *Store) locked(ctx context.Context, fn func() error) error {
	l, err := lockfile.Acquire(ctx, s.path("lock"), lockfile.Exclusive, true)
	if err != nil {
		return fmt.Errorf("lock the image store: %w", fault.Disk(err))
	}
	defer l.Release()
	return fn()
}

// writeFile replaces a file as a whole, so that a crash leaves the old or the
// new content. The caller holds a lock that keeps others from the same path.
func writeFile(path string, data []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fault.Disk(err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	f.Close()
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fault.Disk(err)
	}
	return content.SyncDir(filepath.Dir(path))
}
