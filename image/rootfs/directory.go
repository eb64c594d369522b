package rootfs

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"manis/image/erofs"
	"manis/image/fault"
)

// BuildDirectories merges directories, lowest first, into file as overlayfs would show them when they are its lower
// layers: character devices 0:0 and opaque directories hide what is below. Nothing may change in them meanwhile. The
// file must be empty and open for reading and writing; after an error its content is undefined. There is no hash
// tree, and what overlayfs notes of renamed directories and of files without their data is refused as
// fault.ErrUnsupported. See the kernel's Documentation/filesystems/overlayfs.rst.
func BuildDirectories(ctx context.Context, file *os.File, dirs []string, opts Options) (erofs.Summary, error) {
	limits := opts.Limits.WithDefaults()
	if len(dirs) > min(limits.Layers, 65534) {
		return erofs.Summary{}, over(fmt.Sprintf("stack of %d directories", len(dirs)), int64(min(limits.Layers, 65534)))
	}
	// Without a UUID. With one, overlayfs would take several names of a changed file for one inode, which they are not
	// on every file system that its writable layer may lie on, 9p for one (ovl_lower_uuid_ok() in the kernel).
	b, err := erofs.NewBuilder(file, erofs.Options{TempDir: opts.TempDir})
	if err != nil {
		return erofs.Summary{}, err
	}
	defer b.Close()
	t := newTree(b, limits)
	m := merge{tree: t, file: file, limits: limits}
	for i, dir := range dirs {
		t.tag = uint16(i + 1)
		d := directory{
			tree: t, ctx: ctx, xattrBytes: limits.XattrBytes, links: make(map[identity]erofs.Ino), buf: make([]byte, 1<<20),
			room: m.room(0),
		}
		if err := d.run(dir); err != nil {
			return erofs.Summary{}, fmt.Errorf("layer %d of %d (%s): %w", i+1, len(dirs), dir, err)
		}
	}
	sum, err := b.Finish(ctx)
	if err != nil {
		return sum, fmt.Errorf("write the file system: %w", err)
	}
	return sum, nil
}

// identity of an inode of the host.
type identity struct{ dev, ino uint64 }

// directory puts one layer that is a directory on top of the tree.
type directory struct {
	*tree
	ctx        context.Context
	xattrBytes int
	// room is asked as file data is stored whether there may be more.
	room  func() error
	links map[identity]erofs.Ino // of files with several names
	buf   []byte
}

func (d *directory) run(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	xattrs, _, err := d.xattrs(descriptor(f) + "/.")
	if err != nil {
		return err
	}
	if err := d.SetAttr(erofs.Root, attributes(&st), xattrs); err != nil {
		return err
	}
	return d.entries(f, erofs.Root)
}

// entries puts what a directory of the host holds into one of the tree, and closes it.
func (d *directory) entries(from *os.File, to erofs.Ino) error {
	names, err := from.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("read directory: %w", err)
	}
	slices.Sort(names) // the same directories give the same bytes
	for _, name := range names {
		if err := d.entry(from, to, name); err != nil {
			return fmt.Errorf("%s: %w", quote(name), err)
		}
	}
	return nil
}

func (d *directory) entry(from *os.File, to erofs.Ino, name string) error {
	if err := d.ctx.Err(); err != nil {
		return err
	}
	if err := d.countEntry(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(int(from.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFCHR && st.Rdev == 0 {
		return d.whiteout(to, name)
	}
	id := identity{st.Dev, st.Ino}
	if ino, ok := d.links[id]; ok && kind != unix.S_IFDIR {
		return d.put(to, name, ino)
	}
	xattrs, opaque, err := d.xattrs(descriptor(from) + "/" + name)
	if err != nil {
		return err
	}
	attr := attributes(&st)
	var ino erofs.Ino
	switch kind {
	case unix.S_IFDIR:
		return d.dir(from, to, name, attr, xattrs, opaque)
	case unix.S_IFLNK:
		var n int
		if n, err = unix.Readlinkat(int(from.Fd()), name, d.buf[:maxPath]); err != nil {
			return fmt.Errorf("read link: %w", err)
		}
		ino, err = d.Symlink(attr, xattrs, d.buf[:n])
	case unix.S_IFREG:
		ino, err = d.file(from, name, attr, xattrs)
	case unix.S_IFCHR, unix.S_IFBLK:
		if attr.Rdev, err = erofs.Device(int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))); err != nil {
			return err
		}
		ino, err = d.Node(attr, xattrs)
	default:
		ino, err = d.Node(attr, xattrs)
	}
	if err != nil {
		return err
	}
	if st.Nlink > 1 {
		d.links[id] = ino
	}
	return d.put(to, name, ino)
}

func (d *directory) dir(from *os.File, to erofs.Ino, name string, attr erofs.Attr, xattrs []erofs.Xattr, opaque bool) error {
	if d.Depth(to) >= erofs.MaxDepth-1 {
		return fmt.Errorf("directories nest deeper than %d: %w", erofs.MaxDepth, fault.ErrLimit)
	}
	fd, err := unix.Openat(int(from.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if err := d.mkdir(to, name, attr, xattrs); err != nil {
		return err
	}
	e, ok := d.Lookup(to, []byte(name))
	if !ok || !e.IsDir() {
		return fmt.Errorf("directory is not in the image: %w", fault.ErrInvalid)
	}
	if opaque {
		if err := d.tree.opaque(e.Ino); err != nil {
			return err
		}
	}
	return d.entries(f, e.Ino)
}

// file stores a regular file; what its own file system knows to be a hole stays one.
func (d *directory) file(from *os.File, name string, attr erofs.Attr, xattrs []erofs.Xattr) (erofs.Ino, error) {
	fd, err := unix.Openat(int(from.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, fmt.Errorf("open: %w", err)
	}
	in := os.NewFile(uintptr(fd), name)
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return 0, err
	}
	size := st.Size()
	out, err := d.Create(attr, xattrs, size)
	if err != nil {
		return 0, err
	}
	for at := int64(0); at < size; {
		// A file system that knows of no holes says that data begins here and ends with the file.
		data, end := size, size
		if n, err := unix.Seek(fd, at, unix.SEEK_DATA); err == nil {
			data = n
			if end, err = unix.Seek(fd, data, unix.SEEK_HOLE); err != nil {
				end = size
			}
		} else if err != unix.ENXIO {
			data = at
		}
		data, end = min(data, size), min(end, size)
		if err := out.Zero(data - at); err != nil {
			out.Abandon()
			return 0, err
		}
		section := io.NewSectionReader(in, data, end-data)
		n, err := io.CopyBuffer(struct{ io.Writer }{&checked{File: out, room: d.room}}, struct{ io.Reader }{section}, d.buf)
		if err == nil && n < end-data {
			err = fmt.Errorf("became shorter while it was read: %w", fault.ErrInvalid)
		}
		if err != nil {
			out.Abandon()
			return 0, err
		}
		at = end
	}
	return out.Close()
}

// xattrs reads the extended attributes of the file at path, without following it, and whether overlayfs has marked it as opaque.
func (d *directory) xattrs(path string) (keep []erofs.Xattr, opaque bool, err error) {
	n, err := unix.Llistxattr(path, d.buf)
	if err == unix.ENOTSUP {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("list extended attributes: %w", err)
	}
	total := 0
	for name := range strings.SplitSeq(strings.TrimSuffix(string(d.buf[:n]), "\x00"), "\x00") {
		if name == "" || !erofs.XattrExpressible(name) {
			continue
		}
		value := make([]byte, 64<<10) // the kernel's limit, XATTR_SIZE_MAX
		k, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, false, fmt.Errorf("read extended attribute %s: %w", quote(name), err)
		}
		if mark, ok := overlayMark(name); ok {
			switch mark {
			case "opaque":
				opaque = string(value[:k]) == "y"
			case "redirect", "metacopy":
				return nil, false, fmt.Errorf("overlayfs attribute %s: %w", quote(name), fault.ErrUnsupported)
			}
			continue
		}
		if total += len(name) + k; total > d.xattrBytes {
			return nil, false, over("extended attributes of more bytes than an entry may have", int64(d.xattrBytes))
		}
		keep = append(keep, erofs.Xattr{Name: name, Value: slices.Clone(value[:k])})
	}
	return keep, opaque, nil
}

// overlayMark is what an attribute of overlayfs' own says.
func overlayMark(name string) (mark string, ok bool) {
	for _, prefix := range []string{"trusted.overlay.", "user.overlay."} {
		if mark, ok = strings.CutPrefix(name, prefix); ok {
			return mark, true
		}
	}
	return "", false
}

func attributes(st *unix.Stat_t) erofs.Attr {
	return erofs.Attr{Mode: uint16(st.Mode), UID: st.Uid, GID: st.Gid, Mtime: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)}
}

// descriptor is a path that leads to the open file itself.
func descriptor(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }
