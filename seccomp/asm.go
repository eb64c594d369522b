package seccomp

import "encoding/binary"

// Instructions of classic BPF that a filter needs, from <linux/bpf_common.h>.
const (
	opLoad  = 0x20 // LD|W|ABS: A = data[k:k+4]
	opAnd   = 0x54 // ALU|AND|K: A &= k
	opRet   = 0x06 // RET|K
	opJump  = 0x05 // JMP|JA: forward by k
	opJeq   = 0x15 // JMP|JEQ|K
	opJgt   = 0x25 // JMP|JGT|K, unsigned
	opJge   = 0x35 // JMP|JGE|K, unsigned
	maxHop  = 255  // of a conditional jump
	maxInsn = 4096 // BPF_MAXINSNS
)

// Offsets in struct seccomp_data; arguments follow, 8 bytes each.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

// insn is struct sock_filter.
type insn struct {
	op     uint16
	jt, jf uint8
	k      uint32
}

// label is the place of an instruction, counted from the program's end.
type label int

// assembler writes a program from its end to its beginning. All jumps of
// classic BPF go forward, so their targets are always there already and their distances
// known: no fix-ups.
type assembler struct {
	back []insn
	// rets are the latest copies of the results.
	rets map[uint32]label
}

func (a *assembler) emit(i insn) label {
	a.back = append(a.back, i)
	return label(len(a.back) - 1)
}

// distance from an instruction that is emitted after n more to the target.
func (a *assembler) distance(t label, n int) int { return len(a.back) + n - int(t) - 1 }

// near returns t, or where it is out of reach a copy or a relay. room is how
// many instructions may come between here and the jump.
func (a *assembler) near(t label, room int) label {
	if a.distance(t, room) <= maxHop {
		return t
	}
	i := a.back[t]
	if i.op == opRet {
		return a.emit(i)
	}
	return a.emit(insn{op: opJump, k: uint32(a.distance(t, 0))})
}

// ret returns a place that ends the filter with the result.
func (a *assembler) ret(k uint32) label {
	if l, ok := a.rets[k]; ok && a.distance(l, 0) < maxHop/2 {
		return l
	}
	l := a.emit(insn{op: opRet, k: k})
	a.rets[k] = l
	return l
}

// branch compares A with k.
func (a *assembler) branch(op uint16, k uint32, yes, no label) label {
	yes = a.near(yes, 1)
	no = a.near(no, 0)
	return a.emit(insn{op: op, jt: uint8(a.distance(yes, 0)), jf: uint8(a.distance(no, 0)), k: k})
}

// then emits an instruction that goes on at next.
func (a *assembler) then(i insn, next label) label {
	if d := a.distance(next, 0); d > 0 {
		a.emit(insn{op: opJump, k: uint32(d)})
	}
	return a.emit(i)
}

// program returns struct sock_filter[] as the little-endian kernels that we
// know read it, entered at the last emitted instruction.
func (a *assembler) program() []byte {
	b := make([]byte, 0, 8*len(a.back))
	for n := len(a.back) - 1; n >= 0; n-- {
		i := a.back[n]
		b = binary.LittleEndian.AppendUint16(b, i.op)
		b = append(b, i.jt, i.jf)
		b = binary.LittleEndian.AppendUint32(b, i.k)
	}
	return b
}
