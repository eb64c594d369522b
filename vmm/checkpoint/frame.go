package checkpoint

import (
	"encoding/binary"
	"fmt"
)

// Constants of the kernel's signal frame (arch/x86/include/uapi/asm/sigcontext.h and
// ucontext.h).
const (
	frameExtended   = 1 | 2 | 4 // UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS
	extendedMagic1  = 0x46505853
	extendedMagic2  = 0x46505845
	legacySize      = 512 // of the FXSAVE part
	softwareOffset  = 464 // in it: what software may use
	minExtendedSize = legacySize + 64
)

// Errors by which the kernel says that a system call is to be restarted; they never
// reach a program, but a tracer sees them (include/linux/errno.h).
const (
	restartSys   = -512
	restartNoInt = -513
	restartNoHnd = -514
	restartBlock = -516
)

// frame returns the signal frame from which rt_sigreturn(2) restores a thread's registers, mask and
// signal stack, given the address at which the extended registers lie.
func (th *thread) frame(extended uint64) []byte {
	r := th.regs
	if int64(r.Orig_rax) >= 0 {
		switch int64(r.Rax) {
		case restartSys, restartNoInt, restartNoHnd:
			r.Rax = r.Orig_rax
			r.Rip -= 2
		case restartBlock:
			r.Rax = ^uint64(3) // -EINTR
		}
	}
	words := []uint64{frameExtended, 0}
	words = append(words, th.stack[:]...)
	words = append(words,
		r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15,
		r.Rdi, r.Rsi, r.Rbp, r.Rbx, r.Rdx, r.Rax, r.Rcx, r.Rsp, r.Rip, r.Eflags,
		r.Cs&0xffff|(r.Ss&0xffff)<<48, // cs, gs, fs, ss
		0, 0, 0, 0,                    // err, trapno, oldmask, cr2
		extended,
		0, 0, 0, 0, 0, 0, 0, 0,
		th.mask)
	var b []byte
	for _, w := range words {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return b
}

// extendedState returns the extended registers as a signal frame holds them, given where each component
// ends. Only those in use are put in: ptrace(2) also shows what a process may ask the kernel
// for (AMX), and of a frame that is longer than what it has asked for the kernel restores
// the oldest registers only.
func (th *thread) extendedState(end func(component int) int) ([]byte, error) {
	if len(th.extended) < minExtendedSize {
		return nil, fmt.Errorf("thread %d has extended registers of %d bytes", th.tid, len(th.extended))
	}
	le := binary.LittleEndian
	used, compacted := le.Uint64(th.extended[legacySize:]), le.Uint64(th.extended[legacySize+8:])
	size := minExtendedSize
	for i := 2; i < 64; i++ {
		if used>>i&1 != 0 {
			size = max(size, end(i))
		}
	}
	if size > len(th.extended) || compacted != 0 {
		return nil, fmt.Errorf("thread %d has extended registers of an unknown layout", th.tid)
	}
	b := append([]byte(nil), th.extended[:size]...)
	features := le.Uint64(b[softwareOffset:]) // as ptrace gives it
	clear(b[softwareOffset:legacySize])
	le.PutUint32(b[softwareOffset:], extendedMagic1)
	le.PutUint32(b[softwareOffset+4:], uint32(len(b)+4))
	le.PutUint64(b[softwareOffset+8:], features)
	le.PutUint32(b[softwareOffset+16:], uint32(len(b)))
	return le.AppendUint32(b, extendedMagic2), nil
}
