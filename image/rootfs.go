package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"manis/image/content"
	"manis/image/fault"
	"manis/image/lockfile"
	"manis/image/rootfs"
)

// Rootfs returns the root file system of an image and keeps it from being
// removed until release is called. The first call builds it; however many ask
// at once, in however many processes, one builds and the others wait. Images
// of the same layers share one. Release may be called more than once.
//
// File of the result is open for reading and carries the hold: a process that
// inherits or duplicates it, a VM's for one, keeps the hold for as long as it
// has it open, even past release.
func (s *Store) Rootfs(ctx context.Context, img *Image, progress Progress) (fs *rootfs.Image, release func(), err error) {
	key := rootfs.Key(img.Config.RootFS.DiffIDs)
	for {
		m, hold, err := s.openRootfs(key)
		if err == nil {
			m.File = hold.File
			return m, hold.Release, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return nil, nil, err
		}
		if err := s.buildRootfs(ctx, img, key, serial(progress)); err != nil {
			return nil, nil, fmt.Errorf("root file system of image %s: %w", img.ShortID(), fault.Disk(err))
		}
	}
}

// openRootfs takes a hold on a built root file system; os.ErrNotExist when
// there is none.
func (s *Store) openRootfs(key string) (*rootfs.Image, *lockfile.Lock, error) {
	m, err := s.readMeta(key)
	if err != nil {
		return nil, nil, err
	}
	l, err := lockfile.Try(m.Path, lockfile.Shared, false)
	if err != nil {
		return nil, nil, err
	}
	if l == nil { // it is being removed right now
		return nil, nil, os.ErrNotExist
	}
	if st, err := l.File.Stat(); err != nil || st.Size() != m.Size {
		l.Release()
		return nil, nil, fmt.Errorf("root file system %s has not its %d bytes (remove the image and pull it again): %w", m.Path, m.Size, ErrDigest)
	}
	return m, l, nil
}

// buildRootfs builds unless another has by the time the lock is ours.
func (s *Store) buildRootfs(ctx context.Context, img *Image, key string, progress Progress) error {
	l, err := lockfile.Acquire(ctx, s.path("rootfs", key+".lock"), lockfile.Exclusive, true)
	if err != nil {
		return err
	}
	defer l.Release()
	if _, err := s.readMeta(key); err == nil {
		return nil
	}
	var lease *lease
	digests := []v1.Hash{img.ManifestID, img.Manifest.Config.Digest}
	for _, d := range img.Manifest.Layers {
		digests = append(digests, d.Digest)
	}
	err = s.locked(ctx, func() (err error) {
		lease, err = s.lease(digests)
		return err
	})
	if err != nil {
		return err
	}
	defer lease.release()

	work, err := s.workspace()
	if err != nil {
		return err
	}
	defer work.close()
	dir := filepath.Join(work.dir, "rootfs")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	file, err := os.OpenFile(filepath.Join(dir, "image.erofs"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()

	layers := make([]rootfs.Layer, len(img.Manifest.Layers))
	for i, d := range img.Manifest.Layers {
		layers[i] = rootfs.Layer{
			Open:   func() (io.ReadCloser, error) { return s.blobs.Open(d.Digest) },
			Size:   d.Size,
			DiffID: img.Config.RootFS.DiffIDs[i],
		}
	}
	m, err := rootfs.Build(ctx, file, layers, rootfs.Options{
		Limits: s.Limits, TempDir: work.dir,
		Progress: func(done, total int64) {
			progress(Event{Phase: Converting, ID: img.ID, Current: done, Total: total})
		},
	})
	if err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return err
	}
	if err := file.Chmod(0o400); err != nil {
		return err
	}
	meta, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, "meta.json"), meta); err != nil {
		return err
	}
	// A directory of an older format, or one that a crash left half removed.
	if err := os.RemoveAll(s.path("rootfs", key)); err != nil {
		return err
	}
	if err := os.Rename(dir, s.path("rootfs", key)); err != nil {
		return err
	}
	progress(Event{Phase: Done, ID: img.ID})
	return content.SyncDir(s.path("rootfs"))
}
