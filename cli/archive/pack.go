// Package archive moves files of the host into and out of tar streams, for copies
// to and from containers. A stream from a container is hostile: nothing in it may
// lead out of the directory that it is unpacked to. The package knows nothing of
// containers.
package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Pack writes the file or directory src as a tar in which it has the name base
// ("." for a directory whose content is meant), and returns the bytes of file
// content. With follow, src itself may be a symbolic link to what is meant;
// links below it stay links. Sockets are left out: they mean nothing elsewhere.
func Pack(w io.Writer, src, base string, follow bool) (int64, error) {
	p := &packer{w: tar.NewWriter(w), links: make(map[[2]uint64]string)}
	stat := os.Lstat
	if follow {
		stat = os.Stat
	}
	fi, err := stat(src)
	if err != nil {
		return 0, err
	}
	if !fi.IsDir() {
		if follow {
			if src, err = filepath.EvalSymlinks(src); err != nil {
				return 0, err
			}
		}
		if err := p.entry(src, base, fi); err != nil {
			return p.bytes, err
		}
		return p.bytes, p.w.Close()
	}
	// A link is not walked through; what it leads to is.
	if src, err = filepath.EvalSymlinks(src); err != nil {
		return 0, err
	}
	err = filepath.WalkDir(src, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, name)
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone meanwhile
		}
		if err != nil {
			return err
		}
		return p.entry(name, path.Join(base, filepath.ToSlash(rel)), fi)
	})
	if err != nil {
		return p.bytes, err
	}
	return p.bytes, p.w.Close()
}

type packer struct {
	w     *tar.Writer
	links map[[2]uint64]string // device and inode of files with several names
	bytes int64
}

func (p *packer) entry(file, name string, fi fs.FileInfo) error {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s: no unix file", file)
	}
	h := &tar.Header{
		Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: fi.ModTime(), Format: tar.FormatPAX,
	}
	kind := fi.Mode().Type()
	if kind != fs.ModeDir && st.Nlink > 1 {
		key := [2]uint64{uint64(st.Dev), st.Ino}
		if first, ok := p.links[key]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return p.w.WriteHeader(h)
		}
		p.links[key] = name
	}
	switch kind {
	case 0:
		return p.content(file, h)
	case fs.ModeDir:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case fs.ModeSymlink:
		target, err := os.Readlink(file)
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case fs.ModeNamedPipe:
		h.Typeflag = tar.TypeFifo
	case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		h.Typeflag = tar.TypeBlock
		if kind&fs.ModeCharDevice != 0 {
			h.Typeflag = tar.TypeChar
		}
		h.Devmajor, h.Devminor = int64(unix.Major(uint64(st.Rdev))), int64(unix.Minor(uint64(st.Rdev)))
	default:
		return nil
	}
	return p.w.WriteHeader(h)
}

func (p *packer) content(file string, h *tar.Header) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	h.Typeflag, h.Size = tar.TypeReg, fi.Size()
	if err := p.w.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(p.w, io.LimitReader(f, h.Size))
	p.bytes += n
	if err == nil && n < h.Size {
		err = fmt.Errorf("%s became shorter while it was read", file)
	}
	return err
}
