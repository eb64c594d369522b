// Package lockfile serialises processes and goroutines over files with
// flock(2). The kernel drops a lock when its holder dies, so nothing is ever
// left locked. It must not know what the locks protect.
package lockfile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Mode of a lock.
type Mode int

// Shared locks exclude Exclusive ones only.
const (
	Shared    Mode = unix.LOCK_SH
	Exclusive Mode = unix.LOCK_EX
)

// Lock is a held lock. It belongs to the open file: a descriptor duplicated
// or inherited from it keeps it held.
type Lock struct {
	File *os.File
}

// Try takes a lock on path, a file or directory, without waiting, and returns
// nil when another holds it. A missing file is created unless create is false;
// then the error says os.ErrNotExist.
func Try(path string, mode Mode, create bool) (*Lock, error) {
	for {
		f, err := open(path, create)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), int(mode)|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, nil
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if same(f, path) {
			return &Lock{File: f}, nil
		}
		f.Close() // it was removed or replaced before the lock was ours
	}
}

// Acquire waits for a lock on path. flock has no event to wait for together
// with a context, so it asks again at growing intervals.
func Acquire(ctx context.Context, path string, mode Mode, create bool) (*Lock, error) {
	wait := time.Millisecond
	for {
		l, err := Try(path, mode, create)
		if l != nil || err != nil {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the lock %s: %w", path, ctx.Err())
		case <-time.After(wait):
		}
		wait = min(wait*2, 50*time.Millisecond)
	}
}

// Release gives the lock up. It may be called more than once.
func (l *Lock) Release() {
	if l != nil && l.File != nil {
		l.File.Close()
		l.File = nil
	}
}

func open(path string, create bool) (*os.File, error) {
	if create {
		return os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	}
	return os.Open(path)
}

func same(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}
