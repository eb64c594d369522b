package rootfs

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"strings"

	"manis/image/erofs"
	"manis/image/fault"
)

// apply puts one layer's archive on top of the tree.
func (t *tree) apply(r io.Reader, limits Limits, buf []byte, stored func() error) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) {
				err = fault.ErrTruncated
			}
			return fmt.Errorf("read the archive: %w", err)
		}
		if err := t.entry(h, tr, limits, buf, stored); err != nil {
			return fmt.Errorf("entry %q: %w", shorten(h.Name), err)
		}
	}
}

// shorten keeps a hostile name from flooding a terminal.
func shorten(name string) string {
	if len(name) > 200 {
		return name[:200] + "..."
	}
	return name
}

func (t *tree) entry(h *tar.Header, data io.Reader, limits Limits, buf []byte, stored func() error) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if err := t.countEntry(); err != nil {
		return err
	}
	parts, err := clean(h.Name)
	if err != nil {
		return err
	}
	if done, err := t.special(parts); done || err != nil {
		return err
	}
	attr, err := attrOf(h)
	if err != nil {
		return err
	}
	xattrs, err := xattrsOf(h, limits.XattrBytes)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		if h.Typeflag != tar.TypeDir {
			return fmt.Errorf("the root must be a directory: %w", fault.ErrInvalid)
		}
		attr.Mode |= erofs.TypeDir
		return t.SetAttr(erofs.Root, attr, xattrs)
	}
	dir, err := t.dir(parts[:len(parts)-1], true)
	if err != nil {
		return err
	}
	name := parts[len(parts)-1]

	var ino erofs.Ino
	switch h.Typeflag {
	case tar.TypeDir:
		return t.mkdir(dir, name, attr, xattrs)
	case tar.TypeLink:
		return t.hardLink(dir, name, h.Linkname)
	case tar.TypeSymlink:
		if h.Linkname == "" {
			return fmt.Errorf("symbolic link without a target: %w", fault.ErrInvalid)
		}
		t.changed()
		ino, err = t.Symlink(attr, xattrs, []byte(h.Linkname))
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		ino, err = t.file(attr, xattrs, h.Size, data, buf)
		if err == nil {
			err = stored()
		}
	case tar.TypeChar, tar.TypeBlock:
		attr.Mode |= erofs.TypeChar
		if h.Typeflag == tar.TypeBlock {
			attr.Mode = attr.Mode&^erofs.TypeMask | erofs.TypeBlock
		}
		if attr.Rdev, err = erofs.Device(h.Devmajor, h.Devminor); err != nil {
			return err
		}
		ino, err = t.Node(attr, xattrs)
	case tar.TypeFifo:
		attr.Mode |= erofs.TypeFIFO
		ino, err = t.Node(attr, xattrs)
	default:
		return fmt.Errorf("archive entry of type %q: %w", h.Typeflag, fault.ErrUnsupported)
	}
	if err != nil {
		return err
	}
	return t.put(dir, name, ino)
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
		return fmt.Errorf("hard link to %q: %w", shorten(target), err)
	}
	from, err := t.dir(parts[:len(parts)-1], false)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", shorten(target), err)
	}
	e, ok := t.Lookup(from, []byte(parts[len(parts)-1]))
	switch {
	case !ok:
		return fmt.Errorf("hard link to %q: %w", shorten(target), fault.ErrNotFound)
	case e.IsDir():
		return fmt.Errorf("hard link to %q: is a directory: %w", shorten(target), fault.ErrInvalid)
	}
	return t.put(dir, name, e.Ino)
}

func (t *tree) file(attr erofs.Attr, xattrs []erofs.Xattr, size int64, data io.Reader, buf []byte) (erofs.Ino, error) {
	f, err := t.Create(attr, xattrs, size)
	if err != nil {
		return 0, err
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{data}, buf); err != nil {
		f.Abandon()
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = fault.ErrTruncated
		}
		return 0, err
	}
	return f.Close()
}

func attrOf(h *tar.Header) (erofs.Attr, error) {
	if h.Uid < 0 || h.Uid > 1<<32-2 || h.Gid < 0 || h.Gid > 1<<32-2 {
		return erofs.Attr{}, fmt.Errorf("owner %d:%d: %w", h.Uid, h.Gid, fault.ErrInvalid)
	}
	return erofs.Attr{
		Mode: uint16(h.Mode & 0o7777), UID: uint32(h.Uid), GID: uint32(h.Gid),
		Mtime: h.ModTime.Unix(), Nsec: uint32(h.ModTime.Nanosecond()),
	}, nil
}

const xattrRecord = "SCHILY.xattr."

func xattrsOf(h *tar.Header, limit int) ([]erofs.Xattr, error) {
	var xattrs []erofs.Xattr
	total := 0
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, xattrRecord)
		if !ok || !keepXattr(name) {
			continue
		}
		if total += len(name) + len(v); total > limit {
			return nil, over("extended attributes of more bytes than an entry may have", int64(limit))
		}
		xattrs = append(xattrs, erofs.Xattr{Name: name, Value: []byte(v)})
	}
	return xattrs, nil
}

// keepXattr drops what no Linux file system would store, and overlayfs' own
// marks: in a layer they could only mislead the guest's overlay.
func keepXattr(name string) bool {
	return erofs.XattrExpressible(name) &&
		!strings.HasPrefix(name, "trusted.overlay.") && !strings.HasPrefix(name, "user.overlay.")
}
