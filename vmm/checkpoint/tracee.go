package checkpoint

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of ptrace(2) and prctl(2) that package unix does not name.
const (
	ptraceGetSigmask = 0x420a
	ptraceGetRseq    = 0x420f
	regsetGeneral    = 1     // NT_PRSTATUS
	regsetExtended   = 0x202 // NT_X86_XSTATE
	prGetTIDAddress  = 40
)

// thread is a stopped thread of the process that is saved.
type thread struct {
	tid int // in the saver's PID namespace
	own int // in the process's own
	// name is its comm.
	name     string
	regs     unix.PtraceRegs
	extended []byte // registers beyond the general ones, as XSAVE lays them out
	mask     uint64 // blocked signals
	cleared  uint64 // the address that is cleared and woken at its end
	robust   [2]uint64
	rseq     rseq
	stack    [3]uint64 // stack_t: the alternate signal stack
}

// rseq is struct ptrace_rseq_configuration.
type rseq struct {
	pointer          uint64
	size             uint32
	signature, flags uint32
	_                uint32
}

// tracee is a process all of whose threads are stopped. Every method runs on the OS thread
// that stopped it.
type tracee struct {
	pid     int
	threads []*thread
	memory  *os.File
	syscall uint64 // address of a system call instruction
}

func ptrace(request, tid int, addr, data uintptr) error {
	for {
		_, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, data, 0, 0)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

// seize stops every thread of a process. The caller calls release in any case.
func seize(pid int) (*tracee, error) {
	t := &tracee{pid: pid}
	// Threads may come while others are being stopped: until a whole round finds none.
	for again := true; again; {
		again = false
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			return t, err
		}
		for _, task := range tasks {
			tid, err := strconv.Atoi(task.Name())
			if err != nil || slices.ContainsFunc(t.threads, func(th *thread) bool { return th.tid == tid }) {
				continue
			}
			err = ptrace(unix.PTRACE_SEIZE, tid, 0, 0)
			switch err {
			case unix.ESRCH:
				continue // it has ended
			case unix.EPERM, unix.ENOSYS:
				return t, fmt.Errorf("this host does not permit ptrace(2) (see kernel.yama.ptrace_scope; in a container its seccomp profile must allow it): %w", err)
			}
			if err != nil {
				return t, fmt.Errorf("trace thread %d: %w", tid, err)
			}
			again = true
			th := &thread{tid: tid}
			t.threads = append(t.threads, th)
			if err := ptrace(unix.PTRACE_INTERRUPT, tid, 0, 0); err != nil {
				return t, fmt.Errorf("stop thread %d: %w", tid, err)
			}
			if err := t.awaitInterrupt(tid); err != nil {
				return t, err
			}
		}
	}
	var err error
	t.memory, err = os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	return t, err
}

// await waits until a thread stands.
func (t *tracee) await(tid int) (unix.WaitStatus, error) {
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(tid, &status, unix.WALL, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("wait for thread %d: %w", tid, err)
		}
		if !status.Stopped() {
			return 0, fmt.Errorf("thread %d has ended", tid)
		}
		return status, nil
	}
}

// awaitInterrupt waits until a thread stands because it was interrupted. A signal may be on its way to the
// thread at that moment, which is delivered first.
func (t *tracee) awaitInterrupt(tid int) error {
	for {
		status, err := t.await(tid)
		if err != nil || int(status)>>16 == unix.PTRACE_EVENT_STOP {
			return err
		}
		if err := ptrace(unix.PTRACE_CONT, tid, 0, uintptr(status.StopSignal())); err != nil {
			return fmt.Errorf("deliver a signal to thread %d: %w", tid, err)
		}
	}
}

// release lets the process go on, as if nothing had been.
func (t *tracee) release() {
	for _, th := range t.threads {
		ptrace(unix.PTRACE_DETACH, th.tid, 0, 0)
	}
	if t.memory != nil {
		t.memory.Close()
	}
}

func (t *tracee) read(address uint64, b []byte) error {
	if _, err := t.memory.ReadAt(b, int64(address)); err != nil {
		return fmt.Errorf("read the process's memory at %#x: %w", address, err)
	}
	return nil
}

// regset reads a set of registers.
func regset(tid int, set uintptr, b []byte) (int, error) {
	iov := unix.Iovec{Base: &b[0], Len: uint64(len(b))}
	if err := ptrace(unix.PTRACE_GETREGSET, tid, set, uintptr(unsafe.Pointer(&iov))); err != nil {
		return 0, fmt.Errorf("read the registers of thread %d: %w", tid, err)
	}
	return int(iov.Len), nil
}

func setRegs(tid int, r *unix.PtraceRegs) error {
	iov := unix.Iovec{Base: (*byte)(unsafe.Pointer(r)), Len: uint64(unsafe.Sizeof(*r))}
	if err := ptrace(unix.PTRACE_SETREGSET, tid, regsetGeneral, uintptr(unsafe.Pointer(&iov))); err != nil {
		return fmt.Errorf("set the registers of thread %d: %w", tid, err)
	}
	return nil
}

// call has a thread perform a system call, and puts its registers back.
func (t *tracee) call(th *thread, nr uintptr, args ...uint64) (uint64, error) {
	var a [6]uint64
	copy(a[:], args)
	r := th.regs
	r.Rip, r.Rax, r.Orig_rax = t.syscall, uint64(nr), ^uint64(0)
	r.Rdi, r.Rsi, r.Rdx, r.R10, r.R8, r.R9 = a[0], a[1], a[2], a[3], a[4], a[5]
	if err := setRegs(th.tid, &r); err != nil {
		return 0, err
	}
	if err := ptrace(unix.PTRACE_SINGLESTEP, th.tid, 0, 0); err != nil {
		return 0, fmt.Errorf("step thread %d: %w", th.tid, err)
	}
	if _, err := t.await(th.tid); err != nil {
		return 0, err
	}
	var after unix.PtraceRegs
	if _, err := regset(th.tid, regsetGeneral, (*[unsafe.Sizeof(after)]byte)(unsafe.Pointer(&after))[:]); err != nil {
		return 0, err
	}
	if err := setRegs(th.tid, &th.regs); err != nil {
		return 0, err
	}
	if after.Rip != t.syscall+2 {
		return 0, fmt.Errorf("thread %d did not perform a system call", th.tid)
	}
	if after.Rax >= ^uint64(4094) {
		return 0, unix.Errno(-int64(after.Rax))
	}
	return after.Rax, nil
}

// maxExtended bounds the extended registers, bytes; AVX-512 takes 2.7 KB, AMX 11.
const maxExtended = 64 << 10

// inspect reads all that a thread has of its own.
func (t *tracee) inspect(th *thread) error {
	regs := (*[unsafe.Sizeof(th.regs)]byte)(unsafe.Pointer(&th.regs))[:]
	if _, err := regset(th.tid, regsetGeneral, regs); err != nil {
		return err
	}
	b := make([]byte, maxExtended)
	n, err := regset(th.tid, regsetExtended, b)
	if err != nil {
		return err
	}
	th.extended = b[:n]
	if err := ptrace(ptraceGetSigmask, th.tid, 8, uintptr(unsafe.Pointer(&th.mask))); err != nil {
		return fmt.Errorf("read the signal mask of thread %d: %w", th.tid, err)
	}
	if err := ptrace(ptraceGetRseq, th.tid, unsafe.Sizeof(th.rseq), uintptr(unsafe.Pointer(&th.rseq))); err != nil {
		return fmt.Errorf("read the restartable sequences of thread %d: %w", th.tid, err)
	}
	if _, _, errno := unix.Syscall(unix.SYS_GET_ROBUST_LIST, uintptr(th.tid),
		uintptr(unsafe.Pointer(&th.robust[0])), uintptr(unsafe.Pointer(&th.robust[1]))); errno != 0 {
		return fmt.Errorf("read the robust list of thread %d: %w", th.tid, errno)
	}
	dir := fmt.Sprintf("/proc/%d/task/%d/", t.pid, th.tid)
	name, err := os.ReadFile(dir + "comm")
	if err != nil {
		return err
	}
	th.name = strings.TrimSuffix(string(name), "\n")
	status, err := os.ReadFile(dir + "status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		switch name, value, _ := strings.Cut(line, ":"); name {
		case "NSpid":
			own := strings.Fields(value)
			if th.own, err = strconv.Atoi(own[len(own)-1]); err != nil {
				return fmt.Errorf("read the PID of thread %d: %w", th.tid, err)
			}
		case "SigPnd", "ShdPnd": // of the thread, of the process
			if strings.Trim(strings.TrimSpace(value), "0") != "" {
				return fmt.Errorf("a signal is pending for thread %d", th.tid)
			}
		}
	}
	return nil
}

// scratch is the address of some memory of a thread's stack, beyond all that is in use, red zone included.
func (th *thread) scratch() uint64 { return (th.regs.Rsp - 4096) &^ 63 }

// interrogate has a thread say what only itself can find out.
func (t *tracee) interrogate(th *thread) error {
	at := th.scratch()
	if _, err := t.call(th, unix.SYS_PRCTL, prGetTIDAddress, at); err != nil {
		return fmt.Errorf("ask thread %d for its TID's address (CONFIG_CHECKPOINT_RESTORE): %w", th.tid, err)
	}
	b := make([]byte, 24)
	if err := t.read(at, b[:8]); err != nil {
		return err
	}
	th.cleared = binary.LittleEndian.Uint64(b)
	if _, err := t.call(th, unix.SYS_SIGALTSTACK, 0, at); err != nil {
		return fmt.Errorf("ask thread %d for its signal stack: %w", th.tid, err)
	}
	if err := t.read(at, b); err != nil {
		return err
	}
	for i := range th.stack {
		th.stack[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return nil
}

// sigaction is the kernel's struct of rt_sigaction(2).
type sigaction struct{ handler, flags, restorer, mask uint64 }

const signals = 64

// actions returns what the process does with each signal.
func (t *tracee) actions() ([signals + 1]sigaction, error) {
	var all [signals + 1]sigaction
	th := t.threads[0]
	at := th.scratch()
	for sig := 1; sig <= signals; sig++ {
		if sig == int(unix.SIGKILL) || sig == int(unix.SIGSTOP) {
			continue
		}
		if _, err := t.call(th, unix.SYS_RT_SIGACTION, uint64(sig), 0, at, 8); err != nil {
			return all, fmt.Errorf("ask for the action of signal %d: %w", sig, err)
		}
		b := (*[unsafe.Sizeof(all[0])]byte)(unsafe.Pointer(&all[sig]))[:]
		if err := t.read(at, b); err != nil {
			return all, err
		}
	}
	return all, nil
}

// layout is struct prctl_mm_map of prctl(2): what the kernel knows of the parts of a process's memory.
type layout struct {
	startCode, endCode, startData, endData, startBrk, brk, startStack uint64
	startArgs, endArgs, startEnvironment, endEnvironment              uint64
	auxiliary                                                         uint64
	auxiliarySize, program                                            uint32
}

// layout returns it. The end of the heap is the part that matters: a C library that frees memory there
// believes the kernel, and would go on with another program's heap if that were the resumer's.
func (t *tracee) layout() (*layout, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", t.pid))
	if err != nil {
		return nil, err
	}
	l, err := parseLayout(string(b))
	if err != nil {
		return nil, err
	}
	if l.brk, err = t.call(t.threads[0], unix.SYS_BRK, 0); err != nil {
		return nil, fmt.Errorf("ask for the end of the heap: %w", err)
	}
	return l, nil
}

// parseLayout reads /proc/PID/stat, which has everything but the heap's end.
func parseLayout(stat string) (*layout, error) {
	const first = 3 // number of the field after the name, as proc(5) counts
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	l := &layout{program: ^uint32(0)}
	for number, to := range map[int]*uint64{
		26: &l.startCode, 27: &l.endCode, 28: &l.startStack, 45: &l.startData, 46: &l.endData, 47: &l.startBrk,
		48: &l.startArgs, 49: &l.endArgs, 50: &l.startEnvironment, 51: &l.endEnvironment,
	} {
		if number-first >= len(fields) {
			return nil, errors.New("read the process's layout: fields are missing")
		}
		var err error
		if *to, err = strconv.ParseUint(fields[number-first], 10, 64); err != nil || *to == 0 {
			return nil, fmt.Errorf("read the process's layout: field %d is %q", number, fields[number-first])
		}
	}
	return l, nil
}

// resumer returns the address of the resumer's code, if the process was itself continued by one; else 0.
func (t *tracee) resumer() (uint64, error) {
	const entry = 9 // AT_ENTRY
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/auxv", t.pid))
	if err != nil {
		return 0, err
	}
	for pair := range slices.Chunk(b, 16) {
		if len(pair) < 16 || binary.LittleEndian.Uint64(pair) != entry {
			continue
		}
		at := binary.LittleEndian.Uint64(pair[8:])
		there := make([]byte, resumerSize)
		if err := t.read(at, there); err != nil {
			return 0, nil // a loader's, unmapped since
		}
		if bytes.Equal(there, code()) {
			return at, nil
		}
	}
	return 0, nil
}

// timers refuses a process that has timers of the kernel's own.
func (t *tracee) timers() error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/timers", t.pid))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if len(b) > 0 {
		return errors.New("it has timers (timer_create(2))")
	}
	return nil
}

// findSyscall finds a system call instruction in the vDSO.
func (t *tracee) findSyscall(areas []area) error {
	for _, a := range areas {
		if a.name != "[vdso]" {
			continue
		}
		b := make([]byte, a.size())
		if err := t.read(a.start, b); err != nil {
			return err
		}
		for i := range len(b) - 1 {
			if b[i] == 0x0f && b[i+1] == 0x05 {
				t.syscall = a.start + uint64(i)
				return nil
			}
		}
	}
	return errors.New("the process has no vDSO")
}
