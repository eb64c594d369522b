// Package content keeps blobs by their SHA-256 digest in a directory. A blob
// appears whole and verified or not at all; an interrupted download stays as a
// partial that a later one continues. Several processes may use one directory.
// It must not know what the blobs mean.
package content

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"manis/image/fault"
	"manis/image/lockfile"
)

// Store is a directory of blobs and one of partials.
type Store struct {
	blobs    string
	partials string
}

// Open makes the directories as needed.
func Open(root string) (*Store, error) {
	s := &Store{blobs: filepath.Join(root, "blobs", "sha256"), partials: filepath.Join(root, "partial")}
	for _, d := range []string{s.blobs, s.partials} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("make the blob store: %w", err)
		}
	}
	return s, nil
}

// CheckDigest refuses digests other than well-formed SHA-256 ones. Everything
// that becomes part of a path goes through it.
func CheckDigest(d v1.Hash) error {
	if d.Algorithm != "sha256" {
		return fmt.Errorf("digest %q: only sha256 is read: %w", d.String(), fault.ErrUnsupported)
	}
	if b, err := hex.DecodeString(d.Hex); err != nil || len(b) != sha256.Size || hex.EncodeToString(b) != d.Hex {
		return fmt.Errorf("digest %q: %w", d.String(), fault.ErrInvalid)
	}
	return nil
}

// Path of a blob, there or not.
func (s *Store) Path(d v1.Hash) string { return filepath.Join(s.blobs, d.Hex) }

// Has reports whether the blob is there.
func (s *Store) Has(d v1.Hash) bool {
	if CheckDigest(d) != nil {
		return false
	}
	_, err := os.Stat(s.Path(d))
	return err == nil
}

// Open a blob for reading.
func (s *Store) Open(d v1.Hash) (*os.File, error) {
	if err := CheckDigest(d); err != nil {
		return nil, err
	}
	f, err := os.Open(s.Path(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("blob %s of the local store: %w", d, fault.ErrNotFound)
	}
	return f, err
}

// ReadAll returns a small blob, which is verified again.
func (s *Store) ReadAll(d v1.Hash, limit int64) ([]byte, error) {
	f, err := s.Open(d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", d, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("blob %s is larger than %d bytes: %w", d, limit, fault.ErrLimit)
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != d.Hex {
		return nil, fmt.Errorf("blob %s of the local store is damaged (remove the image and pull it again): %w", d, fault.ErrDigest)
	}
	return b, nil
}

// Put stores a small blob and returns its digest.
func (s *Store) Put(ctx context.Context, b []byte) (v1.Hash, error) {
	sum := sha256.Sum256(b)
	d := v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
	w, err := s.Writer(ctx, d, int64(len(b)))
	if err != nil || w == nil {
		return d, err
	}
	defer w.Close()
	if err := w.Restart(); err != nil {
		return d, err
	}
	if _, err := w.Write(b); err != nil {
		return d, err
	}
	return d, w.Commit()
}

// Adopt moves in a file whose content is known to have the digest. It must lie
// on the store's file system.
func (s *Store) Adopt(d v1.Hash, path string) error {
	if err := CheckDigest(d); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	err = f.Sync()
	f.Close()
	if err == nil {
		err = os.Rename(path, s.Path(d))
	}
	if err != nil {
		return fault.Disk(fmt.Errorf("store %s: %w", d, err))
	}
	return SyncDir(s.blobs)
}

// Remove deletes a blob and returns the bytes of disk that it freed.
func (s *Store) Remove(d v1.Hash) (int64, error) {
	return removeFile(s.Path(d))
}

// All calls fn with every blob's digest.
func (s *Store) All(fn func(v1.Hash) error) error {
	entries, err := os.ReadDir(s.blobs)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := fn(v1.Hash{Algorithm: "sha256", Hex: e.Name()}); err != nil {
			return err
		}
	}
	return nil
}

// SweepPartials deletes partials that nobody is writing and returns the bytes
// of disk that this freed.
func (s *Store) SweepPartials() (int64, error) {
	entries, err := os.ReadDir(s.partials)
	if err != nil {
		return 0, err
	}
	var freed int64
	for _, e := range entries {
		path := filepath.Join(s.partials, e.Name())
		l, err := lockfile.Try(path, lockfile.Exclusive, false)
		if l == nil || err != nil {
			continue
		}
		n, err := removeFile(path)
		l.Release()
		if err != nil {
			return freed, err
		}
		freed += n
	}
	return freed, nil
}

func removeFile(path string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return 0, nil
		}
		return 0, fmt.Errorf("remove %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	return st.Blocks * 512, nil
}

// Writer receives one blob. It holds the partial's lock until closed.
type Writer struct {
	s      *Store
	digest v1.Hash
	size   int64 // -1: not known
	lock   *lockfile.Lock
	file   *os.File
	at     int64
	sum    hash.Hash
}

// Writer starts or continues a blob of size bytes (-1: unknown). It waits
// while another is writing the same blob, and returns nil when the blob is, or
// has become, there.
func (s *Store) Writer(ctx context.Context, d v1.Hash, size int64) (*Writer, error) {
	if err := CheckDigest(d); err != nil {
		return nil, err
	}
	if s.Has(d) {
		return nil, nil
	}
	path := filepath.Join(s.partials, d.Hex)
	l, err := lockfile.Acquire(ctx, path, lockfile.Exclusive, true)
	if err != nil {
		return nil, fault.Disk(err)
	}
	if s.Has(d) {
		// It was completed while we waited; what we locked is a new, empty file.
		os.Remove(path)
		l.Release()
		return nil, nil
	}
	w := &Writer{s: s, digest: d, size: size, lock: l, file: l.File, sum: sha256.New()}
	if err := w.resume(); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// resume digests what an earlier attempt left.
func (w *Writer) resume() error {
	n, err := io.Copy(w.sum, w.file)
	if err != nil {
		return fmt.Errorf("read the partial download of %s: %w", w.digest, err)
	}
	w.at = n
	if w.size >= 0 && n > w.size {
		return w.Restart()
	}
	return nil
}

// Offset is how many bytes are there already.
func (w *Writer) Offset() int64 { return w.at }

// Restart throws away what is there.
func (w *Writer) Restart() error {
	w.at = 0
	w.sum.Reset()
	if err := w.file.Truncate(0); err != nil {
		return fault.Disk(fmt.Errorf("restart the partial download of %s: %w", w.digest, err))
	}
	_, err := w.file.Seek(0, io.SeekStart)
	return err
}

// Write appends. Nothing past the announced size is taken.
func (w *Writer) Write(p []byte) (int, error) {
	if w.size >= 0 && int64(len(p)) > w.size-w.at {
		return 0, fmt.Errorf("content of %s is longer than its %d bytes: %w", w.digest, w.size, fault.ErrDigest)
	}
	n, err := w.file.Write(p)
	w.sum.Write(p[:n])
	w.at += int64(n)
	if err != nil {
		return n, fault.Disk(fmt.Errorf("store %s: %w", w.digest, err))
	}
	return n, nil
}

// Commit verifies digest and size and makes the blob appear. After a mismatch
// the Writer stands at the start again.
func (w *Writer) Commit() error {
	if w.size >= 0 && w.at < w.size {
		return fmt.Errorf("content of %s ends after %d of %d bytes: %w", w.digest, w.at, w.size, fault.ErrTruncated)
	}
	if got := hex.EncodeToString(w.sum.Sum(nil)); got != w.digest.Hex {
		if err := w.Restart(); err != nil {
			return err
		}
		return fmt.Errorf("content of %s has digest sha256:%s: %w", w.digest, got, fault.ErrDigest)
	}
	if err := w.file.Sync(); err != nil {
		return fault.Disk(fmt.Errorf("store %s: %w", w.digest, err))
	}
	if err := os.Rename(w.file.Name(), w.s.Path(w.digest)); err != nil {
		return fault.Disk(fmt.Errorf("store %s: %w", w.digest, err))
	}
	return SyncDir(w.s.blobs)
}

// Discard removes the partial.
func (w *Writer) Discard() { os.Remove(w.file.Name()) }

// Close ends the work on the blob. A partial that holds something stays, for
// the next Writer.
func (w *Writer) Close() {
	if w.at == 0 && !w.s.Has(w.digest) {
		w.Discard()
	}
	w.lock.Release()
}

// SyncDir makes the names in a directory last through a power failure.
func SyncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return fault.Disk(fmt.Errorf("sync %s: %w", dir, err))
	}
	return nil
}
