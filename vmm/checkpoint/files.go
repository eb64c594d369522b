package checkpoint

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// File is a file or directory that the process has open and that is opened again, by its path,
// when the process is continued.
type File struct {
	// Path is absolute, in the process's root directory.
	Path      string
	Directory bool `json:",omitempty"`
	// Size is that of a file when it was saved, bytes.
	Size int64 `json:",omitempty"`
}

// FileError says why an open file cannot be opened again.
type FileError struct {
	// Path is as in File.
	Path, Reason string
}

func (e *FileError) Error() string { return fmt.Sprintf("%q is open and %s", e.Path, e.Reason) }

// keepFlags are the flags of open(2) with which a file is opened again. What it does once, like
// truncating, has been done.
const keepFlags = unix.O_ACCMODE | unix.O_APPEND | unix.O_NONBLOCK | unix.O_SYNC | unix.O_DIRECT | unix.O_NOATIME |
	unix.O_DIRECTORY | unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC

// below reports whether a path is dir or below it; no dir is above nothing.
func below(dir, path string) bool {
	return dir != "" && (path == dir || strings.HasPrefix(path, dir+"/"))
}

// file adds the steps that open one file again, at its offset, and returns the one that
// makes the descriptor. Only what is still found by its path can be.
func (p *plan) file(d descriptor) (*step, error) {
	f, err := identify(p.pid, d)
	if err != nil {
		return nil, err
	}
	offset, err := strconv.ParseInt(d.info["pos"], 10, 64)
	if err != nil || offset < 0 {
		return nil, fmt.Errorf("descriptor %d, %s, is at the offset %q", d.fd, d.target, d.info["pos"])
	}
	p.files = append(p.files, *f)
	// A link that came to the path since would lead elsewhere: struct open_how of openat2(2).
	how := make([]byte, unix.SizeofOpenHow)
	put := func(at int, v uint64) {
		for i := range 8 {
			how[at+i] = byte(v >> (8 * i))
		}
	}
	put(0, uint64(d.flags&keepFlags))
	put(16, unix.RESOLVE_NO_SYMLINKS)
	at := len(p.steps)
	p.call("open "+d.target, unix.SYS_OPENAT2, cwd, p.cstring(d.target), p.put(how, 8), unix.SizeofOpenHow)
	if offset > 0 && d.flags&unix.O_PATH == 0 {
		p.call("go to an offset in "+d.target, unix.SYS_LSEEK, uint64(d.fd), uint64(offset), unix.SEEK_SET)
	}
	return &p.steps[at], nil
}

// identify finds what a descriptor refers to by its path.
func identify(pid int, d descriptor) (*File, error) {
	fail := func(format string, args ...any) (*File, error) {
		return nil, &FileError{strings.TrimSuffix(d.target, " (deleted)"), fmt.Sprintf(format, args...)}
	}
	var open, there unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/fd/%d", pid, d.fd), &open); err != nil {
		return fail("cannot be looked at: %v", err)
	}
	f := &File{Path: d.target}
	switch open.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		f.Directory = true
	case unix.S_IFREG:
		f.Size = open.Size
	default:
		return fail("is neither a file nor a directory")
	}
	root, err := os.Open(fmt.Sprintf("/proc/%d/root", pid))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	fd, err := unix.Openat2(int(root.Fd()), filepath.Clean(d.target)[1:], &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS})
	if err == nil {
		err = unix.Fstat(fd, &there)
		unix.Close(fd)
	}
	switch {
	case err == unix.ENOENT, err == nil && (there.Dev != open.Dev || there.Ino != open.Ino):
		return fail("was removed or replaced since: it has no path by which it could be opened again")
	case err != nil:
		return fail("cannot be found by its path: %v", err)
	}
	return f, nil
}
