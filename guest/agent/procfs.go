package agent

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"manis/launch"
)

// procfs is the part of a container's mounts that only a process of its PID
// namespace can make: a proc filesystem shows the namespace of who mounts it, and
// the container's thread is, unlike its children, in the agent's. So the first
// process mounts it between clone and execve, and hides and protects what is below.
type procfs struct {
	mounts   []*mount
	masked   []procMask
	readonly []string
	// places are the destinations of mounts.
	places []string
	// later are mounts that come after a proc filesystem and shall stand after it.
	later []*mount
}

// procMask is a detached mount that shall hide a path.
type procMask struct {
	path string
	fd   int
}

// expect makes the mount point of a proc filesystem.
func (f *procfs) expect(m *mount) error {
	dest := path.Clean("/" + m.Destination)
	if dest == "/" {
		return errors.New("a mount cannot replace the root")
	}
	if len(f.mounts) >= 4 {
		return fail(codes.InvalidArgument, errors.New("more than 4 proc filesystems"))
	}
	target, err := makeTarget(dest, false)
	if err != nil {
		return err
	}
	unix.Close(target)
	m.Destination = dest
	f.mounts = append(f.mounts, m)
	return nil
}

// follow notes the mounts after the first proc filesystem, without those that move with another.
func (f *procfs) follow(list []*mount) {
	for i, m := range list {
		if m.fd >= 0 {
			continue
		}
		for _, m := range list[i+1:] {
			below := func(o *mount) bool { return strings.HasPrefix(m.Destination, o.Destination+"/") }
			if m.fd >= 0 && !slices.ContainsFunc(f.later, below) {
				f.later = append(f.later, m)
			}
		}
		return
	}
}

// takeMasked keeps the paths below a proc filesystem for the first process, each
// with a mount to hide it, and returns the others. It runs before the thread has
// entered its root: what hides is the agent's, not what the container calls /dev/null.
func (f *procfs) takeMasked(list []*mount, paths []string, m *masks) (others []string, err error) {
	f.announce(list)
	ours, others := f.split(paths)
	for _, p := range ours {
		dir, exists := f.kind(p)
		if !exists {
			continue
		}
		fd, err := m.another(dir)
		if err != nil {
			return nil, fmt.Errorf("mask %s: %w", p, err)
		}
		f.masked = append(f.masked, procMask{p, fd})
	}
	return others, nil
}

// announce notes the destinations of proc filesystems that are still to be made.
func (f *procfs) announce(list []*mount) {
	f.places = nil
	for _, m := range list {
		if m.fd < 0 {
			f.places = append(f.places, path.Clean("/"+m.Destination))
		}
	}
}

// close lets go of masks that were not used or have their place.
func (f *procfs) close() {
	for _, m := range f.masked {
		unix.Close(m.fd)
	}
	f.masked = nil
}

// takeReadonly does the same for paths to protect.
func (f *procfs) takeReadonly(paths []string) (others []string) {
	f.readonly, others = f.split(paths)
	return others
}

func (f *procfs) split(paths []string) (ours, others []string) {
	for _, p := range paths {
		p = path.Clean("/" + p)
		below := false
		for _, dest := range f.places {
			below = below || strings.HasPrefix(p, dest+"/")
		}
		if below && len(ours) < maxMounts {
			ours = append(ours, p)
		} else {
			others = append(others, p)
		}
	}
	return ours, others
}

// kind looks a path up in the agent's own proc filesystem, which has the same
// files but for those of processes.
func (f *procfs) kind(p string) (dir, exists bool) {
	for _, dest := range f.places {
		name, ok := strings.CutPrefix(p, dest+"/")
		if !ok {
			continue
		}
		var st unix.Stat_t
		if unix.Fstatat(procDir, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
			return st.Mode&unix.S_IFMT == unix.S_IFDIR, true
		}
	}
	return false, false
}

// atCWD is AT_FDCWD as a system call's argument.
const atCWD = ^uintptr(99)

const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// mount appends the steps of the first process.
func (f *procfs) mount(b *launch.Program) {
	for _, m := range f.mounts {
		// The attributes of mount_setattr(2) and the flags of mount(2) have the
		// same values for these four.
		const both = unix.MS_RDONLY | quiet
		b.Mount("proc", m.Destination, "proc", uintptr(m.set)&both&^unix.MS_RDONLY, strings.Join(m.data, ","))
	}
	for _, m := range f.later {
		// A copy of the mount is new and stands last.
		dest := path.Clean("/" + m.Destination)
		again := m.propagation&^unix.MS_REC == unix.MS_UNBINDABLE
		if again {
			b.Mount("", dest, "", unix.MS_PRIVATE|unix.MS_REC, "")
		}
		tree := b.OpenTree(dest, unix.OPEN_TREE_CLONE|unix.AT_RECURSIVE)
		b.Unmount(dest, unix.MNT_DETACH)
		b.Call("mount "+dest, unix.SYS_MOVE_MOUNT, tree, "", atCWD, dest, unix.MOVE_MOUNT_F_EMPTY_PATH)
		b.Close(tree)
		if again {
			b.Mount("", dest, "", unix.MS_UNBINDABLE, "")
		}
	}
	for _, m := range f.masked {
		b.Call("mask "+m.path, unix.SYS_MOVE_MOUNT, m.fd, "", atCWD, m.path, unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
	for _, p := range f.readonly {
		if _, exists := f.kind(p); exists {
			b.Mount(p, p, "", unix.MS_BIND|unix.MS_REC, "")
			b.Mount("", p, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|quiet, "")
		}
	}
	for _, m := range f.mounts {
		if m.set&unix.MS_RDONLY != 0 {
			b.Mount("", m.Destination, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|uintptr(m.set)&quiet, "")
		}
	}
}
