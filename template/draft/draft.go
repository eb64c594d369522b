// Package draft makes directories that are there as a whole or not at all: each is filled aside, and
// put in place by renaming it. While a process is at it the directory is locked, so what one that was
// killed has left is told from what is being made. The package does not know what is in them.
package draft

import (
	"os"
	"path/filepath"
	"strings"
	"time"

	"manis/image/lockfile"
)

// Prefixes of the names of what is not in place: yet, or any more.
const (
	newPrefix  = ".new-"
	gonePrefix = ".gone-"
)

// restTime is more than it takes to lock a directory that was just made.
const restTime = 5 * time.Second

// Draft is a directory that is being filled.
type Draft struct {
	// Dir is its path. Whoever has filled it renames it.
	Dir  string
	lock *lockfile.Lock
}

// New makes a directory in dir.
func New(dir string) (*Draft, error) {
	path, err := os.MkdirTemp(dir, newPrefix)
	if err != nil {
		return nil, err
	}
	lock, err := lockfile.Try(path, lockfile.Exclusive, false)
	if err != nil {
		os.RemoveAll(path)
		return nil, err
	}
	return &Draft{path, lock}, nil
}

// Close removes the directory, unless it was renamed.
func (d *Draft) Close() {
	os.RemoveAll(d.Dir)
	d.lock.Release()
}

// Gone is where something of this name in dir is moved to be removed.
func Gone(dir, name string) string { return filepath.Join(dir, gonePrefix+name) }

// Sweep removes from dir what processes that were killed have left: what is old enough to be locked, and
// is not.
func Sweep(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), newPrefix) && !strings.HasPrefix(e.Name(), gonePrefix) {
			continue
		}
		st, err := e.Info()
		if err != nil || time.Since(st.ModTime()) < restTime {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if lock, err := lockfile.Try(path, lockfile.Exclusive, false); err == nil && lock != nil {
			os.RemoveAll(path)
			lock.Release()
		}
	}
}
