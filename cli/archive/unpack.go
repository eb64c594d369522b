package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// Options are how Unpack writes.
type Options struct {
	// KeepOwnership sets owner, group and all mode bits as in the archive, as far
	// as this user may. Without it files are the user's, and neither
	// set-user-id nor set-group-id.
	KeepOwnership bool
	// Skipped is told of what is not written: devices and pipes. May be nil.
	Skipped func(name, why string)
}

// Unpack reads a tar whose entries are all `top` or below it, as Pack writes them,
// and writes them into dir under the name base instead; "." puts the content of the
// directory top into dir itself. Nothing is written outside of dir/base, whatever
// the archive holds. It returns the bytes of file content.
func Unpack(r io.Reader, dir, top, base string, opt Options) (int64, error) {
	parent, err := os.OpenRoot(dir)
	if err != nil {
		return 0, err
	}
	defer parent.Close()
	u := &unpacker{parent: parent, base: base, top: top, opt: opt}
	if base == "." {
		if u.root, err = parent.OpenRoot("."); err != nil {
			return 0, err
		}
	}
	defer func() {
		if u.root != nil {
			u.root.Close()
		}
	}()
	in := tar.NewReader(r)
	for first := true; ; first = false {
		h, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return u.bytes, fmt.Errorf("read archive: %w", err)
		}
		rel, err := u.relative(h.Name)
		if err != nil {
			return u.bytes, err
		}
		if first != (rel == ".") {
			return u.bytes, fmt.Errorf("archive: %q is not where it belongs", h.Name)
		}
		if first {
			err = u.begin(h, in)
		} else {
			err = u.below(rel, h, in)
		}
		if err != nil {
			return u.bytes, fmt.Errorf("write %s: %w", path.Join(dir, base, rel), err)
		}
	}
	if err := u.finish(); err != nil {
		return u.bytes, err
	}
	// To the end, so that who sends is not left in the middle.
	_, err = io.Copy(io.Discard, r)
	return u.bytes, err
}

type unpacker struct {
	parent *os.Root // dir
	root   *os.Root // dir/base, when that is a directory
	base   string
	top    string
	opt    Options
	bytes  int64
	dirs   []*tar.Header // get their modes and times last; Name is relative
}

// maxDirs bounds what is remembered of an archive.
const maxDirs = 1 << 20

// relative is an entry's name below the top, "." for the top itself.
func (u *unpacker) relative(name string) (string, error) {
	clean := path.Clean(name)
	if path.IsAbs(name) || clean == ".." || strings.HasPrefix(clean, "../") || strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("archive: the name %q leads out of the directory", name)
	}
	top := path.Clean(u.top)
	if clean == top {
		return ".", nil
	}
	if top == "." {
		return clean, nil
	}
	rel, ok := strings.CutPrefix(clean, top+"/")
	if !ok {
		return "", fmt.Errorf("archive: the name %q is not below %q", name, u.top)
	}
	return rel, nil
}

// begin writes the top.
func (u *unpacker) begin(h *tar.Header, in io.Reader) error {
	if h.Typeflag != tar.TypeDir {
		if u.base == "." {
			return errors.New("not a directory")
		}
		return u.write(u.parent, u.base, h, in)
	}
	if u.root == nil {
		if err := u.parent.Mkdir(u.base, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		root, err := u.parent.OpenRoot(u.base)
		if err != nil {
			return err
		}
		u.root = root
		u.later(".", h)
	}
	return nil
}

// below writes an entry below the top.
func (u *unpacker) below(rel string, h *tar.Header, in io.Reader) error {
	if u.root == nil {
		return errors.New("an entry below one that is not a directory")
	}
	return u.write(u.root, rel, h, in)
}

func (u *unpacker) write(root *os.Root, name string, h *tar.Header, in io.Reader) error {
	if h.Typeflag == tar.TypeDir {
		if err := root.Mkdir(name, 0o700); err != nil {
			fi, statErr := root.Lstat(name)
			if statErr != nil || !fi.IsDir() {
				return err
			}
		}
		u.later(name, h)
		return nil
	}
	if fi, err := root.Lstat(name); err == nil {
		if fi.IsDir() {
			return errors.New("cannot overwrite a directory with a file")
		}
		// Through a link that is there, something else would be overwritten.
		if fi.Mode().Type() != 0 || h.Typeflag != tar.TypeReg {
			if err := root.Remove(name); err != nil {
				return err
			}
		}
	}
	switch h.Typeflag {
	case tar.TypeReg:
		return u.file(root, name, h, in)
	case tar.TypeSymlink:
		if err := root.Symlink(h.Linkname, name); err != nil {
			return err
		}
		if u.opt.KeepOwnership {
			return ownership(root.Lchown(name, h.Uid, h.Gid))
		}
		return nil
	case tar.TypeLink:
		target, err := u.relative(h.Linkname)
		if err != nil {
			return err
		}
		return root.Link(target, name)
	}
	if u.opt.Skipped != nil {
		u.opt.Skipped(h.Name, "neither file, directory nor link")
	}
	return nil
}

func (u *unpacker) file(root *os.Root, name string, h *tar.Header, in io.Reader) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, in)
	u.bytes += n
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return u.attributes(root, name, h)
}

// attributes sets owner, mode and time. The owner comes first, because a
// change of owner takes mode bits away.
func (u *unpacker) attributes(root *os.Root, name string, h *tar.Header) error {
	mode := fs.FileMode(h.Mode & 0o777)
	if h.Mode&0o1000 != 0 {
		mode |= fs.ModeSticky
	}
	if u.opt.KeepOwnership {
		if err := ownership(root.Lchown(name, h.Uid, h.Gid)); err != nil {
			return err
		}
		if h.Mode&0o4000 != 0 {
			mode |= fs.ModeSetuid
		}
		if h.Mode&0o2000 != 0 {
			mode |= fs.ModeSetgid
		}
	}
	if err := root.Chmod(name, mode); err != nil {
		return err
	}
	return root.Chtimes(name, h.ModTime, h.ModTime)
}

// ownership lets an ordinary user keep what he cannot give away.
func ownership(err error) error {
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		return nil
	}
	return err
}

func (u *unpacker) later(name string, h *tar.Header) {
	if len(u.dirs) < maxDirs {
		kept := *h
		kept.Name = name
		kept.PAXRecords = nil
		u.dirs = append(u.dirs, &kept)
	}
}

// finish gives directories their modes and times, inner ones first: writing into
// one would change its time, or need a right that it does not give.
func (u *unpacker) finish() error {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		h := u.dirs[i]
		// A directory that the archive has replaced since is no concern.
		if fi, err := u.root.Lstat(h.Name); err != nil || !fi.IsDir() {
			continue
		}
		if err := u.attributes(u.root, h.Name, h); err != nil {
			return fmt.Errorf("write %s: %w", h.Name, err)
		}
	}
	return nil
}
