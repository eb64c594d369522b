package launch

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxSlots is the number of results that steps can hand to later steps.
const maxSlots = 64

// reportSlot is the descriptor by which the child reports its failure.
const reportSlot = 0

// mode says what a failing step does to the program.
type mode uint8

const (
	must     mode = iota // report and end the child
	may                  // go on
	exec                 // an attempt to execute: go on, remember the error
	mayExist             // EEXIST is well, everything else is not
	meet                 // no system call: wait until the parent has done its part
)

// step is one system call of the child. It must stay free of pointers that
// the garbage collector could move or free: Program.keep holds what args refer to.
type step struct {
	nr    uintptr
	args  [6]uintptr
	from  [6]int8 // slot+1 that replaces an argument; 0 is none
	save  int8    // slot+1 that receives the result; 0 is none
	mode  mode
	write bool // a short write is an error as well
}

// Program is the list of steps. The zero value is ready; methods append in
// the order of execution. A Program may be started any number of times, but not
// while it is being added to.
type Program struct {
	steps []step
	what  []string
	keep  []any
	slots int
	free  []Slot
	meets []meeting
	pin   runtime.Pinner
	err   error
}

// Slot is the result of an earlier step, usually a descriptor.
type Slot int8

func (p *Program) add(what string, m mode, nr uintptr, args ...any) *step {
	s := step{nr: nr, mode: m}
	for i, a := range args {
		switch a := a.(type) {
		case int:
			s.args[i] = uintptr(a)
		case uintptr:
			s.args[i] = a
		case uint64:
			s.args[i] = uintptr(a)
		case Slot:
			s.from[i] = int8(a) + 1
		case string:
			s.args[i] = p.cstring(a)
		case []byte:
			s.args[i] = p.bytes(a)
		case unsafe.Pointer:
			s.args[i] = uintptr(a)
		case nil:
		default:
			panic(fmt.Sprintf("launch: argument %d of %q is a %T", i, what, a))
		}
	}
	p.steps = append(p.steps, s)
	p.what = append(p.what, what)
	return &p.steps[len(p.steps)-1]
}

func (p *Program) slot() Slot {
	if n := len(p.free); n > 0 {
		s := p.free[n-1]
		p.free = p.free[:n-1]
		return s
	}
	if p.slots == maxSlots-1 {
		p.fail(fmt.Errorf("prepare process: more than %d descriptors in use", maxSlots))
		return 0
	}
	p.slots++
	return Slot(p.slots)
}

func (p *Program) fail(err error) {
	if p.err == nil {
		p.err = err
	}
}

func (p *Program) cstring(s string) uintptr {
	if strings.IndexByte(s, 0) >= 0 {
		p.fail(fmt.Errorf("prepare process: %q holds a NUL byte", s))
		s = ""
	}
	return p.bytes(append([]byte(s), 0))
}

func (p *Program) bytes(b []byte) uintptr {
	if len(b) == 0 {
		return 0
	}
	p.pin.Pin(&b[0])
	p.keep = append(p.keep, b)
	return uintptr(unsafe.Pointer(&b[0]))
}

func (p *Program) strings(list []string) uintptr {
	ptrs := make([]uintptr, len(list)+1)
	for i, s := range list {
		ptrs[i] = p.cstring(s)
	}
	p.pin.Pin(&ptrs[0])
	p.keep = append(p.keep, ptrs)
	return uintptr(unsafe.Pointer(&ptrs[0]))
}

// meeting is the parent's part of a step.
type meeting struct {
	step int
	do   func(pid int) error
}

// Meet appends a step at which the child waits until the parent has run do
// with the child's PID in the parent's PID namespace: for what the child may not
// do itself, like mapping several users into its user namespace. An error of do
// ends the child and is what starting returns.
func (p *Program) Meet(what string, do func(pid int) error) {
	p.add(what, meet, 0)
	p.meets = append(p.meets, meeting{len(p.steps) - 1, do})
}

// Release frees the memory that the program holds for its child. It must not
// be started again.
func (p *Program) Release() {
	p.pin.Unpin()
	p.keep = nil
}

// Call appends any system call; an argument is an int, uintptr, uint64,
// string, []byte, Slot or nil. Its failure ends the child with an error
// that begins with what.
func (p *Program) Call(what string, nr uintptr, args ...any) { p.add(what, must, nr, args...) }

// Try is Call whose failure is ignored.
func (p *Program) Try(nr uintptr, args ...any) { p.add("", may, nr, args...) }

// Open appends openat(2) and returns the descriptor's slot.
func (p *Program) Open(path string, flags int, perm uint32) Slot {
	s := p.slot()
	p.add("open "+path, must, unix.SYS_OPENAT, at(unix.AT_FDCWD), path, flags|unix.O_CLOEXEC, int(perm)).save = int8(s) + 1
	return s
}

// OpenTree appends open_tree(2) of a path.
func (p *Program) OpenTree(path string, flags int) Slot {
	s := p.slot()
	p.add("open "+path, must, unix.SYS_OPEN_TREE, at(unix.AT_FDCWD), path, flags|unix.OPEN_TREE_CLOEXEC).save = int8(s) + 1
	return s
}

// OpenTreeOf appends open_tree(2) of what fd refers to: a descriptor of the parent's, or a Slot. Copies of mounts of another mount
// namespace than the process's the kernel refuses.
func (p *Program) OpenTreeOf(what string, fd any, flags int) Slot {
	s := p.slot()
	p.add(what, must, unix.SYS_OPEN_TREE, fd, "", flags|unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLOEXEC).save = int8(s) + 1
	return s
}

// OpenLinkless appends openat2(2) of an absolute path, without the right to read or write what is there, which fails where any part of
// the path is a symbolic link.
func (p *Program) OpenLinkless(path string) Slot {
	how := make([]byte, 24) // struct open_how: flags, mode, resolve
	binary.NativeEndian.PutUint64(how, unix.O_PATH|unix.O_CLOEXEC)
	binary.NativeEndian.PutUint64(how[16:], unix.RESOLVE_NO_SYMLINKS)
	s := p.slot()
	p.add("open "+path+", in which there was no symbolic link", must, unix.SYS_OPENAT2, at(unix.AT_FDCWD), path, how, len(how)).save = int8(s) + 1
	return s
}

// SetMountAttr appends mount_setattr(2) of a mount that OpenTree returned.
func (p *Program) SetMountAttr(what string, tree Slot, flags int, set, clear uint64) {
	p.setMount(what, tree, flags, set, clear, 0, 0)
}

// MapIDs appends mount_setattr(2) that gives a mount which OpenTree returned the mapping of a user namespace.
func (p *Program) MapIDs(what string, tree Slot, flags, namespace int) {
	p.setMount(what, tree, flags, unix.MOUNT_ATTR_IDMAP, 0, 0, namespace)
}

// SetPropagation appends mount_setattr(2) of a tree and all below it: kind is unix.MS_PRIVATE or one of its siblings.
func (p *Program) SetPropagation(what string, tree Slot, kind uint64) {
	p.setMount(what, tree, unix.AT_RECURSIVE, 0, 0, kind, 0)
}

func (p *Program) setMount(what string, tree Slot, flags int, set, clear, propagation uint64, namespace int) {
	attr := make([]byte, 32) // struct mount_attr: set, clear, propagation, userns_fd
	binary.NativeEndian.PutUint64(attr, set)
	binary.NativeEndian.PutUint64(attr[8:], clear)
	binary.NativeEndian.PutUint64(attr[16:], propagation)
	binary.NativeEndian.PutUint64(attr[24:], uint64(namespace))
	p.Call(what, unix.SYS_MOUNT_SETATTR, tree, "", flags|unix.AT_EMPTY_PATH, attr, len(attr))
}

// Close closes a descriptor that Open returned; the slot is not to be used again.
func (p *Program) Close(s Slot) {
	p.add("close", must, unix.SYS_CLOSE, s)
	p.free = append(p.free, s)
}

// WriteFile appends opening, writing at once and closing of a file that
// exists, like those of /proc.
func (p *Program) WriteFile(path, content string) {
	s := p.Open(path, unix.O_WRONLY, 0)
	p.add("write "+path, must, unix.SYS_WRITE, s, []byte(content), len(content)).write = true
	p.Close(s)
}

// CreateFile appends the creation of an empty file, for a mount to land on.
func (p *Program) CreateFile(path string, perm uint32) {
	p.Close(p.Open(path, unix.O_CREAT|unix.O_WRONLY|unix.O_NOFOLLOW, perm))
}

// Mkdir appends mkdir(2); an existing directory is well.
func (p *Program) Mkdir(path string, perm uint32) {
	p.add("make directory "+path, mayExist, unix.SYS_MKDIRAT, at(unix.AT_FDCWD), path, int(perm))
}

// Symlink appends symlink(2).
func (p *Program) Symlink(target, path string) {
	p.add("link "+path, must, unix.SYS_SYMLINKAT, target, at(unix.AT_FDCWD), path)
}

// Mount appends mount(2).
func (p *Program) Mount(source, target, fstype string, flags uintptr, data string) {
	var d any
	if data != "" {
		d = data
	}
	p.add("mount "+target, must, unix.SYS_MOUNT, source, target, fstype, flags, d)
}

// Unmount appends umount2(2).
func (p *Program) Unmount(target string, flags int) {
	p.add("unmount "+target, must, unix.SYS_UMOUNT2, target, flags)
}

// PivotRoot makes the mount point root the root directory and detaches the old
// one, by the way that pivot_root(2) describes under "pivot_root(".", ".")".
func (p *Program) PivotRoot(root string) {
	p.Chdir(root)
	p.add("pivot root to "+root, must, unix.SYS_PIVOT_ROOT, ".", ".")
	p.Unmount(".", unix.MNT_DETACH)
	p.Chdir("/")
}

// Chdir appends chdir(2).
func (p *Program) Chdir(path string) {
	p.add("change directory to "+path, must, unix.SYS_CHDIR, path)
}

// Setns joins the namespace that fd refers to.
func (p *Program) Setns(what string, fd int, nstype int) {
	p.add("join "+what+" namespace", must, unix.SYS_SETNS, fd, nstype)
}

// Files makes descriptor i of the new process the parent's fds[i], and closes
// every other one when it executes. A negative entry leaves i closed.
func (p *Program) Files(fds []int) {
	high := make([]Slot, len(fds))
	for i, fd := range fds {
		if fd < 0 {
			continue
		}
		high[i] = p.slot()
		p.add(fmt.Sprintf("duplicate descriptor %d", fd), must, unix.SYS_FCNTL, fd, unix.F_DUPFD_CLOEXEC, len(fds)+8).save = int8(high[i]) + 1
	}
	for i, fd := range fds {
		if fd < 0 {
			p.Try(unix.SYS_CLOSE, i)
			continue
		}
		p.add(fmt.Sprintf("place descriptor %d", i), must, unix.SYS_DUP3, high[i], i, 0)
	}
	p.Call("close inherited descriptors", unix.SYS_CLOSE_RANGE, len(fds), int(^uint32(0)), unix.CLOSE_RANGE_CLOEXEC)
}

// CloseOthers closes every descriptor from first on at once, where Files only
// has execve do it: then not even a path like /proc/self/fd/7, which a
// hostile filesystem may offer as a program or its interpreter, reaches one of
// them. Steps that use other descriptors must come before.
func (p *Program) CloseOthers(first int) {
	// The report descriptor is moved to first, by way of a number that it
	// cannot have already.
	p.add("keep report descriptor", must, unix.SYS_FCNTL, Slot(reportSlot), unix.F_DUPFD_CLOEXEC, first+1).save = reportSlot + 1
	p.add("keep report descriptor", must, unix.SYS_DUP3, Slot(reportSlot), first, unix.O_CLOEXEC).save = reportSlot + 1
	p.Call("close inherited descriptors", unix.SYS_CLOSE_RANGE, first+1, int(^uint32(0)), 0)
}

// Umask sets the mask of file modes.
func (p *Program) Umask(mask uint32) { p.add("set umask", must, unix.SYS_UMASK, int(mask)) }

// WriteFileAt is WriteFile for a path relative to the descriptor dir.
func (p *Program) WriteFileAt(dir int, path, content string) {
	s := p.slot()
	p.add("open "+path, must, unix.SYS_OPENAT, dir, path, unix.O_WRONLY|unix.O_CLOEXEC, 0).save = int8(s) + 1
	p.add("write "+path, must, unix.SYS_WRITE, s, []byte(content), len(content)).write = true
	p.Close(s)
}

// Setsid makes the process leader of a new session.
func (p *Program) Setsid() { p.add("start session", must, unix.SYS_SETSID) }

// ControllingTerminal makes descriptor fd the terminal of the new session.
func (p *Program) ControllingTerminal(fd int) {
	p.add("take terminal", must, unix.SYS_IOCTL, fd, int(unix.TIOCSCTTY), 0)
}

// DieWithParent sends SIGKILL to the process when the thread that started it
// ends; see Start. It must follow every change of identity, which clears it.
func (p *Program) DieWithParent() {
	p.add("bind to parent", must, unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, int(unix.SIGKILL), 0, 0, 0)
}

// NoNewPrivileges forbids that execve grants privileges.
func (p *Program) NoNewPrivileges() {
	p.add("set no_new_privs", must, unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}

// Rlimit sets a resource limit of the process.
func (p *Program) Rlimit(name string, resource int, soft, hard uint64) {
	limit := make([]byte, 16)
	*(*unix.Rlimit)(unsafe.Pointer(&limit[0])) = unix.Rlimit{Cur: soft, Max: hard}
	p.add("set "+name, must, unix.SYS_PRLIMIT64, 0, resource, limit, 0)
}

// Groups sets the supplementary groups.
func (p *Program) Groups(gids []uint32) {
	b := make([]byte, 4*len(gids))
	for i, g := range gids {
		*(*uint32)(unsafe.Pointer(&b[4*i])) = g
	}
	p.add("set supplementary groups", must, unix.SYS_SETGROUPS, len(gids), b)
}

// User sets real, effective and saved group and user, in this order: after the
// user is changed the right to change the group is gone.
func (p *Program) User(uid, gid uint32) {
	p.add(fmt.Sprintf("set group %d", gid), must, unix.SYS_SETRESGID, int(gid), int(gid), int(gid))
	p.add(fmt.Sprintf("set user %d", uid), must, unix.SYS_SETRESUID, int(uid), int(uid), int(uid))
}

// KeepCapabilities lets the permitted set survive the change of the user.
func (p *Program) KeepCapabilities() {
	p.add("keep capabilities", must, unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
}

// BoundCapabilities drops from the bounding set what is not in keep, a bit
// mask, among the capabilities up to last.
func (p *Program) BoundCapabilities(keep uint64, last int) {
	for c := 0; c <= last; c++ {
		if keep&(1<<c) == 0 {
			p.add(fmt.Sprintf("drop capability %d", c), must, unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		}
	}
}

// Capabilities sets the three thread sets, and the ambient set after them.
func (p *Program) Capabilities(effective, permitted, inheritable, ambient uint64) {
	head := make([]byte, 8)
	*(*unix.CapUserHeader)(unsafe.Pointer(&head[0])) = unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := make([]byte, 24)
	sets := (*[2]unix.CapUserData)(unsafe.Pointer(&data[0]))
	for i := range sets {
		shift := 32 * i
		sets[i] = unix.CapUserData{
			Effective:   uint32(effective >> shift),
			Permitted:   uint32(permitted >> shift),
			Inheritable: uint32(inheritable >> shift),
		}
	}
	p.add("set capabilities", must, unix.SYS_CAPSET, head, data)
	p.Try(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	for c := range 64 {
		if ambient&(1<<c) != 0 {
			p.add(fmt.Sprintf("raise ambient capability %d", c), must, unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0)
		}
	}
}

// Seccomp installs a filter: an array of struct sock_filter, 8 bytes each.
func (p *Program) Seccomp(filter []byte, flags uint32) {
	if len(filter) == 0 || len(filter)%8 != 0 || len(filter)/8 > 1<<15 {
		p.fail(fmt.Errorf("prepare process: a seccomp program of %d bytes", len(filter)))
		return
	}
	type fprog struct {
		len    uint16
		filter uintptr
	}
	b := make([]byte, unsafe.Sizeof(fprog{}))
	*(*fprog)(unsafe.Pointer(&b[0])) = fprog{len: uint16(len(filter) / 8), filter: p.bytes(filter)}
	p.add("install seccomp filter", must, unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, int(flags), b)
}

// SeccompNotify installs a filter, like Seccomp, whose SECCOMP_RET_USER_NOTIF asks
// the reader of a listener (seccomp_unotify(2)), and sends that listener through
// the Unix socket sock as SCM_RIGHTS with one byte. It must come after Files, and
// before a filter that forbids sendmsg(2).
func (p *Program) SeccompNotify(filter []byte, sock int) {
	p.Seccomp(filter, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER)
	if p.err != nil {
		return
	}
	listener := p.slot()
	p.steps[len(p.steps)-1].save = int8(listener) + 1
	// The message is made before the number is known, so the listener gets a known one.
	p.add("place listener", must, unix.SYS_DUP3, listener, listenerFD, unix.O_CLOEXEC)
	p.Close(listener)
	rights := unix.UnixRights(listenerFD)
	payload := []byte{0}
	p.keep = append(p.keep, rights, payload)
	p.pin.Pin(&rights[0])
	p.pin.Pin(&payload[0])
	type message struct {
		iov unix.Iovec
		hdr unix.Msghdr
	}
	m := &message{iov: unix.Iovec{Base: &payload[0], Len: 1}}
	p.pin.Pin(m)
	m.hdr = unix.Msghdr{Iov: &m.iov, Iovlen: 1, Control: &rights[0], Controllen: uint64(len(rights))}
	p.keep = append(p.keep, m)
	p.add("send listener", must, unix.SYS_SENDMSG, sock, unsafe.Pointer(&m.hdr), 0)
	p.Call("close listener", unix.SYS_CLOSE, listenerFD)
}

// listenerFD is where SeccompNotify places the listener for a moment, and Landlock the files of rules: above every
// descriptor that a child is given, below every limit.
const listenerFD = 500

// Exec ends the program by executing the first of paths that can be, as
// execvp(3) does: a path that is not there or refused is passed over, any other
// error is final. When none can, the error is EACCES if one of them was found but
// refused, else the last one's.
func (p *Program) Exec(paths, argv, env []string) {
	a, e := p.strings(argv), p.strings(env)
	for _, path := range paths {
		p.add("execute "+path, exec, unix.SYS_EXECVE, path, a, e)
	}
}

// ExecFile ends the program by executing the file that the parent has open as fd,
// which needs no name in the child's root. CloseOthers must not come before it.
func (p *Program) ExecFile(fd int, argv, env []string) {
	a, e := p.strings(argv), p.strings(env)
	p.add("execute "+argv[0], exec, unix.SYS_EXECVEAT, fd, "", a, e, unix.AT_EMPTY_PATH)
}

// at turns AT_FDCWD, which is negative, into a register.
func at(fd int) uintptr { return uintptr(fd) }
