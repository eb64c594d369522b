package jail

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// lender lends files to one process, which may map them privately and must not write to them.
//
// QEMU opens the file behind a guest's memory for reading and writing even where it maps
// it copy on write (memory-backend-file with share=off; its option rom=off came with
// 8.2). A descriptor open for writing would let a guest that has taken QEMU over change the
// memory of all its siblings, and no permission and no read-only mount makes such an open(2)
// succeed and a write(2) fail. So the open is answered from outside: a seccomp filter hands
// it to this process (seccomp_unotify(2)), which puts a descriptor in its place that is open for
// reading only. That is enough for a private mapping. It is opened by way of the jail's own
// read-only mount, so that it cannot be opened again for writing through /proc either, where the
// jail has one.
type lender struct {
	paths    []string // inside the jail
	sock     [2]int   // ours, the child's
	listener int
	wake     [2]int // a pipe whose closing ends the loop
	done     chan struct{}
	once     sync.Once
}

func newLender(paths []string) (*lender, error) {
	l := &lender{paths: paths, listener: -1, done: make(chan struct{})}
	var err error
	if l.sock, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	if err := unix.Pipe2(l.wake[:], unix.O_CLOEXEC); err != nil {
		unix.Close(l.sock[0])
		unix.Close(l.sock[1])
		return nil, os.NewSyscallError("pipe2", err)
	}
	return l, nil
}

// lendFilter asks for every openat(2) for reading and writing. QEMU opens with
// exactly these flags what it maps, and with O_CLOEXEC everything else.
func lendFilter() ([]byte, error) {
	program, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 4, Size: 4}, // seccomp_data.arch
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AUDIT_ARCH_X86_64, SkipFalse: 5},
		bpf.LoadAbsolute{Off: 0, Size: 4}, // .nr
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SYS_OPENAT, SkipFalse: 3},
		bpf.LoadAbsolute{Off: 32, Size: 4}, // .args[2], low half
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.O_RDWR, SkipFalse: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_USER_NOTIF},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW},
	})
	if err != nil {
		return nil, err
	}
	var b []byte
	for _, i := range program {
		b = binary.NativeEndian.AppendUint16(b, i.Op)
		b = append(b, i.Jt, i.Jf)
		b = binary.NativeEndian.AppendUint32(b, i.K)
	}
	return b, nil
}

// begin takes the listener, which the child has sent, and answers until end.
func (l *lender) begin() error {
	unix.Close(l.sock[1])
	l.sock[1] = -1
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(l.sock[0], make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	unix.Close(l.sock[0])
	l.sock[0] = -1
	if err != nil {
		return fmt.Errorf("receive the jail's listener: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return errors.New("receive the jail's listener: none came")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return errors.New("receive the jail's listener: none came")
	}
	l.listener = fds[0]
	go l.serve()
	return nil
}

// end stops the answers: what is asked from now on fails with ENOSYS. It may be
// called again.
func (l *lender) end() {
	l.once.Do(func() {
		unix.Close(l.wake[1])
		if l.listener >= 0 {
			<-l.done
			unix.Close(l.listener)
		}
		unix.Close(l.wake[0])
		for _, fd := range l.sock {
			if fd >= 0 {
				unix.Close(fd)
			}
		}
	})
}

// The kernel's structs of seccomp_unotify(2).
type (
	notification struct {
		id   uint64
		pid  uint32
		_    uint32
		nr   int32
		arch uint32
		_    uint64 // instruction pointer
		args [6]uint64
	}
	response struct {
		id    uint64
		val   int64
		error int32
		flags uint32
	}
	addition struct {
		id            uint64
		flags         uint32
		source, newFD uint32
		newFlags      uint32
	}
)

// addFD is SECCOMP_IOCTL_NOTIF_ADDFD, _IOW('!', 3, struct seccomp_notif_addfd).
const addFD = 0x40182103

func (l *lender) serve() {
	defer close(l.done)
	for {
		fds := []unix.PollFd{{Fd: int32(l.listener), Events: unix.POLLIN}, {Fd: int32(l.wake[0])}}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return
		}
		if fds[1].Revents != 0 || fds[0].Revents&^unix.POLLIN != 0 {
			return
		}
		if fds[0].Revents&unix.POLLIN == 0 {
			continue
		}
		var n notification
		if _, err := notify(l.listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)); err != nil {
			continue // it has been killed meanwhile
		}
		// Nothing else is decided here: the call goes on, and meets the mounts.
		r := response{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		if f := l.asked(&n); f != nil {
			// Two steps. With SECCOMP_ADDFD_FLAG_SEND it would be one, but when a signal
			// interrupts that the kernel has the call return 0, which is another descriptor.
			a := addition{id: n.id, source: uint32(f.Fd())}
			fd, err := notify(l.listener, addFD, unsafe.Pointer(&a))
			f.Close()
			if err == nil {
				r = response{id: n.id, val: int64(fd)}
			}
		}
		notify(l.listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&r))
	}
}

func notify(fd int, request uintptr, arg unsafe.Pointer) (uintptr, error) {
	for {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
		if errno == 0 {
			return r, nil
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

// asked opens the file that a call wants to open; nil is none that is lent. The path is
// the process's own memory: lying in it gains nothing but another file that is lent.
func (l *lender) asked(n *notification) *os.File {
	proc := "/proc/" + strconv.Itoa(int(n.pid))
	mem, err := os.Open(proc + "/mem")
	if err != nil {
		return nil
	}
	defer mem.Close()
	path := make([]byte, 64)
	k, _ := mem.ReadAt(path, int64(n.args[1]))
	text, _, ok := bytes.Cut(path[:k], []byte{0})
	if !ok || !slices.Contains(l.paths, string(text)) {
		return nil
	}
	f, err := os.Open(proc + "/root" + string(text))
	if err != nil {
		return nil
	}
	return f
}

// lentFiles returns the paths of the lent ones among files.
func lentFiles(files []File) []string {
	var paths []string
	for _, f := range files {
		if f.Lent {
			paths = append(paths, f.Inside)
		}
	}
	return paths
}
