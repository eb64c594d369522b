package jail

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"manis/launch"
)

// Add shows a process that was started with shares a further entry of one of them. What the
// entry may do, its identity has to permit: see Share.Grows.
//
// It takes a child process, for only one with a single thread may enter the process's user
// namespace. The child copies the mount where its path is known, enters the jail and puts it there.
func (j *Process) Add(share string, e Entry) error {
	if j.open {
		return errors.New("a process without a jail has no shares")
	}
	if !filepath.IsLocal(e.Name) || filepath.Clean(e.Name) != e.Name || e.Name == "." {
		return fmt.Errorf("%q is no name of an entry", e.Name)
	}
	names := []string{"mnt"}
	if !j.identity.root {
		if os.Geteuid() != 0 {
			return fmt.Errorf("show %s in the jail: %w: mounts of the host can be copied by root only, or by root of a user namespace (as under rootless Podman)", e.Host, ErrUnsupported)
		}
		names = []string{"user", "mnt"}
	}
	p := new(launch.Program)
	defer p.Release()
	flags := uint64(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC)
	if e.ReadOnly {
		flags |= unix.MOUNT_ATTR_RDONLY
	}
	tree := p.OpenTree(e.Host, unix.OPEN_TREE_CLONE|unix.AT_RECURSIVE)
	p.SetMountAttr("protect "+e.Host, tree, unix.AT_RECURSIVE, flags, 0)
	for _, name := range names {
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", j.PID, name))
		if err != nil {
			return fmt.Errorf("enter the jail: %w", err)
		}
		defer ns.Close()
		p.Setns("enter the jail's "+name+" namespace", int(ns.Fd()), 0)
	}
	// The directory of the entries lies in a tmpfs that is mounted read-only. A copy of that
	// mount is not.
	root := p.OpenTree("/", unix.OPEN_TREE_CLONE)
	p.SetMountAttr("open the jail's root", root, 0, 0, unix.MOUNT_ATTR_RDONLY)
	target := filepath.Join(SharesDir, share, e.Name)
	if dir := filepath.Dir(e.Name); dir != "." {
		dir = filepath.Join(SharesDir, share, dir)
		p.Call("make "+dir, unix.SYS_MKDIRAT, root, dir[1:], 0o755)
	}
	if e.File {
		p.Call("make "+target, unix.SYS_MKNODAT, root, target[1:], unix.S_IFREG|0o444, 0)
	} else {
		p.Call("make "+target, unix.SYS_MKDIRAT, root, target[1:], 0o755)
	}
	p.Call("mount "+e.Host, unix.SYS_MOVE_MOUNT, tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
	p.Call("end", unix.SYS_EXIT_GROUP, 0)
	child, err := launch.Fork(p, launch.Attr{}, true)
	if err != nil {
		return fmt.Errorf("show %s in the jail: %w", e.Host, err)
	}
	defer unix.Close(child.FD)
	var status unix.WaitStatus
	for {
		if _, err := unix.Wait4(child.PID, &status, 0, nil); err != unix.EINTR {
			break
		}
	}
	j.mu.Lock()
	j.readOnly[target] = e.ReadOnly
	j.mu.Unlock()
	return nil
}
