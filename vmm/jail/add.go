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
	if err := j.canChange(e.Name); err != nil {
		return fmt.Errorf("show %s in the jail: %w", e.Host, err)
	}
	p := new(launch.Program)
	defer p.Release()
	all, own := e.flags()
	var tree launch.Slot
	if e.Opened != nil {
		tree = p.OpenTreeOf("copy the mount of "+e.Host, int(e.Opened.Fd()), unix.OPEN_TREE_CLONE|unix.AT_RECURSIVE)
	} else {
		tree = p.OpenTree(e.Host, unix.OPEN_TREE_CLONE|unix.AT_RECURSIVE)
	}
	p.SetMountAttr("protect "+e.Host, tree, unix.AT_RECURSIVE, all, 0)
	if own != 0 {
		p.SetMountAttr("protect "+e.Host, tree, 0, own, 0)
	}
	if e.IDs != nil {
		ns, err := e.IDs.namespace()
		if err != nil {
			return fmt.Errorf("show %s in the jail with mapped ids: %w", e.Host, err)
		}
		defer ns.Close()
		flags := 0
		if e.IDs.Below {
			flags = unix.AT_RECURSIVE
		}
		p.MapIDs(mapIDs, tree, flags, int(ns.Fd()))
	}
	// The copy of a shared mount is shared with it.
	propagation := uint64(unix.MS_PRIVATE)
	if e.Follows {
		propagation = unix.MS_SLAVE
	}
	p.SetPropagation("detach "+e.Host, tree, propagation)
	root, closeAll, err := j.enter(p)
	if err != nil {
		return err
	}
	defer closeAll()
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
	if err := carryOut(p); err != nil {
		if step := new(launch.StepError); e.IDs != nil && errors.As(err, &step) && step.Step == mapIDs {
			err = e.IDs.refused(e.Host, err)
		}
		return fmt.Errorf("show %s in the jail: %w", e.Host, err)
	}
	e.Opened = nil // the caller's
	j.mu.Lock()
	j.shown[target] = e
	j.mu.Unlock()
	return nil
}

// mapIDs is the step that may fail for the filesystem's sake.
const mapIDs = "map the ids of its files"

// Remove takes an entry away that Add has added. Files of it that are open stay so.
func (j *Process) Remove(share string, e Entry) error {
	if err := j.canChange(e.Name); err != nil {
		return fmt.Errorf("take %s out of the jail: %w", e.Name, err)
	}
	p := new(launch.Program)
	defer p.Release()
	root, closeAll, err := j.enter(p)
	if err != nil {
		return err
	}
	defer closeAll()
	target := filepath.Join(SharesDir, share, e.Name)
	p.Call("unmount "+target, unix.SYS_UMOUNT2, target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	flags := unix.AT_REMOVEDIR
	if e.File {
		flags = 0
	}
	p.Call("remove "+target, unix.SYS_UNLINKAT, root, target[1:], flags)
	if dir := filepath.Dir(e.Name); dir != "." {
		p.Try(unix.SYS_UNLINKAT, root, filepath.Join(SharesDir, share, dir)[1:], unix.AT_REMOVEDIR)
	}
	if err := carryOut(p); err != nil {
		return fmt.Errorf("take %s out of the jail: %w", e.Name, err)
	}
	j.mu.Lock()
	delete(j.shown, target)
	j.mu.Unlock()
	return nil
}

// canChange reports why entries of that name cannot be added or taken away.
func (j *Process) canChange(name string) error {
	switch {
	case j.open:
		return errors.New("a process without a jail has no shares")
	case !filepath.IsLocal(name) || filepath.Clean(name) != name || name == ".":
		return fmt.Errorf("%q is no name of an entry", name)
	case !j.identity.root && os.Geteuid() != 0:
		return fmt.Errorf("%w: mounts of the host can be copied by root only, or by root of a user namespace (as under rootless Podman)", ErrUnsupported)
	}
	return nil
}

// enter has a program enter the jail. The directory of the entries lies in a tmpfs that is mounted read-only there; root
// is a copy of that mount which is not. What is returned is called when the program has run.
func (j *Process) enter(p *launch.Program) (root launch.Slot, closeAll func(), err error) {
	names := []string{"mnt"}
	if !j.identity.root {
		names = []string{"user", "mnt"}
	}
	var files []*os.File
	closeAll = func() {
		for _, f := range files {
			f.Close()
		}
	}
	for _, name := range names {
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", j.PID, name))
		if err != nil {
			closeAll()
			return 0, nil, fmt.Errorf("enter the jail: %w", err)
		}
		files = append(files, ns)
		p.Setns("enter the jail's "+name+" namespace", int(ns.Fd()), 0)
	}
	root = p.OpenTree("/", unix.OPEN_TREE_CLONE)
	p.SetMountAttr("open the jail's root", root, 0, 0, unix.MOUNT_ATTR_RDONLY)
	return root, closeAll, nil
}

// carryOut runs a program in a child of a single thread.
func carryOut(p *launch.Program) error {
	p.Call("end", unix.SYS_EXIT_GROUP, 0)
	child, err := launch.Fork(p, launch.Attr{}, true)
	if err != nil {
		return err
	}
	defer unix.Close(child.FD)
	var status unix.WaitStatus
	for {
		if _, err := unix.Wait4(child.PID, &status, 0, nil); err != unix.EINTR {
			return nil
		}
	}
}
