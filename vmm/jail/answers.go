package jail

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// answers are this process's to some system calls of a jailed one. A seccomp filter hands these over
// (seccomp_unotify(2)) and lets all others pass; a process can have one such filter, so it is for
// everybody who wants one.
//
// A handler may have a call fail, succeed or go on as if nothing had been, and put descriptors into
// the process. What it reads of the process's memory the process may change at any time: it must not matter.
type answers struct {
	lender  *lender
	special *special

	sock     [2]int // ours, the child's
	listener int
	wake     [2]int // a pipe whose closing ends the loop
	done     chan struct{}
	once     sync.Once
}

func newAnswers(l *lender, s *special) (*answers, error) {
	a := &answers{lender: l, special: s, listener: -1, done: make(chan struct{})}
	var err error
	if a.sock, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	if err := unix.Pipe2(a.wake[:], unix.O_CLOEXEC); err != nil {
		unix.Close(a.sock[0])
		unix.Close(a.sock[1])
		return nil, os.NewSyscallError("pipe2", err)
	}
	return a, nil
}

// Offsets in struct seccomp_data. Of arguments it is the low half.
const (
	dataNumber = 0
	dataArch   = 4
	dataArgs   = 16
)

// filter is the program that hands over calls: for lending each openat(2) with exactly the flags O_RDWR, since QEMU opens
// with these what it maps, and with O_CLOEXEC everything else; for special files each openat(2) of a path only that
// need not be a directory, and chmod(2), fchmodat(2). QEMU's file server opens so what it changes the mode of, and nothing else.
func (a *answers) filter() ([]byte, error) {
	pass, ask := bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}, bpf.RetConstant{Val: unix.SECCOMP_RET_USER_NOTIF}
	list := []bpf.Instruction{
		bpf.LoadAbsolute{Off: dataArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AUDIT_ARCH_X86_64, SkipTrue: 1},
		pass,
		bpf.LoadAbsolute{Off: dataNumber, Size: 4},
	}
	if a.special != nil {
		for _, call := range []uint32{unix.SYS_CHMOD, unix.SYS_FCHMODAT} {
			list = append(list, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: call, SkipTrue: 1}, ask)
		}
	}
	list = append(list,
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SYS_OPENAT, SkipTrue: 1},
		pass,
		bpf.LoadAbsolute{Off: dataArgs + 2*8, Size: 4},
	)
	if a.lender != nil {
		list = append(list, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.O_RDWR, SkipTrue: 1}, ask)
	}
	if a.special != nil {
		list = append(list,
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: unix.O_PATH | unix.O_DIRECTORY},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.O_PATH, SkipTrue: 1}, ask)
	}
	program, err := bpf.Assemble(append(list, pass))
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
func (a *answers) begin() error {
	unix.Close(a.sock[1])
	a.sock[1] = -1
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(a.sock[0], make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	unix.Close(a.sock[0])
	a.sock[0] = -1
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
	a.listener = fds[0]
	go a.serve()
	return nil
}

// end stops the answers: what is asked from now on fails with ENOSYS. It may be
// called again.
func (a *answers) end() {
	a.once.Do(func() {
		unix.Close(a.wake[1])
		if a.listener >= 0 {
			<-a.done
			unix.Close(a.listener)
			if a.special != nil {
				a.special.forget()
			}
		}
		unix.Close(a.wake[0])
		for _, fd := range a.sock {
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

func (a *answers) serve() {
	var calls sync.WaitGroup
	defer close(a.done)
	defer calls.Wait()
	for {
		fds := []unix.PollFd{{Fd: int32(a.listener), Events: unix.POLLIN}, {Fd: int32(a.wake[0])}}
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
		if _, err := notify(a.listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)); err != nil {
			continue // it has been killed meanwhile
		}
		// Each by itself, for a file system may let one wait. There are no more than the process has threads.
		calls.Go(func() {
			r := a.answer(&n)
			notify(a.listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&r))
		})
	}
}

func (a *answers) answer(n *notification) response {
	if a.special != nil {
		switch n.nr {
		case unix.SYS_CHMOD:
			return a.special.chmod(n, n.args[0], n.args[1])
		case unix.SYS_FCHMODAT:
			return a.special.chmod(n, n.args[1], n.args[2])
		}
		if n.args[2]&unix.O_PATH != 0 {
			return a.special.open(a, n)
		}
	}
	if a.lender != nil {
		if f := a.lender.asked(n); f != nil {
			defer f.Close()
			if fd, err := a.give(n, f); err == nil {
				return response{id: n.id, val: int64(fd)}
			}
		}
	}
	return n.goOn()
}

// goOn has the call be executed as it is. Nothing is decided by it: the call meets the mounts and its rights.
func (n *notification) goOn() response {
	return response{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
}

// fail has the call fail.
func (n *notification) fail(err unix.Errno) response { return response{id: n.id, error: -int32(err)} }

// give puts a descriptor into the process, with O_CLOEXEC or not as the call asks, and returns its number there.
//
// With SECCOMP_ADDFD_FLAG_SEND it would be the answer in the same step, but when a signal interrupts that
// the kernel has the call return 0, which is another descriptor.
func (a *answers) give(n *notification, f *os.File) (int, error) {
	add := addition{id: n.id, source: uint32(f.Fd()), newFlags: uint32(n.args[2] & unix.O_CLOEXEC)}
	fd, err := notify(a.listener, addFD, unsafe.Pointer(&add))
	return int(fd), err
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

// text reads a string of the process's memory of at most max bytes.
func (n *notification) text(address uint64, max int) (string, bool) {
	mem, err := os.Open(n.proc() + "/mem")
	if err != nil {
		return "", false
	}
	defer mem.Close()
	b := make([]byte, max+1)
	k, _ := mem.ReadAt(b, int64(address))
	for i, c := range b[:k] {
		if c == 0 {
			return string(b[:i]), true
		}
	}
	return "", false
}

// proc is the directory of the thread in /proc.
func (n *notification) proc() string { return fmt.Sprintf("/proc/%d", n.pid) }
