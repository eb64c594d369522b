package storage

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// CloneFile copies a sparse file, like a disk of which there are to be two.
func CloneFile(ctx context.Context, src *os.File, dst string) error { return cloneFile(ctx, src, dst) }

// cloneFile copies a sparse file to a new name: by sharing its blocks where the file system can, and else by
// copying what is not a hole. The new name appears when the copy is complete.
func cloneFile(ctx context.Context, src *os.File, dst string) error {
	partial := dst + ".partial"
	if err := os.Remove(partial); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(partial, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(partial)
	defer f.Close()
	if unix.IoctlFileClone(int(f.Fd()), int(src.Fd())) != nil {
		if err := copySparse(ctx, f, src); err != nil {
			return err
		}
	}
	return os.Link(partial, dst) // unlike a rename, never replaces
}

// copySparse copies the data of src to the empty file dst and leaves holes where src has them.
func copySparse(ctx context.Context, dst, src *os.File) error {
	info, err := src.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	if err := dst.Truncate(size); err != nil {
		return err
	}
	for at := int64(0); at < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		start, err := unix.Seek(int(src.Fd()), at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return nil // nothing but a hole is left
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(src.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		data := io.NewSectionReader(src, start, end-start)
		if _, err := io.Copy(io.NewOffsetWriter(dst, start), data); err != nil {
			return err
		}
		at = end
	}
	return nil
}
