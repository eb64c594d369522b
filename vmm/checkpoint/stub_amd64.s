#include "textflag.h"

// The resumer's code. It is not called: it is copied into the program that Save writes, where the
// kernel starts it with nothing but the arguments on its stack. It performs the steps
// at stepsOffset from its beginning, each of twelve words (see step), and has no end. It reads the stack
// that the kernel has made first and never again: the steps may map over it.
//
// R12 is the address of the vDSO, BX the step.
TEXT ·resumer(SB), NOSPLIT|NOFRAME, $0-0
	MOVQ	SP, SI
	MOVQ	0(SI), AX         // argc
	LEAQ	16(SI)(AX*8), SI  // after the arguments
environment:
	MOVQ	0(SI), AX
	ADDQ	$8, SI
	TESTQ	AX, AX
	JNE	environment
	XORL	R12, R12
	XORL	BX, BX
auxiliary:
	MOVQ	0(SI), AX
	MOVQ	8(SI), DX
	ADDQ	$16, SI
	TESTQ	AX, AX
	JEQ	begin
	CMPQ	AX, $33           // AT_SYSINFO_EHDR
	JNE	notHeader
	MOVQ	DX, R12
notHeader:
	CMPQ	AX, $9            // AT_ENTRY: where this code begins
	JNE	auxiliary
	MOVQ	DX, BX
	JMP	auxiliary
begin:
	ADDQ	$0x2000, BX       // stepsOffset
perform:
	MOVQ	0(BX), AX
	MOVQ	8(BX), DI
	MOVQ	16(BX), SI
	MOVQ	24(BX), DX
	MOVQ	32(BX), R10
	MOVQ	40(BX), R8
	MOVQ	48(BX), R9
	MOVQ	56(BX), R14
	TESTQ	$1, R14           // fromVDSO
	JEQ	notVDSO
	ADDQ	R12, DI
	CMPQ	DI, R8
	JEQ	next              // it lies there already
notVDSO:
	TESTQ	$2, R14           // onFrame
	JEQ	notFrame
	MOVQ	DI, SP
notFrame:
	SYSCALL
	TESTQ	$4, R14           // makesThread
	JEQ	notThread
	TESTQ	AX, AX
	JNE	notThread
	MOVQ	64(BX), BX        // the thread's own steps
	JMP	perform
notThread:
	TESTQ	$8, R14           // mayFail
	JNE	next
	CMPQ	AX, $-4095
	JCC	failed
	TESTQ	$16, R14          // checked
	JEQ	next
	CMPQ	AX, 88(BX)
	JNE	failed
next:
	ADDQ	$96, BX
	JMP	perform
failed:
	MOVQ	AX, R15
	MOVL	$1, AX            // write(2): what failed
	MOVL	$2, DI
	MOVQ	72(BX), SI
	MOVQ	80(BX), DX
	SYSCALL
	NEGQ	R15
	MOVQ	R15, DI
	ANDQ	$127, DI
	MOVL	$231, AX          // exit_group(2)
	SYSCALL
	UNDEF

// func resumerCode() unsafe.Pointer
TEXT ·resumerCode(SB), NOSPLIT, $0-8
	LEAQ	·resumer(SB), AX
	MOVQ	AX, ret+0(FP)
	RET

// func cpuid(leaf, sub uint32) (eax, ebx, ecx, edx uint32)
TEXT ·cpuid(SB), NOSPLIT, $0-24
	MOVL	leaf+0(FP), AX
	MOVL	sub+4(FP), CX
	CPUID
	MOVL	AX, eax+8(FP)
	MOVL	BX, ebx+12(FP)
	MOVL	CX, ecx+16(FP)
	MOVL	DX, edx+20(FP)
	RET
