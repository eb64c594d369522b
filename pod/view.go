package pod

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// View is what a proxy is to see of the host: the container's root, with what is mounted
// from the host in it. Whoever copies files by way of the proxy's mount namespace, as Podman
// does for running containers, finds the container's there and nothing else.
type View struct {
	Root     string
	ReadOnly bool
	Binds    []ViewBind
	// Points are directories that the guest mounts something on. It could not make those that
	// are missing where the root is read-only.
	Points []string
}

// ViewBind is a directory or file of the host.
type ViewBind struct {
	Source, Destination string
	ReadOnly            bool
}

// maxView bounds a View as JSON, bytes.
const maxView = 128 << 10

// Show gives a proxy that was started with Contained its view, before its socket belongs to a pod.
func (p *Proxy) Show(v *View) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > maxView {
		return fmt.Errorf("the container has too many mounts: their list takes %d bytes, at most %d are possible", len(b), maxView)
	}
	if _, err := unix.Write(int(p.Socket.Fd()), b); err != nil {
		return fmt.Errorf("speak to the container's proxy: %w", err)
	}
	answer := make([]byte, 4096)
	n, err := p.Socket.Read(answer)
	switch {
	case errors.Is(err, io.EOF), err == nil && n == 0:
		return errors.New("the container's proxy ended")
	case err != nil:
		return fmt.Errorf("speak to the container's proxy: %w", err)
	case n == 1 && answer[0] == 0:
		return nil
	}
	return errors.New(string(answer[:n]))
}

// settle makes a view the root of this process's mount namespace, which is its own.
func settle(message []byte) error {
	var v View
	if err := json.Unmarshal(message, &v); err != nil {
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fail := func(what string, err error) error {
		return fmt.Errorf("show the container's files to the host: %s: %w", what, err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fail("detach the mounts", err)
	}
	root, err := unix.OpenTree(unix.AT_FDCWD, v.Root, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return fail(v.Root, err)
	}
	type tree struct {
		fd   int
		bind ViewBind
	}
	var trees []tree
	for _, b := range v.Binds {
		fd, err := unix.OpenTree(unix.AT_FDCWD, b.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return fail(b.Source, err)
		}
		trees = append(trees, tree{fd, b})
	}
	if err := unix.MoveMount(root, "", unix.AT_FDCWD, v.Root, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fail(v.Root, err)
	}
	if err := unix.Fchdir(root); err != nil {
		return fail(v.Root, err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fail("enter "+v.Root, err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fail("leave the host's root", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fail("enter "+v.Root, err)
	}
	for _, point := range v.Points {
		// What cannot be made here the guest reports, if it misses it.
		if fd, err := mountPoint(point, true); err == nil {
			unix.Close(fd)
		}
	}
	for _, t := range trees {
		var st unix.Stat_t
		if err := unix.Fstat(t.fd, &st); err != nil {
			return fail(t.bind.Source, err)
		}
		target, err := mountPoint(t.bind.Destination, st.Mode&unix.S_IFMT == unix.S_IFDIR)
		if err != nil {
			return fail("make the mount point "+t.bind.Destination, err)
		}
		if err := unix.MoveMount(t.fd, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
			return fail("mount "+t.bind.Destination, err)
		}
		unix.Close(target)
		setReadOnly(t.fd, t.bind.ReadOnly)
		unix.Close(t.fd)
	}
	setReadOnly(root, v.ReadOnly)
	unix.Close(root)
	// What lists processes by way of this namespace finds the one that stands for the container's.
	unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	return nil
}

// mountPoint opens a path below the root, where symbolic links mean what they mean there, and makes
// what is missing of it: directories, and at its end a file unless that is to be a directory, too.
func mountPoint(name string, dir bool) (int, error) {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	at, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer func() { unix.Close(at) }()
	parts := strings.Split(strings.Trim(filepath.Clean("/"+name), "/"), "/")
	for i, part := range parts {
		fd, err := unix.Openat2(unix.AT_FDCWD, strings.Join(parts[:i+1], "/"), how)
		if err == unix.ENOENT {
			if i == len(parts)-1 && !dir {
				err = unix.Mknodat(at, part, unix.S_IFREG|0o644, 0)
			} else {
				err = unix.Mkdirat(at, part, 0o755)
			}
			if err == nil || err == unix.EEXIST {
				fd, err = unix.Openat2(at, part, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_BENEATH})
			}
		}
		if err != nil {
			return -1, err
		}
		unix.Close(at)
		at = fd
	}
	return unix.FcntlInt(uintptr(at), unix.F_DUPFD_CLOEXEC, 0)
}

func setReadOnly(fd int, set bool) {
	if set {
		unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	}
}
