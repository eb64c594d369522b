package rootfs

import (
	"fmt"
	"strings"

	"manis/image/erofs"
	"manis/image/fault"
)

const (
	maxPath    = 4096 // as PATH_MAX, the longest a guest could open
	maxName    = 255
	maxSymlink = 40 // links followed while walking one path, as the kernel does

	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh." // AUFS' own bookkeeping, but for the next
	whiteoutOpaque = ".wh..wh..opq"
)

// tree is the merged root: an EROFS under construction plus the rules by which
// paths of layers name places in it. Paths are resolved in the tree only, as
// if it were the root of a chroot: the host's file system is never consulted.
type tree struct {
	*erofs.Builder
	tag uint16 // of the layer being applied; entries of lower ones have a lower tag

	entries    int64 // of all layers, directories made for them included
	maxEntries int64

	// steps are the names looked at to resolve paths and to hide what whiteouts
	// hide. A few bytes of archive can ask for a walk through everything, again and again.
	steps    int64
	maxSteps int64

	lastDir string // parent directory last resolved
	lastIno erofs.Ino
}

func newTree(b *erofs.Builder, limits Limits) *tree {
	return &tree{Builder: b, maxEntries: limits.Entries, maxSteps: 1<<20 + stepsPerEntry*limits.Entries}
}

// clean takes an archive's path apart. A leading slash is dropped, "." and ".."
// are resolved by the letter, as docker does; ".." above the root is refused.
func clean(path string) ([]string, error) {
	switch {
	case len(path) > maxPath:
		return nil, fmt.Errorf("path of %d bytes (at most %d allowed): %w", len(path), maxPath, fault.ErrLimit)
	case strings.IndexByte(path, 0) >= 0:
		return nil, fmt.Errorf("path with a zero byte: %w", fault.ErrInvalid)
	}
	var parts []string
	for p := range strings.SplitSeq(path, "/") {
		switch {
		case p == "" || p == ".":
		case p == "..":
			if len(parts) == 0 {
				return nil, fmt.Errorf("path leads out of the root: %w", fault.ErrInvalid)
			}
			parts = parts[:len(parts)-1]
		case len(p) > maxName:
			return nil, fmt.Errorf("path component of %d bytes (at most %d allowed): %w", len(p), maxName, fault.ErrInvalid)
		default:
			parts = append(parts, p)
		}
	}
	return parts, nil
}

// changed forgets what was resolved, after a name went away or changed its meaning.
func (t *tree) changed() { t.lastIno = 0 }

// dir walks to the directory named by parts. Symbolic links on the way are
// followed inside the tree. With create, missing directories are made, as
// containerd does for layers that leave them out; else they are ErrNotFound.
func (t *tree) dir(parts []string, create bool) (erofs.Ino, error) {
	if len(parts) == 0 {
		return erofs.Root, nil
	}
	key := strings.Join(parts, "/")
	if t.lastIno != 0 && key == t.lastDir {
		return t.lastIno, nil
	}
	ino, err := t.walk(parts, create)
	if err == nil {
		t.lastDir, t.lastIno = key, ino
	}
	return ino, err
}

func (t *tree) walk(parts []string, create bool) (erofs.Ino, error) {
	at := erofs.Root
	links := 0
	todo := parts
	for len(todo) > 0 {
		if err := t.step(); err != nil {
			return 0, err
		}
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..": // of a link's target; the root is its own parent
			at = t.Parent(at)
			continue
		}
		e, ok := t.Lookup(at, []byte(name))
		switch {
		case !ok && !create:
			return 0, fmt.Errorf("directory %q: %w", name, fault.ErrNotFound)
		case !ok:
			if len(name) > maxName {
				return 0, fmt.Errorf("path component of %d bytes (at most %d allowed): %w", len(name), maxName, fault.ErrInvalid)
			}
			if strings.HasPrefix(name, whiteoutPrefix) { // of a link's target
				return 0, fmt.Errorf("directory name with the reserved prefix %q: %w", whiteoutPrefix, fault.ErrInvalid)
			}
			if err := t.countEntry(); err != nil {
				return 0, err
			}
			ino, err := t.Node(erofs.Attr{Mode: erofs.TypeDir | 0o755}, nil)
			if err != nil {
				return 0, err
			}
			if err := t.Link(at, []byte(name), ino, t.tag); err != nil {
				return 0, err
			}
			at = ino
		case e.IsDir():
			at = e.Ino
		case e.Mode&erofs.TypeMask == erofs.TypeSymlink:
			if links++; links > maxSymlink {
				return 0, fmt.Errorf("more than %d symbolic links on the way: %w", maxSymlink, fault.ErrInvalid)
			}
			target, err := t.Readlink(e.Ino)
			if err != nil {
				return 0, err
			}
			if target[0] == '/' {
				at = erofs.Root
			}
			todo = append(strings.Split(string(target), "/"), todo...)
		default:
			return 0, fmt.Errorf("%q is not a directory: %w", name, fault.ErrInvalid)
		}
	}
	return at, nil
}

func (t *tree) countEntry() error {
	if t.entries++; t.entries > t.maxEntries {
		return over("more entries than an image may have", t.maxEntries)
	}
	return nil
}

// stepsPerEntry is far more than images need that are no attack, and yet at the limit of
// entries a matter of a minute.
const stepsPerEntry = 64

func (t *tree) step() error {
	if t.steps++; t.steps > t.maxSteps {
		return over("more names to be looked at than merging an image may take", t.maxSteps)
	}
	return nil
}

// put gives ino the name in dir; what had it before, with all below, is gone.
func (t *tree) put(dir erofs.Ino, name string, ino erofs.Ino) error {
	e, ok := t.Lookup(dir, []byte(name))
	if !ok {
		return t.Link(dir, []byte(name), ino, t.tag)
	}
	t.changed()
	if e.IsDir() {
		if _, err := t.prune(e.Ino, func(erofs.Entry) bool { return false }); err != nil {
			return err
		}
	}
	return t.Replace(e, ino, t.tag)
}

// whiteout hides name of dir as the layers below have it. What the layer
// itself brings stays, wherever in the archive it stands.
func (t *tree) whiteout(dir erofs.Ino, name string) error {
	e, ok := t.Lookup(dir, []byte(name))
	if !ok {
		return nil
	}
	t.changed()
	_, err := t.hide(e, t.own)
	return err
}

// opaque hides all that the layers below have in dir.
func (t *tree) opaque(dir erofs.Ino) error {
	t.changed()
	_, err := t.prune(dir, t.own)
	return err
}

// own reports whether the layer being applied brought the entry.
func (t *tree) own(e erofs.Entry) bool { return e.Tag == t.tag }

// prune hides the entries of dir and reports whether any stayed.
func (t *tree) prune(dir erofs.Ino, keep func(erofs.Entry) bool) (stayed bool, err error) {
	err = t.Children(dir, func(e erofs.Entry) error {
		s, err := t.hide(e, keep)
		stayed = stayed || s
		return err
	})
	return stayed, err
}

// hide removes an entry unless it is to be kept, or something below it is.
// Recursion ends at erofs.MaxDepth.
func (t *tree) hide(e erofs.Entry, keep func(erofs.Entry) bool) (stayed bool, err error) {
	if err := t.step(); err != nil {
		return true, err
	}
	stayed = keep(e)
	if e.IsDir() {
		below, err := t.prune(e.Ino, keep)
		if err != nil {
			return true, err
		}
		stayed = stayed || below
	}
	if stayed {
		return true, nil
	}
	return false, t.Unlink(e)
}
