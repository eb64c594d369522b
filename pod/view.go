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

	"manis/bundle"
	"manis/origin"
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
	// Origin is what was allowed of the Source, and nothing else is shown; nil: whatever is there.
	Origin *origin.Origin `json:",omitempty"`
}

// open copies what is mounted there; the copy is detached.
func (b *ViewBind) open() (int, error) {
	const flags = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_RECURSIVE
	if b.Origin == nil {
		return unix.OpenTree(unix.AT_FDCWD, b.Source, flags)
	}
	f, err := b.Origin.Open(unix.O_PATH)
	if err != nil {
		return -1, err
	}
	defer f.Close()
	return unix.OpenTree(int(f.Fd()), "", flags|unix.AT_EMPTY_PATH)
}

// order is what a proxy is told before its socket belongs to a pod.
type order struct {
	// View is to become its root.
	View *View `json:",omitempty"`
	// TakeProc and PutProc are for a proxy in a user namespace of its own, which cannot make its
	// view itself: it takes a proc filesystem as long as it sees the host's, without which it
	// could not, and puts it into the view that was made for it.
	TakeProc, PutProc bool `json:",omitempty"`
}

// maxView bounds an order as JSON, bytes.
const maxView = 128 << 10

// Show gives a proxy that was started with Contained its view, before its socket belongs to a pod.
func (p *Proxy) Show(v *View) error {
	if !p.mapped {
		return p.order(&order{View: v})
	}
	if err := p.order(&order{TakeProc: true}); err != nil {
		return err
	}
	// The host's files are not for the user that the proxy is.
	result := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		result <- func() error {
			ns, err := unix.Open(fmt.Sprintf("/proc/%d/ns/mnt", p.Process.Pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("open the namespace of the container's proxy: %w", err)
			}
			defer unix.Close(ns)
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("leave the shared root: %w", err)
			}
			if err := unix.Setns(ns, unix.CLONE_NEWNS); err != nil {
				return fmt.Errorf("join the namespace of the container's proxy: %w", err)
			}
			return v.settle()
		}()
	}()
	if err := <-result; err != nil {
		return err
	}
	return p.order(&order{PutProc: true})
}

func (p *Proxy) order(o *order) error {
	b, err := json.Marshal(o)
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

// obeyer is a proxy that carries out orders.
type obeyer struct {
	proc int // a detached proc filesystem, or -1
}

func (y *obeyer) obey(message []byte) error {
	var o order
	if err := json.Unmarshal(message, &o); err != nil {
		return err
	}
	switch {
	case o.TakeProc:
		y.takeProc()
	case o.PutProc:
		y.putProc()
	case o.View != nil:
		if err := o.View.settle(); err != nil {
			return err
		}
		y.takeProc()
		y.putProc()
	}
	return nil
}

// What lists processes by way of a proxy's namespaces finds the one that stands for the container's.
// A host that does not permit it does without.
func (y *obeyer) takeProc() {
	y.proc = -1
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return
	}
	defer unix.Close(fs)
	if unix.FsconfigCreate(fs) != nil {
		return
	}
	if fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC); err == nil {
		y.proc = fd
	}
}

func (y *obeyer) putProc() {
	if y.proc < 0 {
		return
	}
	unix.MoveMount(y.proc, "", unix.AT_FDCWD, "/proc", unix.MOVE_MOUNT_F_EMPTY_PATH)
	unix.Close(y.proc)
	y.proc = -1
}

// settle makes a view the root of this thread's mount namespace, which is a proxy's own.
func (v *View) settle() error {
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
		fd, err := b.open()
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
		if fd, err := mountPoint("/", point, true); err == nil {
			unix.Close(fd)
		}
	}
	for _, t := range trees {
		var st unix.Stat_t
		if err := unix.Fstat(t.fd, &st); err != nil {
			return fail(t.bind.Source, err)
		}
		target, err := mountPoint("/", t.bind.Destination, st.Mode&unix.S_IFMT == unix.S_IFDIR)
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
	return nil
}

// mountPoint opens a path below a root, where symbolic links mean what they mean there, and makes
// what is missing of it: directories, and at its end a file unless that is to be a directory, too.
func mountPoint(root, name string, dir bool) (int, error) {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	top, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(top)
	at, err := unix.FcntlInt(uintptr(top), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer func() { unix.Close(at) }()
	parts := strings.Split(strings.Trim(filepath.Clean("/"+name), "/"), "/")
	for i, part := range parts {
		fd, err := unix.Openat2(top, strings.Join(parts[:i+1], "/"), how)
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

// makePoints makes the missing mount points in a root in which the guest can make none. What cannot be made here
// the guest reports, if it misses it.
func makePoints(plan *bundle.Plan) {
	for _, m := range plan.Create.Mounts {
		if fd, err := mountPoint(plan.Root, m.Destination, !m.File); err == nil {
			unix.Close(fd)
		}
	}
}

func setReadOnly(fd int, set bool) {
	if set {
		unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	}
}
