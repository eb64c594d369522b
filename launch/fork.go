package launch

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Attr is how a child is cloned.
type Attr struct {
	// Namespaces is any of the CLONE_NEW* flags.
	Namespaces uintptr
	// CgroupFD, when UseCgroup is set, is an open cgroup v2 directory in which
	// the child begins its life.
	CgroupFD  int
	UseCgroup bool
}

// Child is a process that has executed its program.
type Child struct {
	PID int
	// FD is a pidfd, which the caller closes; -1 where the kernel has none.
	FD int
}

// StepError says which step of a Program failed in the child.
type StepError struct {
	Step string
	// Exec is set when everything but the execution itself succeeded.
	Exec bool
	Err  syscall.Errno
}

func (e *StepError) Error() string { return fmt.Sprintf("%s: %s", e.Step, e.Err.Error()) }
func (e *StepError) Unwrap() error { return e.Err }

// cloneArgs is struct clone_args of clone3(2).
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// report is what the child writes when it fails.
type report struct {
	step  uint32
	errno uint32
}

// Fork clones a child from the calling thread, whose namespaces,
// credentials and working directory it inherits, and lets it perform the
// program. It returns when the child has executed, or with a StepError. The
// caller reaps the child in both cases with wait4, unless reap is set: then a
// child that failed is reaped here.
//
// The child is a copy (no CLONE_VM): nothing that it does to its memory is seen by
// the parent.
func Fork(p *Program, attr Attr, reap bool) (Child, error) {
	if p.err != nil {
		return Child{}, p.err
	}
	if len(p.steps) == 0 {
		return Child{}, errors.New("start process: empty program")
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return Child{}, os.NewSyscallError("pipe2", err)
	}
	defer unix.Close(pipe[0])
	answer := [2]int{-1, -1}
	if len(p.meets) > 0 {
		if err := unix.Pipe2(answer[:], unix.O_CLOEXEC); err != nil {
			unix.Close(pipe[1])
			return Child{}, os.NewSyscallError("pipe2", err)
		}
	}

	// The kernel writes the pidfd through an address that Go cannot see as a
	// pointer: it must be on the heap and stay there.
	pidfd := new(int32)
	*pidfd = -1
	var pin runtime.Pinner
	pin.Pin(pidfd)
	defer pin.Unpin()
	args := &cloneArgs{
		flags:      uint64(attr.Namespaces) | unix.CLONE_PIDFD,
		pidfd:      uint64(uintptr(unsafe.Pointer(pidfd))),
		exitSignal: uint64(unix.SIGCHLD),
	}
	if attr.UseCgroup {
		args.flags |= unix.CLONE_INTO_CGROUP
		args.cgroup = uint64(attr.CgroupFD)
	}
	var slots [maxSlots]uintptr
	slots[reportSlot] = uintptr(pipe[1])
	syscall.ForkLock.Lock()
	pid, errno := forkAndRun(args, p.steps, &slots, [2]uintptr{uintptr(answer[0]), uintptr(answer[1])})
	syscall.ForkLock.Unlock()
	unix.Close(pipe[1])
	if answer[0] >= 0 {
		unix.Close(answer[0])
	}
	if errno != 0 {
		if answer[1] >= 0 {
			unix.Close(answer[1])
		}
		return Child{}, os.NewSyscallError("clone3", errno)
	}
	child := Child{PID: int(pid), FD: int(*pidfd)}
	err := follow(p, child.PID, pipe[0], answer[1])
	if err == nil {
		return child, nil
	}
	if reap {
		var status unix.WaitStatus
		for {
			if _, e := unix.Wait4(child.PID, &status, 0, nil); e != unix.EINTR {
				break
			}
		}
	}
	if child.FD >= 0 {
		unix.Close(child.FD)
		child.FD = -1
	}
	return child, err
}

// follow reads what the child reports until it has executed, which closes
// the pipe, and answers its meetings. It closes answer.
func follow(p *Program, pid, pipe, answer int) error {
	met := 0
	var refused error
	hangUp := func() {
		if answer >= 0 {
			unix.Close(answer)
			answer = -1
		}
	}
	defer hangUp()
	for {
		var r report
		buf := (*[unsafe.Sizeof(r)]byte)(unsafe.Pointer(&r))[:]
		n, err := readFull(pipe, buf)
		switch {
		case err == nil && n == 0 && refused == nil && met == len(p.meets):
			return nil
		case refused != nil:
			return refused
		case err != nil || n != len(buf) || int(r.step) >= len(p.steps):
			return errors.New("start process: it ended before it could execute")
		case r.errno == 0 && met < len(p.meets) && p.meets[met].step == int(r.step):
			if err := p.meets[met].do(pid); err != nil {
				refused = fmt.Errorf("%s: %w", p.what[r.step], err)
				hangUp()
			} else if _, err := unix.Write(answer, []byte{1}); err != nil {
				refused = fmt.Errorf("%s: %w", p.what[r.step], err)
			}
			met++
		default:
			return &StepError{Step: p.what[r.step], Exec: p.steps[r.step].mode == exec, Err: syscall.Errno(r.errno)}
		}
	}
}

func readFull(fd int, buf []byte) (int, error) {
	n := 0
	for n < len(buf) {
		m, err := unix.Read(fd, buf[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return n, err
		}
		if m == 0 {
			break
		}
		n += m
	}
	return n, nil
}
