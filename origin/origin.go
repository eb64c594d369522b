// Package origin is a file or directory of the host that is opened once, before somebody decides whether it may be used. What is used
// later is compared with it: paths may lead elsewhere by then, where others can rename and link.
// It decides nothing and mounts nothing.
package origin

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// ErrChanged: something else is at the path now than what was opened.
var ErrChanged = errors.New("its path does not lead to what was decided on any more (start it again when nobody replaces it)")

// Open opens what a path leads to, without the right to read or to write it; symbolic links are followed, and what is mounted
// on demand is. The file keeps what it is of from being unmounted, and its inode from being another file's, until it is closed.
func Open(path string) (*os.File, error) {
	// As open(2) with O_PATH, but for mounts on demand.
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Origin says which file was opened, also to other processes: for as long as somebody has it open.
type Origin struct {
	// Path is where it was, absolute, without symbolic links.
	Path string
	// Device and Inode are those of stat(2).
	Device, Inode uint64
}

// Of says which file is open. One that has no path any more is an error.
func Of(f *os.File) (Origin, error) {
	fail := func(err error) (Origin, error) {
		return Origin{}, fmt.Errorf("find the path of %s, which is open: %w", f.Name(), err)
	}
	device, inode, err := identify(int(f.Fd()))
	if err != nil {
		return fail(err)
	}
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
	switch {
	case err != nil:
		return fail(err)
	case !filepath.IsAbs(path):
		return fail(errors.New("it is beyond the root directory"))
	}
	// The kernel marks what was removed with a word that a name could end with, too.
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Dev != device || st.Ino != inode {
		return fail(fmt.Errorf("%w: it was removed or renamed", ErrChanged))
	}
	return Origin{path, device, inode}, nil
}

// Open opens the file again, with flags of open(2). What is not the same file by the same path, in which no part is a symbolic link, is
// ErrChanged.
func (o Origin) Open(flags int) (*os.File, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, o.Path, &unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		err = &os.PathError{Op: "open", Path: o.Path, Err: err}
		if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			err = fmt.Errorf("%w: %w", ErrChanged, err)
		}
		return nil, err
	}
	f := os.NewFile(uintptr(fd), o.Path)
	if err := o.Check(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Check returns ErrChanged for any file but this.
func (o Origin) Check(f *os.File) error {
	device, inode, err := identify(int(f.Fd()))
	if err == nil && (device != o.Device || inode != o.Inode) {
		err = ErrChanged
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", o.Path, err)
	}
	return nil
}

func identify(fd int) (device, inode uint64, err error) {
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	return st.Dev, st.Ino, err
}
