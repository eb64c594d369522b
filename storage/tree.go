package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Usage returns the bytes that a volume's content takes on the host's disk. Files with several names in it
// count once.
func (v *Volumes) Usage(name string) (int64, error) {
	if _, err := v.Get(name); err != nil {
		return 0, err
	}
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	var bytes int64
	err := filepath.WalkDir(v.path(name, dataDir), func(_ string, e fs.DirEntry, err error) error {
		var info fs.FileInfo
		if err == nil {
			info, err = e.Info()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a running container removed it meanwhile
		}
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		if st.Nlink > 1 && !e.IsDir() {
			id := inode{st.Dev, st.Ino}
			if seen[id] {
				return nil
			}
			seen[id] = true
		}
		bytes += st.Blocks * 512
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("measure volume %s: %w", name, err)
	}
	return bytes, nil
}

// removeTree is os.RemoveAll for a tree that may have directories its owner may not write to.
func removeTree(path string) error {
	err := os.RemoveAll(path)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
		if e != nil && e.IsDir() {
			os.Chmod(p, 0o700)
		}
		return nil // what cannot be changed is what the second attempt stumbles over
	})
	return os.RemoveAll(path)
}

// discard deletes a directory that has been taken out of a store, unless another process is at it.
func discard(path string) error {
	d, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		defer d.Close()
		if unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB) == unix.EWOULDBLOCK {
			return nil
		}
	}
	return removeTree(path)
}

// empty reports whether a directory has no entries.
func empty(path string) (bool, error) {
	d, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer d.Close()
	names, err := d.Readdirnames(1)
	if len(names) > 0 {
		return false, nil
	}
	return true, ignoreEOF(err)
}
