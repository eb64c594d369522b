package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// maxDepth bounds how deep a tree is followed.
const maxDepth = 1000

// treeCopy copies a directory tree with owners, modes, times, extended attributes and
// hard links.
type treeCopy struct {
	links map[[2]uint64]link
	buf   []byte
}

// link is where a file with several names was first put.
type link struct {
	dir  int
	name string
}

// populate copies what lies in the container at path from into the mount dst
// when that is empty.
func populate(from string, dst int) error {
	empty, err := isEmpty(dst)
	if err != nil || !empty {
		return err
	}
	src, err := unix.Open(from, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", from, err)
	}
	defer unix.Close(src)
	out, err := unix.Openat(dst, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the volume: %w", err)
	}
	defer unix.Close(out)
	c := &treeCopy{links: make(map[[2]uint64]link), buf: make([]byte, 64<<10)}
	defer c.close()
	if err := c.dir(src, out, 0); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return err
	}
	return c.attributes(src, out, &st)
}

// isEmpty says whether a directory holds nothing but what mkfs puts there.
func isEmpty(fd int) (bool, error) {
	dir, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == unix.ENOTDIR {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open the volume: %w", err)
	}
	defer unix.Close(dir)
	names, err := dirNames(dir)
	if err != nil {
		return false, fmt.Errorf("list the volume: %w", err)
	}
	for _, n := range names {
		if n != "lost+found" {
			return false, nil
		}
	}
	return true, nil
}

func dirNames(fd int) ([]string, error) {
	var names []string
	buf := make([]byte, 16384)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err != nil || n == 0 {
			return names, err
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

// readLink reads a symbolic link in a directory; without a name, the one that dir itself is, opened with O_PATH.
func readLink(dir int, name string) (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, b)
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}

func (c *treeCopy) close() {
	seen := make(map[int]bool)
	for _, l := range c.links {
		if !seen[l.dir] {
			seen[l.dir] = true
			unix.Close(l.dir)
		}
	}
}

func (c *treeCopy) dir(src, dst, depth int) error {
	if depth > maxDepth {
		return errors.New("directories are nested too deep")
	}
	names, err := dirNames(src)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := c.entry(src, dst, name, depth); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func (c *treeCopy) entry(src, dst int, name string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(src, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		key := [2]uint64{uint64(st.Dev), st.Ino}
		if l, ok := c.links[key]; ok {
			return unix.Linkat(l.dir, l.name, dst, name, 0)
		}
		defer func() {
			if dir, err := unix.FcntlInt(uintptr(dst), unix.F_DUPFD_CLOEXEC, 0); err == nil {
				c.links[key] = link{dir, name}
			}
		}()
	}
	switch kind {
	case unix.S_IFDIR:
		if err := unix.Mkdirat(dst, name, 0o700); err != nil && err != unix.EEXIST {
			return err
		}
		from, err := unix.Openat(src, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(from)
		to, err := unix.Openat(dst, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(to)
		if err := c.dir(from, to, depth+1); err != nil {
			return err
		}
		return c.attributes(from, to, &st)
	case unix.S_IFREG:
		from, err := unix.Openat(src, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		defer unix.Close(from)
		to, err := unix.Openat(dst, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		defer unix.Close(to)
		if err := copyData(from, to, st.Size, c.buf); err != nil {
			return err
		}
		return c.attributes(from, to, &st)
	case unix.S_IFLNK:
		target, err := readLink(src, name)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(target, dst, name); err != nil {
			return err
		}
	case unix.S_IFSOCK:
		return nil
	default:
		if err := unix.Mknodat(dst, name, st.Mode, int(st.Rdev)); err != nil {
			return err
		}
		if err := unix.Fchmodat(dst, name, st.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	if err := unix.Fchownat(dst, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	return unix.UtimesNanoAt(dst, name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

// copyData copies size bytes and leaves holes as holes.
func copyData(from, to int, size int64, buf []byte) error {
	var off int64
	for off < size {
		start, err := unix.Seek(from, off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break
		}
		if err != nil {
			start = off // a filesystem that knows no holes
		}
		end, err := unix.Seek(from, start, unix.SEEK_HOLE)
		if err != nil {
			end = size
		}
		for start < end {
			n, err := unix.Pread(from, buf[:min(int64(len(buf)), end-start)], start)
			if err != nil {
				return err
			}
			if n == 0 {
				return unix.Ftruncate(to, size)
			}
			for done := 0; done < n; {
				m, err := unix.Pwrite(to, buf[done:n], start+int64(done))
				if err != nil {
					return err
				}
				if m == 0 {
					return io.ErrShortWrite
				}
				done += m
			}
			start += int64(n)
		}
		off = end
	}
	return unix.Ftruncate(to, size)
}

// attributes gives a file or directory the source's extended attributes, owner, mode
// and times, in this order: a change of the owner drops file capabilities and
// setuid bits.
func (c *treeCopy) attributes(from, to int, st *unix.Stat_t) error {
	if err := unix.Fchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := copyXattrs(from, to); err != nil {
		return err
	}
	if err := unix.Fchmod(to, st.Mode&0o7777); err != nil {
		return err
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	return unix.UtimesNanoAt(to, "", times, unix.AT_EMPTY_PATH)
}

// copyXattrs copies what the target's filesystem can hold.
func copyXattrs(from, to int) error {
	list := make([]byte, 64<<10)
	n, err := unix.Flistxattr(from, list)
	if err == unix.ENOTSUP || n == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	value := make([]byte, 64<<10)
	for name := range bytes.SplitSeq(bytes.TrimSuffix(list[:n], []byte{0}), []byte{0}) {
		m, err := unix.Fgetxattr(from, string(name), value)
		if err != nil {
			continue
		}
		if err := unix.Fsetxattr(to, string(name), value[:m], 0); err != nil && err != unix.ENOTSUP && err != unix.EPERM {
			return fmt.Errorf("extended attribute %s: %w", name, err)
		}
	}
	return nil
}
