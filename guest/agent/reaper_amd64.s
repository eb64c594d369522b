#include "textflag.h"

// The whole program of a reaper; reaper.go makes an executable file of it. It runs
// alone in its process, on the stack that execve(2) left, where argc lies on top.
TEXT reaperCode<>(SB), NOSPLIT|NOFRAME, $0
	MOVQ	0(SP), R12	// argc
	LEAQ	-128(SP), BX	// scratch below the arguments

	// prctl(PR_SET_NAME, "manis-init")
	MOVQ	$0x6e692d73696e616d, AX
	MOVQ	AX, 0(BX)
	MOVQ	$0x7469, AX
	MOVQ	AX, 8(BX)
	MOVL	$157, AX
	MOVL	$15, DI
	MOVQ	BX, SI
	SYSCALL

	// rt_sigprocmask(SIG_SETMASK, all): process 1 is not sent what it neither
	// handles nor blocks.
	MOVQ	$-1, AX
	MOVQ	AX, 0(BX)
	MOVL	$14, AX
	MOVL	$2, DI
	MOVQ	BX, SI
	XORL	DX, DX
	MOVL	$8, R10
	SYSCALL

next:
	// rt_sigtimedwait(all, NULL, NULL)
	MOVL	$128, AX
	MOVQ	BX, DI
	XORL	SI, SI
	XORL	DX, DX
	MOVL	$8, R10
	SYSCALL
	CMPL	AX, $17		// SIGCHLD
	JEQ	reap
	CMPL	AX, $0
	JLE	next
	CMPQ	R12, $1		// with an argument: do not pass signals on
	JNE	next
	// kill(2, signal)
	MOVL	AX, SI
	MOVL	$62, AX
	MOVL	$2, DI
	SYSCALL
	JMP	next

reap:
	// wait4(-1, NULL, WNOHANG, NULL) until there is no more
	MOVL	$61, AX
	MOVQ	$-1, DI
	XORL	SI, SI
	MOVL	$1, DX
	XORL	R10, R10
	SYSCALL
	CMPL	AX, $0
	JGT	reap
	JMP	next

// The address as a value: Go code that names the function would get that of a
// wrapper.
DATA ·reaperStart(SB)/8, $reaperCode<>(SB)
GLOBL ·reaperStart(SB), RODATA, $8
