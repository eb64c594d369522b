package seccomp

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Filter is what seccomp(2) takes with SECCOMP_SET_MODE_FILTER.
type Filter struct {
	// Program is struct sock_filter[], 8 bytes each, at most 4096 of them.
	Program []byte
	Flags   uint32
}

// Len is the number of instructions.
func (f Filter) Len() int { return len(f.Program) / 8 }

// errTooLarge: the kernel would refuse the program.
var errTooLarge = fmt.Errorf("compile seccomp profile: it needs more than the %d instructions that a kernel takes: use fewer conditions on arguments", maxInsn)

// Compile translates the rules for a machine of the given GOARCH. The result
// depends on nothing else, and is the same each time.
func Compile(s *specs.LinuxSeccomp, goarch string) (Filter, error) {
	archs, err := machine(goarch)
	if err != nil {
		return Filter{}, err
	}
	if s == nil {
		return Filter{}, errors.New("compile seccomp profile: there is none")
	}
	if err := check(s); err != nil {
		return Filter{}, fmt.Errorf("compile seccomp profile: %w", err)
	}
	f := Filter{}
	f.Flags, _ = flags(s.Flags)
	def, _ := action(s.DefaultAction, s.DefaultErrnoRet)

	asm := &assembler{rets: make(map[uint32]label)}
	next := asm.ret(retKillThread)
	for i, a := range slices.Backward(archs) {
		if i > 0 && !slices.Contains(s.Architectures, a.name) {
			continue
		}
		sp, err := newSpace(a, s, def)
		if err != nil {
			return Filter{}, err
		}
		start := asm.tree(sp)
		body := asm.then(insn{op: opLoad, k: offNumber}, start)
		next = asm.branch(opJeq, a.audit, body, next)
		if len(asm.back) > maxInsn {
			break
		}
	}
	asm.then(insn{op: opLoad, k: offArch}, next)
	if len(asm.back) > maxInsn {
		return Filter{}, errTooLarge
	}
	f.Program = asm.program()
	return f, nil
}

// verdict is what a filter does with a call: return a result, or look at its
// arguments first.
type verdict struct {
	result uint32
	tests  []test // the first that matches decides, else result
}

// test is one rule with conditions.
type test struct {
	args   []specs.LinuxSeccompArg // all must hold
	result uint32
}

// segment is a run of numbers with one verdict; it ends where the next begins.
type segment struct {
	first uint32
	v     *verdict
	// weight is how much the segment counts when the tree is balanced.
	weight int
}

// space is the whole range of 32-bit call numbers of one architecture.
type space struct {
	bits     int
	segments []segment
}

// newSpace assigns a verdict to every number.
func newSpace(a *convention, s *specs.LinuxSeccomp, def uint32) (space, error) {
	calls, last, err := verdicts(a, s, def)
	if err != nil {
		return space{}, err
	}
	unknown := &verdict{result: def}
	beyond := unknown
	if def != retAllow && def != retLog && def&^0xffff != retTrace && last > 0 {
		beyond = &verdict{result: retErrno | enosys}
	}
	sp := space{bits: a.bits}
	next := uint64(0) // the first number without a verdict
	fill := func(end uint64) {
		if next < end && next <= uint64(last) {
			to := min(end, uint64(last)+1)
			sp.add(next, unknown, 0)
			next = to
		}
		if next < end {
			sp.add(next, beyond, 0)
			next = end
		}
	}
	for _, n := range slices.Sorted(maps.Keys(calls)) {
		fill(uint64(n))
		v := calls[n]
		weight := 1
		if len(v.tests) > 0 {
			weight = testWeight
		}
		sp.add(uint64(n), v, weight)
		next = uint64(n) + 1
	}
	fill(x32Bit)
	switch {
	case a != amd64:
		sp.add(x32Bit, beyond, 0)
	case slices.Contains(s.Architectures, specs.ArchX32):
		sp.add(x32Bit, &verdict{result: retErrno | enosys}, 0)
	default:
		sp.add(x32Bit, &verdict{result: retKillThread}, 0)
	}
	if a == amd64 {
		// A debugger sets the number to -1 to have a call skipped.
		sp.add(1<<32-1, unknown, 0)
	}
	return sp, nil
}

// testWeight moves the calls whose arguments are looked at towards the root.
// Since Linux 5.11 the kernel runs the filter once per number when it is
// installed and remembers which calls are always allowed: afterwards only those
// that are not, and those with conditions, cost anything.
const testWeight = 32

func (sp *space) add(first uint64, v *verdict, weight int) {
	if n := len(sp.segments); n > 0 {
		last := &sp.segments[n-1]
		if len(last.v.tests) == 0 && len(v.tests) == 0 && last.v.result == v.result {
			last.weight += weight
			return
		}
	}
	sp.segments = append(sp.segments, segment{uint32(first), v, weight})
}

// verdicts returns those of the calls that rules name, and the highest number
// that any rule names. It fails with errTooLarge only.
func verdicts(a *convention, s *specs.LinuxSeccomp, def uint32) (map[uint32]*verdict, uint32, error) {
	numbers := a.numbers()
	calls := make(map[uint32]*verdict, len(numbers))
	last, tests := uint32(0), 0
	for _, r := range s.Syscalls {
		result, _ := action(r.Action, r.ErrnoRet)
		always := &verdict{result: result}
		for _, name := range r.Names {
			n, ok := numbers[name]
			if !ok {
				continue
			}
			if n < a.last {
				last = max(last, n)
			}
			v := calls[n]
			if result == def || v != nil && len(v.tests) == 0 {
				continue
			}
			if len(r.Args) == 0 {
				calls[n] = always
				continue
			}
			if v == nil {
				v = &verdict{result: def}
				calls[n] = v
			}
			for _, args := range alternatives(r.Args) {
				// A short text can multiply them without bound.
				if tests++; tests > maxInsn {
					return nil, 0, errTooLarge
				}
				v.tests = append(v.tests, test{args, result})
			}
		}
	}
	return calls, last, nil
}

// alternatives splits conditions of which one suffices; see the package comment.
func alternatives(args []specs.LinuxSeccompArg) [][]specs.LinuxSeccompArg {
	var seen [6]bool
	for _, c := range args {
		if !seen[c.Index] {
			seen[c.Index] = true
			continue
		}
		split := make([][]specs.LinuxSeccompArg, len(args))
		for i := range args {
			split[i] = args[i : i+1]
		}
		return split
	}
	return [][]specs.LinuxSeccompArg{args}
}
