package debimage

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// stamp tells one state of a file from another: a write, a new owner or a new link changes the
// change time, and a replaced file has another inode.
type stamp struct {
	inode   uint64
	mode    uint32
	changed unix.Timespec
}

// snapshot is a directory tree at one moment, by path relative to its root.
type snapshot map[string]stamp

func takeSnapshot(root string) (snapshot, error) {
	s := snapshot{}
	err := walk(root, func(name, _ string, st *unix.Stat_t) error {
		s[name] = stamp{st.Ino, st.Mode, st.Ctim}
		return nil
	})
	return s, err
}

// walk visits everything below root in a fixed order, a directory before its content.
func walk(root string, visit func(name, full string, st *unix.Stat_t) error) error {
	return filepath.WalkDir(root, func(full string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if full == root {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(full, &st); err != nil {
			return &fs.PathError{Op: "lstat", Path: full, Err: err}
		}
		name, err := filepath.Rel(root, full)
		if err != nil {
			return err
		}
		return visit(name, full, &st)
	})
}

// writeChanges writes what makes the tree at root out of the tree that base was taken of, as an
// OCI layer: changed files, and a whiteout for what is gone. A nil base stands for an empty tree.
func writeChanges(w *tar.Writer, root string, base snapshot) error {
	now, err := takeSnapshot(root)
	if err != nil {
		return err
	}
	for _, name := range removed(base, now) {
		dir, file := path.Split(name)
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: dir + ".wh." + file, Mode: 0o600, ModTime: time.Unix(0, 0)}); err != nil {
			return err
		}
	}
	// First path seen of each file that has several.
	links := map[uint64]string{}
	return walk(root, func(name, full string, st *unix.Stat_t) error {
		if base[name] == now[name] {
			return nil
		}
		header, err := headerOf(name, full, st)
		if header == nil || err != nil {
			return err
		}
		if header.Typeflag == tar.TypeReg && st.Nlink > 1 {
			if first, seen := links[st.Ino]; seen {
				header.Typeflag, header.Linkname, header.Size = tar.TypeLink, first, 0
			} else {
				links[st.Ino] = name
			}
		}
		if err := w.WriteHeader(header); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if header.Typeflag != tar.TypeReg {
			return nil
		}
		return copyFile(w, full, header.Size)
	})
}

// removed lists, sorted, the highest paths of base that are gone. What lay below one of them, or
// below a directory that became something else, is gone with it.
func removed(base, now snapshot) []string {
	var gone []string
	for name := range base {
		if _, there := now[name]; there {
			continue
		}
		parent := path.Dir(name)
		if p, there := now[parent]; parent == "." || there && p.mode&unix.S_IFMT == unix.S_IFDIR {
			gone = append(gone, name)
		}
	}
	slices.Sort(gone)
	return gone
}

// headerOf describes one file for a tar archive; nil means that archives do not hold its kind.
func headerOf(name, full string, st *unix.Stat_t) (*tar.Header, error) {
	h := &tar.Header{
		Name: name,
		Mode: int64(st.Mode & 0o7777),
		Uid:  int(st.Uid),
		Gid:  int(st.Gid),
		// Whole seconds fit the plain format; the rest would cost a kilobyte per file.
		ModTime: time.Unix(st.Mtim.Sec, 0),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case unix.S_IFLNK:
		target, err := os.Readlink(full)
		if err != nil {
			return nil, err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		return nil, nil
	}
	attributes, err := xattrs(full)
	if err != nil {
		return nil, err
	}
	for key, value := range attributes {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+key] = value
	}
	return h, nil
}

// xattrs reads the extended attributes that belong to a file, capabilities above all, and not those
// of the host's security policy.
func xattrs(full string) (map[string]string, error) {
	names, err := readXattr(func(buffer []byte) (int, error) { return unix.Llistxattr(full, buffer) })
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, &fs.PathError{Op: "llistxattr", Path: full, Err: err}
	}
	found := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimRight(names, "\x00"), "\x00") {
		if name == "" || name == "security.selinux" || name == "security.ima" || name == "security.evm" {
			continue
		}
		value, err := readXattr(func(buffer []byte) (int, error) { return unix.Lgetxattr(full, name, buffer) })
		if err != nil {
			return nil, &fs.PathError{Op: "lgetxattr " + name, Path: full, Err: err}
		}
		found[name] = value
	}
	return found, nil
}

// readXattr calls a function of the listxattr kind with a buffer that suffices.
func readXattr(read func([]byte) (int, error)) (string, error) {
	for buffer := make([]byte, 256); ; buffer = make([]byte, 4*len(buffer)) {
		n, err := read(buffer)
		if err == unix.ERANGE && len(buffer) < 1<<20 {
			continue
		}
		return string(buffer[:max(n, 0)]), err
	}
}
