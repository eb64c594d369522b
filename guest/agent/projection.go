package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	api "manis/api/agent"
)

// Bounds of a projected volume.
const (
	maxProjected      = 4096
	maxProjectedDepth = 64
)

// projectionOptions are those of the filesystem that holds a projected volume: twice the most that one message can carry, in
// pages, since the old content is there until the new one is.
var projectionOptions = []string{"size=48m", "nr_inodes=16k"}

// dataLink leads to the present content; newDataLink is put into its place.
const (
	dataLink    = "..data"
	newDataLink = "..data_tmp"
)

// projecting is held while the content of a projected volume is written.
var projecting sync.Mutex

// makeProjections makes the container's projected volumes, or what they hold the latest.
func (c *container) makeProjections() error {
	for _, p := range c.request.Projections {
		if err := c.makeProjection(p); err != nil {
			return fmt.Errorf("projected volume %s: %w", p.Name, err)
		}
	}
	c.request.Projections = nil // it is in memory once
	return nil
}

func (c *container) makeProjection(p *api.Projection) error {
	if err := checkProjection(p); err != nil {
		return fail(codes.InvalidArgument, err)
	}
	projecting.Lock()
	defer projecting.Unlock()
	if err := c.makeVolume(p.Name, projectionOptions); err != nil {
		return err
	}
	dir, err := openProjection(p.Name)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return project(dir, p.Files)
}

// openProjection opens the directory of one that containers have.
func openProjection(name string) (int, error) {
	volumes.Lock()
	defer volumes.Unlock()
	if volumes.mounts[name] == 0 {
		return -1, fail(codes.NotFound, errors.New("no container has it"))
	}
	return unix.Open(volumesDir+"/"+name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// cloneProjection clones it for a mount.
func cloneProjection(name string) (int, error) {
	dir, err := openProjection(name)
	if err != nil {
		return -1, fmt.Errorf("projected volume %q: %w", name, err)
	}
	defer unix.Close(dir)
	return cloneTree(dir, "", false)
}

// Publish is the agent's request of this name.
func (s *service) Publish(_ context.Context, p *api.Projection) (*api.Empty, error) {
	s.mu.Lock()
	ready := s.isSetUp
	s.mu.Unlock()
	if !ready {
		return nil, errNotSetUp
	}
	if err := checkProjection(p); err != nil {
		return nil, fail(codes.InvalidArgument, err)
	}
	projecting.Lock()
	defer projecting.Unlock()
	dir, err := openProjection(p.Name)
	if err == nil {
		defer unix.Close(dir)
		err = project(dir, p.Files)
	}
	if err != nil {
		return nil, fmt.Errorf("projected volume %s: %w", p.Name, err)
	}
	return &api.Empty{}, nil
}

// checkProjection refuses what is not one.
func checkProjection(p *api.Projection) error {
	switch {
	case !isName(p.Name):
		return fmt.Errorf("%q is not a name", p.Name)
	case len(p.Files) == 0 || p.Files[0].Path != "." || p.Files[0].Mode&unix.S_IFMT != unix.S_IFDIR:
		return errors.New("the first file is not the volume's own directory")
	case len(p.Files) > maxProjected+1:
		return fmt.Errorf("more than %d files", maxProjected)
	}
	if _, err := timestamp(p.Files); err != nil {
		return err
	}
	seen := make(map[string]bool, len(p.Files))
	for _, f := range p.Files {
		switch f.Mode & unix.S_IFMT {
		case unix.S_IFDIR, unix.S_IFREG, unix.S_IFLNK:
		default:
			return fmt.Errorf("%.80q is neither a directory, nor a regular file, nor a link", f.Path)
		}
		if !filepath.IsLocal(f.Path) || path.Clean(f.Path) != f.Path || strings.Count(f.Path, "/") >= maxProjectedDepth || seen[f.Path] || f.Path == newDataLink {
			return fmt.Errorf("%.80q is not the path of a file in it", f.Path)
		}
		seen[f.Path] = true
	}
	return nil
}

// timestamp is the name of the directory that holds the content.
func timestamp(files []*api.ProjectedFile) (string, error) {
	for _, f := range files {
		if f.Path != dataLink || f.Mode&unix.S_IFMT != unix.S_IFLNK {
			continue
		}
		name := string(f.Content)
		if !filepath.IsLocal(name) || strings.Contains(name, "/") || name == "." || name == newDataLink || name == dataLink {
			return "", fmt.Errorf("%s leads to %.80q, which is not a directory in it", dataLink, name)
		}
		return name, nil
	}
	return "", fmt.Errorf("there is no link %s", dataLink)
}

// project makes a directory hold files, in the order in which the kubelet does it.
func project(dir int, files []*api.ProjectedFile) error {
	now, err := timestamp(files)
	if err != nil {
		return fail(codes.InvalidArgument, err)
	}
	before, _ := readLink(dir, dataLink)
	var content, top []*api.ProjectedFile
	names := make(map[string]bool)
	for _, f := range files[1:] {
		first, _, _ := strings.Cut(f.Path, "/")
		names[first] = true
		switch {
		case first == now:
			content = append(content, f)
		case f.Path != dataLink:
			top = append(top, f)
		}
	}
	if before != now {
		// What an attempt that failed has left.
		if err := removeBelow(dir, now, 0); err != nil {
			return err
		}
	}
	if err := putAll(dir, content); err != nil {
		if before != now {
			removeBelow(dir, now, 0)
		}
		return err
	}
	if before != now {
		if err := replaceLink(dir, now); err != nil {
			removeBelow(dir, now, 0)
			return err
		}
	}
	if err := putAll(dir, top); err != nil {
		return err
	}
	present, err := listDir(dir)
	if err != nil {
		return err
	}
	// What programs see, then what it was.
	for _, hidden := range []bool{false, true} {
		for _, name := range present {
			if !names[name] && strings.HasPrefix(name, "..") == hidden {
				if err := removeBelow(dir, name, 0); err != nil {
					return err
				}
			}
		}
	}
	if before == now {
		if err := trimBelow(dir, content); err != nil {
			return err
		}
	}
	return own(dir, ".", files[0])
}

// replaceLink makes dataLink lead to the directory.
func replaceLink(dir int, now string) error {
	if err := removeBelow(dir, newDataLink, 0); err != nil {
		return err
	}
	if err := unix.Symlinkat(now, dir, newDataLink); err != nil {
		return fmt.Errorf("make %s: %w", newDataLink, err)
	}
	if err := unix.Renameat(dir, newDataLink, dir, dataLink); err != nil {
		unix.Unlinkat(dir, newDataLink, 0)
		return fmt.Errorf("replace %s: %w", dataLink, err)
	}
	return nil
}

// trimBelow removes what a directory that was there already has beyond the files.
func trimBelow(dir int, content []*api.ProjectedFile) error {
	wanted := make(map[string]bool, len(content))
	for _, f := range content {
		wanted[f.Path] = true
	}
	for _, f := range content {
		if f.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		sub, err := openBelow(dir, f.Path, unix.O_RDONLY)
		if err != nil {
			return fmt.Errorf("open %s: %w", f.Path, err)
		}
		names, err := listDir(sub)
		for _, name := range names {
			if err == nil && !wanted[f.Path+"/"+name] {
				err = removeBelow(sub, name, 0)
			}
		}
		unix.Close(sub)
		if err != nil {
			return err
		}
	}
	return nil
}

// listDir lists a directory that may have been listed before.
func listDir(dir int) ([]string, error) {
	if _, err := unix.Seek(dir, 0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("list the volume: %w", err)
	}
	names, err := dirNames(dir)
	if err != nil {
		return nil, fmt.Errorf("list the volume: %w", err)
	}
	return names, nil
}

// openBelow opens a directory of the volume, where a privileged container may have put links.
func openBelow(dir int, name string, flags uint64) (int, error) {
	return unix.Openat2(dir, name, &unix.OpenHow{
		Flags: flags | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
}

// putAll makes files, parents first, and then gives directories the times that making them has changed.
func putAll(dir int, files []*api.ProjectedFile) error {
	for _, f := range files {
		if err := put(dir, f); err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	for i := len(files) - 1; i >= 0; i-- {
		if f := files[i]; f.Mode&unix.S_IFMT == unix.S_IFDIR {
			setTime(dir, f)
		}
	}
	return nil
}

// put makes one file what it should be. What is so already is left alone, for others hear of each change.
func put(dir int, f *api.ProjectedFile) error {
	parent, err := openBelow(dir, path.Dir(f.Path), unix.O_PATH)
	if err != nil {
		return fmt.Errorf("open its directory: %w", err)
	}
	defer unix.Close(parent)
	name := path.Base(f.Path)
	kind := f.Mode & unix.S_IFMT
	var st unix.Stat_t
	err = unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil {
		other := st.Mode&unix.S_IFMT != kind
		if !other && kind == unix.S_IFLNK {
			target, _ := readLink(parent, name)
			other = target != string(f.Content)
		}
		if other {
			if err := removeBelow(parent, name, 0); err != nil {
				return err
			}
			err = unix.ENOENT
		}
	}
	if err != nil && err != unix.ENOENT {
		return err
	}
	absent := err == unix.ENOENT
	switch {
	case kind == unix.S_IFLNK && absent:
		err = unix.Symlinkat(string(f.Content), parent, name)
	case kind == unix.S_IFDIR && absent:
		err = unix.Mkdirat(parent, name, f.Mode&0o7777)
	case kind == unix.S_IFREG:
		err = writeContent(parent, name, f.Content, absent)
	default:
		err = nil
	}
	if err != nil {
		return err
	}
	if err := own(parent, name, f); err != nil {
		return err
	}
	if kind == unix.S_IFREG {
		setTime(dir, f)
	}
	return nil
}

func writeContent(parent int, name string, content []byte, absent bool) error {
	flags := unix.O_RDWR | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	if absent {
		flags |= unix.O_CREAT | unix.O_EXCL
	}
	fd, err := unix.Openat(parent, name, flags, 0o600)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), name)
	defer file.Close()
	if !absent {
		present, err := io.ReadAll(io.LimitReader(file, int64(len(content))+1))
		if err != nil || bytes.Equal(present, content) {
			return err
		}
		if err := file.Truncate(0); err != nil {
			return err
		}
	}
	_, err = file.WriteAt(content, 0)
	return err
}

// own gives a file its owner and mode where they are others.
func own(parent int, name string, f *api.ProjectedFile) error {
	var st unix.Stat_t
	if err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Uid != f.Uid || st.Gid != f.Gid {
		if err := unix.Fchownat(parent, name, int(f.Uid), int(f.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	} else if st.Mode&0o7777 == f.Mode&0o7777 {
		return nil
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	// An owner's change takes bits of the mode away.
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fchmod(fd, f.Mode&0o7777)
}

// setTime gives a file its time where that is another one. Nothing depends on it.
func setTime(dir int, f *api.ProjectedFile) {
	parent, err := openBelow(dir, path.Dir(f.Path), unix.O_PATH)
	if err != nil {
		return
	}
	defer unix.Close(parent)
	var st unix.Stat_t
	at := unix.NsecToTimespec(f.MtimeUnixNs)
	if unix.Fstatat(parent, path.Base(f.Path), &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mtim != at {
		unix.UtimesNanoAt(parent, path.Base(f.Path), []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW)
	}
}

// removeBelow removes a file, or a directory with all that is in it. That there is none is no error.
func removeBelow(dir int, name string, depth int) error {
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR || depth > maxDepth {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	sub, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	defer unix.Close(sub)
	names, err := dirNames(sub)
	for _, n := range names {
		if err == nil {
			err = removeBelow(sub, n, depth+1)
		}
	}
	if err == nil {
		err = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}
