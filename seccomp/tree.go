package seccomp

import "github.com/opencontainers/runtime-spec/specs-go"

// tree emits a search over the space with the call's number in A: about
// log2(n) comparisons, where a list would take up to n.
func (a *assembler) tree(sp space) label { return a.subtree(sp.bits, sp.segments) }

func (a *assembler) subtree(bits int, s []segment) label {
	if len(a.back) > maxInsn {
		return 0 // given up by Compile
	}
	if len(s) == 1 {
		return a.verdict(bits, s[0].v)
	}
	m := middle(s)
	right := a.subtree(bits, s[m:])
	left := a.subtree(bits, s[:m])
	return a.branch(opJge, s[m].first, right, left)
}

// middle finds where to cut so that both parts weigh about the same. Every
// segment weighs something, or those without calls would make the tree deep.
func middle(s []segment) int {
	total := len(s)
	for i := range s {
		total += s[i].weight
	}
	best, at, sum := total, 1, 0
	for i := 1; i < len(s); i++ {
		sum += s[i-1].weight + 1
		if d := max(sum, total-sum); d < best {
			best, at = d, i
		}
	}
	return at
}

// verdict emits the tests of one call.
func (a *assembler) verdict(bits int, v *verdict) label {
	next := a.ret(v.result)
	for i := len(v.tests) - 1; i >= 0 && len(a.back) <= maxInsn; i-- {
		t := v.tests[i]
		yes := a.ret(t.result)
		for j := len(t.args) - 1; j >= 0; j-- {
			yes = a.condition(bits, t.args[j], yes, next)
		}
		next = yes
	}
	return next
}

// condition emits one comparison of an argument, which is 64 bits wide, in
// halves: BPF has 32.
func (a *assembler) condition(bits int, c specs.LinuxSeccompArg, yes, no label) label {
	op, k := c.Op, c.Value
	// The negative operators are the positive ones with the outcomes exchanged.
	switch op {
	case specs.OpNotEqual:
		op, yes, no = specs.OpEqualTo, no, yes
	case specs.OpLessThan:
		op, yes, no = specs.OpGreaterEqual, no, yes
	case specs.OpLessEqual:
		op, yes, no = specs.OpGreaterThan, no, yes
	}
	mask := ^uint64(0)
	var jump uint16 = opJeq
	switch op {
	case specs.OpMaskedEqual:
		mask, k = c.Value, c.ValueTwo&c.Value
	case specs.OpGreaterEqual:
		jump = opJge
	case specs.OpGreaterThan:
		jump = opJgt
	}
	low := yes
	if uint32(mask) != 0 {
		low = a.branch(jump, uint32(k), yes, no)
		low = a.load(c.Index, 0, uint32(mask), low)
	}
	if bits == 32 || mask>>32 == 0 {
		return low
	}
	// The high half decides, unless it is equal.
	high := a.branch(opJeq, uint32(k>>32), low, no)
	if jump != opJeq {
		high = a.branch(opJgt, uint32(k>>32), yes, high)
	}
	return a.load(c.Index, 4, uint32(mask>>32), high)
}

// load emits A = half of an argument & mask, going on at next.
func (a *assembler) load(index uint, half, mask uint32, next label) label {
	if mask != ^uint32(0) {
		next = a.then(insn{op: opAnd, k: mask}, next)
	}
	return a.then(insn{op: opLoad, k: offArgs + 8*uint32(index) + half}, next)
}
