package qemu

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"manis/vmm"
	"manis/vmm/checkpoint"
	"manis/vmm/jail"
)

// savedFiles are what QEMU's 9p server had open of the shares. The directories of the shares are the jail's own.
func savedFiles(files []checkpoint.File) []vmm.SavedFile {
	var all []vmm.SavedFile
	for _, f := range files {
		if tag, path := inShare(f.Path); path != "" {
			all = append(all, vmm.SavedFile{Share: tag, Path: path, Directory: f.Directory, Size: f.Size})
		}
	}
	return all
}

// inShare takes a path of the jail apart.
func inShare(path string) (tag, rest string) {
	path, _ = strings.CutPrefix(path, jail.SharesDir+"/")
	tag, rest, _ = strings.Cut(path, "/")
	return tag, rest
}

// shareError names a file of the jail by its share.
func shareError(err error) error {
	var f *checkpoint.FileError
	if !errors.As(err, &f) {
		return err
	}
	tag, path := inShare(f.Path)
	return &vmm.FileError{Share: tag, Path: path, Reason: f.Reason}
}

// checkFiles compares what a saved machine had open with what it would find. It is opened by the resumer, which
// could say less of what is wrong.
func checkFiles(c *vmm.Config) error {
	for _, f := range c.Saved.Files {
		if err := checkFile(c.Shares, f); err != nil {
			return fmt.Errorf("%w: %w", vmm.ErrConfig, &vmm.FileError{Share: f.Share, Path: f.Path, Reason: "it was open when the machine was saved: " + err.Error()})
		}
	}
	return nil
}

func checkFile(shares []vmm.Share, f vmm.SavedFile) error {
	for _, s := range shares {
		if s.Tag != f.Share {
			continue
		}
		for _, e := range s.Entries {
			switch rest, inside := strings.CutPrefix(f.Path, e.Name+"/"); {
			case inside && !e.File:
				return compare(e.HostPath, rest, f)
			case f.Path == e.Name:
				return compare(e.HostPath, "", f)
			case strings.HasPrefix(e.Name, f.Path+"/"):
				return nil // a directory of the jail's own
			}
		}
	}
	return errors.New("no entry has it")
}

// compare looks at what is at a path below a host's directory, where links are not followed.
func compare(host, path string, f vmm.SavedFile) error {
	fd, err := unix.Open(host, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if path != "" {
		below, err := unix.Openat2(fd, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
		if err != nil {
			return err
		}
		defer unix.Close(below)
		fd = below
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	switch kind := st.Mode & unix.S_IFMT; {
	case f.Directory && kind != unix.S_IFDIR:
		return errors.New("it is no directory any more")
	case !f.Directory && kind != unix.S_IFREG:
		return errors.New("it is no file any more")
	case !f.Directory && st.Size != f.Size:
		return fmt.Errorf("it had %d bytes and has %d: the files must be as they were", f.Size, st.Size)
	}
	return nil
}
