package storage

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockRetry is how often a lock that another process holds is tried again: the kernel has no way to wait for
// one that a context can end.
const lockRetry = 5 * time.Millisecond

// lockFile takes the exclusive lock of a file, which it makes if need be, and waits for it until ctx ends.
// The kernel frees the lock when the holder dies; the caller frees it by closing the file.
func lockFile(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch err {
		case nil:
			return f, nil
		case unix.EINTR:
			continue
		case unix.EWOULDBLOCK:
		default:
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-time.After(lockRetry):
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("lock %s, held by another process: %w", path, ctx.Err())
		}
	}
}

// syncDir makes the entries of a directory durable.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
