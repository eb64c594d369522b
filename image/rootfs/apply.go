package rootfs

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"manis/image/erofs"
	"manis/image/fault"
	"manis/image/layer"
)

// applier puts one layer's archive on top of the tree.
type applier struct {
	*tree
	in         *layer.Reader
	xattrBytes int
	// room is asked as file data is stored whether there may be more.
	room func() error
}

func (a *applier) run() error {
	for {
		e, err := a.in.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := a.entry(e); err != nil {
			return fmt.Errorf("entry %s: %w", quote(e.Name), err)
		}
	}
}

// quote keeps a hostile name from flooding or steering a terminal.
func quote(name string) string {
	if len(name) > 200 {
		return fmt.Sprintf("%q...", name[:200])
	}
	return fmt.Sprintf("%q", name)
}

func (a *applier) entry(e *layer.Entry) error {
	if err := a.countEntry(); err != nil {
		return err
	}
	parts, err := clean(e.Name)
	if err != nil {
		return err
	}
	if done, err := a.special(parts); done || err != nil {
		return err
	}
	attr := erofs.Attr{Mode: e.Mode, UID: e.UID, GID: e.GID, Mtime: e.Mtime, Nsec: e.Nsec}
	xattrs, err := keepXattrs(e.Xattrs, a.xattrBytes)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		if e.Type != layer.Dir {
			return fmt.Errorf("the root must be a directory: %w", fault.ErrInvalid)
		}
		attr.Mode |= erofs.TypeDir
		return a.SetAttr(erofs.Root, attr, xattrs)
	}
	dir, err := a.dir(parts[:len(parts)-1], true)
	if err != nil {
		return err
	}
	name := parts[len(parts)-1]

	var ino erofs.Ino
	switch e.Type {
	case layer.Dir:
		return a.mkdir(dir, name, attr, xattrs)
	case layer.HardLink:
		return a.hardLink(dir, name, e.Link)
	case layer.Symlink:
		switch {
		case e.Link == "":
			return fmt.Errorf("symbolic link without a target: %w", fault.ErrInvalid)
		case len(e.Link) >= maxPath:
			return fmt.Errorf("symbolic link with a target of %d bytes (at most %d allowed): %w", len(e.Link), maxPath-1, fault.ErrInvalid)
		}
		attr.Mode = 0o777 // whatever the archive says: Linux knows no other for them
		ino, err = a.Symlink(attr, xattrs, []byte(e.Link))
	case layer.Regular:
		ino, err = a.file(attr, xattrs, e.Size)
	case layer.Char, layer.Block:
		attr.Mode |= erofs.TypeChar
		if e.Type == layer.Block {
			attr.Mode = e.Mode | erofs.TypeBlock
		}
		if attr.Rdev, err = erofs.Device(e.Major, e.Minor); err != nil {
			return err
		}
		ino, err = a.Node(attr, xattrs)
	case layer.FIFO:
		attr.Mode |= erofs.TypeFIFO
		ino, err = a.Node(attr, xattrs)
	default:
		return fmt.Errorf("archive entry of type %q: %w", e.Type, fault.ErrUnsupported)
	}
	if err != nil {
		return err
	}
	return a.put(dir, name, ino)
}

// special handles names with the whiteout prefix.
func (t *tree) special(parts []string) (done bool, err error) {
	for i, p := range parts {
		if !strings.HasPrefix(p, whiteoutPrefix) {
			continue
		}
		last := i == len(parts)-1
		switch {
		case p == whiteoutOpaque && last:
			dir, err := t.dir(parts[:i], false)
			if errors.Is(err, fault.ErrNotFound) {
				return true, nil
			}
			if err != nil {
				return true, err
			}
			return true, t.opaque(dir)
		case strings.HasPrefix(p, whiteoutMeta) && p != whiteoutOpaque:
			return true, nil // AUFS' bookkeeping is not content
		case !last:
			return true, fmt.Errorf("directory name with the reserved prefix %q: %w", whiteoutPrefix, fault.ErrInvalid)
		}
		name := p[len(whiteoutPrefix):]
		if name == "" || name == "." || name == ".." {
			return true, fmt.Errorf("whiteout of %q: %w", name, fault.ErrInvalid)
		}
		dir, err := t.dir(parts[:i], false)
		if errors.Is(err, fault.ErrNotFound) {
			return true, nil // nothing below to hide
		}
		if err != nil {
			return true, err
		}
		return true, t.whiteout(dir, name)
	}
	return false, nil
}

func (t *tree) mkdir(dir erofs.Ino, name string, attr erofs.Attr, xattrs []erofs.Xattr) error {
	attr.Mode |= erofs.TypeDir
	if e, ok := t.Lookup(dir, []byte(name)); ok && e.IsDir() {
		t.Retag(e, t.tag)
		return t.SetAttr(e.Ino, attr, xattrs)
	}
	ino, err := t.Node(attr, xattrs)
	if err != nil {
		return err
	}
	return t.put(dir, name, ino)
}

// hardLink gives an existing file one more name. The target's directories are
// resolved inside the tree; a symbolic link as the target is itself linked.
func (t *tree) hardLink(dir erofs.Ino, name, target string) error {
	parts, err := clean(target)
	if err == nil && len(parts) == 0 {
		err = fmt.Errorf("is a directory: %w", fault.ErrInvalid)
	}
	if err != nil {
		return fmt.Errorf("hard link to %s: %w", quote(target), err)
	}
	from, err := t.dir(parts[:len(parts)-1], false)
	if err != nil {
		return fmt.Errorf("hard link to %s: %w", quote(target), err)
	}
	e, ok := t.Lookup(from, []byte(parts[len(parts)-1]))
	switch {
	case !ok:
		return fmt.Errorf("hard link to %s: %w", quote(target), fault.ErrNotFound)
	case e.IsDir():
		return fmt.Errorf("hard link to %s: is a directory: %w", quote(target), fault.ErrInvalid)
	}
	return t.put(dir, name, e.Ino)
}

func (a *applier) file(attr erofs.Attr, xattrs []erofs.Xattr, size int64) (erofs.Ino, error) {
	f, err := a.Create(attr, xattrs, size)
	if err != nil {
		return 0, err
	}
	if err := a.in.Copy(&checked{File: f, room: a.room}); err != nil {
		f.Abandon()
		return 0, err
	}
	return f.Close()
}

// checked asks for room now and then while a file is written.
type checked struct {
	*erofs.File
	room func() error
}

func (c *checked) Write(p []byte) (int, error) {
	if err := c.room(); err != nil {
		return 0, err
	}
	return c.File.Write(p)
}

func keepXattrs(xattrs []layer.Xattr, limit int) ([]erofs.Xattr, error) {
	var keep []erofs.Xattr
	total := 0
	for _, x := range xattrs {
		if !keepXattr(x.Name) {
			continue
		}
		if total += len(x.Name) + len(x.Value); total > limit {
			return nil, over("extended attributes of more bytes than an entry may have", int64(limit))
		}
		keep = append(keep, erofs.Xattr(x))
	}
	return keep, nil
}

// keepXattr drops what no Linux file system would store, and overlayfs' own
// marks: in a layer they could only mislead the guest's overlay.
func keepXattr(name string) bool {
	_, mark := overlayMark(name)
	return erofs.XattrExpressible(name) && !mark
}
