package launch

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The three hooks that package syscall calls around its own fork: they hold
// signals back while two processes share what the runtime believes to own.

//go:linkname runtimeBeforeFork syscall.runtime_BeforeFork
func runtimeBeforeFork()

//go:linkname runtimeAfterFork syscall.runtime_AfterFork
func runtimeAfterFork()

//go:linkname runtimeAfterForkInChild syscall.runtime_AfterForkInChild
func runtimeAfterForkInChild()

// forkAndRun clones; the child never returns. Between clone and execve the
// child is one thread of a program that believes to have many: it must not grow its
// stack, allocate, or take a lock, hence nosplit and raw system calls only.
//
//go:noinline
//go:norace
//go:nocheckptr
func forkAndRun(args *cloneArgs, steps []step, slots *[maxSlots]uintptr, answer [2]uintptr) (uintptr, syscall.Errno) {
	runtimeBeforeFork()
	pid, _, errno := syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0)
	if errno != 0 || pid != 0 {
		runtimeAfterFork()
		return pid, errno
	}
	runtimeAfterForkInChild()
	run(steps, slots, answer)
	return 0, 0
}

//go:nosplit
//go:norace
//go:nocheckptr
func run(steps []step, slots *[maxSlots]uintptr, answer [2]uintptr) {
	var r report
	for i := range steps {
		s := &steps[i]
		if s.mode == meet {
			r = report{step: uint32(i)}
			syscall.RawSyscall(unix.SYS_WRITE, slots[reportSlot], uintptr(unsafe.Pointer(&r)), unsafe.Sizeof(r))
			// Without the child's copy of the writing end, the read ends when
			// the parent refuses or dies.
			syscall.RawSyscall(unix.SYS_CLOSE, answer[1], 0, 0)
			var yes byte
			if n, _, _ := syscall.RawSyscall(unix.SYS_READ, answer[0], uintptr(unsafe.Pointer(&yes)), 1); n != 1 {
				r.errno = uint32(unix.ECANCELED)
				break
			}
			r = report{}
			continue
		}
		a := s.args
		for j := range s.from {
			if s.from[j] > 0 {
				a[j] = slots[s.from[j]-1]
			}
		}
		ret, _, errno := syscall.RawSyscall6(s.nr, a[0], a[1], a[2], a[3], a[4], a[5])
		if errno == 0 && s.write && ret != a[2] {
			errno = unix.EIO
		}
		if errno == 0 {
			if s.save > 0 {
				slots[s.save-1] = ret
			}
			continue
		}
		if s.mode == may || s.mode == mayExist && errno == unix.EEXIST {
			continue
		}
		if s.mode == exec && (errno == unix.ENOENT || errno == unix.ENOTDIR || errno == unix.EACCES) {
			// Not here: the next path may do. That one was found but refused
			// is told rather than that others were not found.
			if r.errno != uint32(unix.EACCES) || errno == unix.EACCES {
				r = report{step: uint32(i), errno: uint32(errno)}
			}
			continue
		}
		r = report{step: uint32(i), errno: uint32(errno)}
		break
	}
	syscall.RawSyscall(unix.SYS_WRITE, slots[reportSlot], uintptr(unsafe.Pointer(&r)), unsafe.Sizeof(r))
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 125, 0, 0)
	}
}
