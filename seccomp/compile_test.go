package seccomp

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// reference says what a profile means, straight from its text and rule by rule.
func reference(s *specs.LinuxSeccomp, goarch string, c call) uint32 {
	result := func(a specs.LinuxSeccompAction, errno *uint) uint32 {
		data := uint32(1)
		if errno != nil {
			data = uint32(*errno)
		}
		switch a {
		case specs.ActKillProcess:
			return 0x80000000
		case specs.ActTrap:
			return 0x30000
		case specs.ActErrno:
			return 0x50000 + data
		case specs.ActTrace:
			return 0x7ff00000 + data
		case specs.ActLog:
			return 0x7ffc0000
		case specs.ActAllow:
			return 0x7fff0000
		}
		return 0
	}
	def := result(s.DefaultAction, s.DefaultErrnoRet)
	var table *arch.Info
	bits := 64
	switch {
	case goarch == "amd64" && c.audit == 0xc000003e:
		if c.number >= 0x40000000 && c.number != 0xffffffff {
			if slices.Contains(s.Architectures, specs.ArchX32) {
				return 0x50000 + 38
			}
			return 0
		}
		table = arch.X86_64
	case goarch == "amd64" && c.audit == 0x40000003 && slices.Contains(s.Architectures, specs.ArchX86):
		table, bits = arch.I386, 32
	case goarch == "arm64" && c.audit == 0xc00000b7:
		table = arch.AARCH64
	case goarch == "arm64" && c.audit == 0x40000028 && slices.Contains(s.Architectures, specs.ArchARM):
		table, bits = arch.ARM, 32
	default:
		return 0
	}
	highest := -1
	var conditional []uint32
	conditions := false
	for _, r := range s.Syscalls {
		ret := result(r.Action, r.ErrnoRet)
		for _, name := range r.Names {
			if table == arch.AARCH64 && name == "newfstatat" {
				name = "fstatat"
			} else if table == arch.AARCH64 && only32(name) {
				continue
			}
			n, ok := table.SyscallNames[name]
			if !ok {
				continue
			}
			if n < 0xf0000 {
				highest = max(highest, n)
			}
			if uint32(n) != c.number || ret == def {
				continue
			}
			if len(r.Args) == 0 {
				return ret
			}
			conditions = true
			hold, repeated := 0, false
			seen := map[uint]bool{}
			for _, a := range r.Args {
				repeated = repeated || seen[a.Index]
				seen[a.Index] = true
				if holds(a, c.args[a.Index], bits) {
					hold++
				}
			}
			if hold == len(r.Args) || repeated && hold > 0 {
				conditional = append(conditional, ret)
			}
		}
	}
	lenient := slices.Contains([]specs.LinuxSeccompAction{specs.ActAllow, specs.ActLog, specs.ActTrace}, s.DefaultAction)
	skipped := c.number == 0xffffffff && table == arch.X86_64
	switch {
	case len(conditional) > 0:
		return conditional[0]
	case conditions: // of a number above the others, private to ARM
		return def
	case highest > 0 && int64(c.number) > int64(highest) && !skipped && !lenient:
		return 0x50000 + 38
	}
	return def
}

// only32 says that a call of the arm64 table of go-seccomp-bpf exists on 32-bit
// architectures only, or has another name.
func only32(name string) bool {
	n := arch.AARCH64.SyscallNames[name]
	return n >= 403 && n <= 423 || name == "fstatat"
}

func holds(a specs.LinuxSeccompArg, v uint64, bits int) bool {
	x, y := a.Value, a.ValueTwo
	if bits == 32 {
		v, x, y = uint64(uint32(v)), uint64(uint32(x)), uint64(uint32(y))
	}
	switch a.Op {
	case specs.OpEqualTo:
		return v == x
	case specs.OpNotEqual:
		return v != x
	case specs.OpLessThan:
		return v < x
	case specs.OpLessEqual:
		return v <= x
	case specs.OpGreaterThan:
		return v > x
	case specs.OpGreaterEqual:
		return v >= x
	}
	return v&x == y&x
}

var (
	values = []uint64{0, 1, 2, 0x10, 0x7fffffff, 0x80000000, 0xffffffff, 1 << 32, 1<<32 + 1, 0x1_8000_0000, 1<<63 - 1, 1 << 63, 1<<64 - 1, 0x7e020000, 0x5401}
	ops    = []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpMaskedEqual}
	acts   = []specs.LinuxSeccompAction{specs.ActAllow, specs.ActErrno, specs.ActKill, specs.ActKillThread, specs.ActKillProcess, specs.ActTrap, specs.ActTrace, specs.ActLog}
)

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

func value(r *rand.Rand) uint64 {
	if r.IntN(3) == 0 {
		return r.Uint64() >> r.IntN(64)
	}
	return pick(r, values)
}

func errno(r *rand.Rand, a specs.LinuxSeccompAction) *uint {
	if a != specs.ActErrno && a != specs.ActTrace || r.IntN(2) == 0 {
		return nil
	}
	n := uint(r.IntN(4096))
	return &n
}

// random makes a profile, and returns its machine.
func random(r *rand.Rand) (*specs.LinuxSeccomp, string) {
	goarch := pick(r, []string{"amd64", "amd64", "arm64"})
	s := &specs.LinuxSeccomp{DefaultAction: pick(r, acts)}
	s.DefaultErrnoRet = errno(r, s.DefaultAction)
	for _, a := range []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32, specs.ArchARM, specs.ArchMIPS} {
		if r.IntN(2) == 0 {
			s.Architectures = append(s.Architectures, a)
		}
	}
	names := []string{"no_such_call"}
	for _, t := range []*arch.Info{arch.X86_64, arch.I386, arch.ARM} {
		for n := range 460 {
			if name, ok := t.SyscallNumbers[n]; ok {
				names = append(names, name)
			}
		}
	}
	few := names[:0:0]
	for range 1 + r.IntN(40) {
		few = append(few, pick(r, names))
	}
	for range r.IntN(60) {
		rule := specs.LinuxSyscall{Action: pick(r, acts)}
		rule.ErrnoRet = errno(r, rule.Action)
		for range 1 + r.IntN(6) {
			if r.IntN(3) == 0 {
				rule.Names = append(rule.Names, pick(r, names))
			} else {
				rule.Names = append(rule.Names, pick(r, few))
			}
		}
		if r.IntN(2) == 0 {
			for range 1 + r.IntN(4) {
				rule.Args = append(rule.Args, specs.LinuxSeccompArg{Index: uint(r.IntN(6)), Value: value(r), ValueTwo: value(r), Op: pick(r, ops)})
			}
		}
		s.Syscalls = append(s.Syscalls, rule)
	}
	return s, goarch
}

// calls makes system calls near what the profile speaks of.
func calls(r *rand.Rand, s *specs.LinuxSeccomp, n int) []call {
	var list []call
	audits := []uint32{0xc000003e, 0xc000003e, 0x40000003, 0xc00000b7, 0xc00000b7, 0x40000028, 0x1234}
	tables := []*arch.Info{arch.X86_64, arch.I386, arch.AARCH64, arch.ARM}
	for range n {
		c := call{audit: pick(r, audits)}
		switch r.IntN(6) {
		case 0:
			c.number = uint32(r.IntN(480))
		case 1:
			c.number = pick(r, []uint32{0, 1, 0x3fffffff, 0x40000000, 0x40000001, 0x400001ff, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff, 0xf0001, 0xf0007})
		default:
			if len(s.Syscalls) > 0 {
				num := pick(r, tables).SyscallNames[pick(r, pick(r, s.Syscalls).Names)]
				c.number = uint32(num)
			}
		}
		for i := range c.args {
			c.args[i] = value(r)
			if len(s.Syscalls) > 0 && r.IntN(2) == 0 {
				if rule := pick(r, s.Syscalls); len(rule.Args) > 0 {
					a := pick(r, rule.Args)
					c.args[i] = pick(r, []uint64{a.Value, a.Value + 1, a.Value - 1, a.ValueTwo, a.Value ^ 1<<32, a.ValueTwo | ^a.Value})
				}
			}
			if c.audit&0x80000000 == 0 {
				c.args[i] = uint64(uint32(c.args[i])) // as the kernel fills them in
			}
		}
		list = append(list, c)
	}
	return list
}

func compare(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	s, goarch := random(r)
	f, err := Compile(s, goarch)
	if err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	for _, c := range calls(r, s, 400) {
		got, _, err := run(f.Program, c)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if want := reference(s, goarch, c); got != want {
			t.Fatalf("seed %d, %s: call %#x with %#x: %#x, want %#x", seed, goarch, c.number, c.args, got, want)
		}
	}
}

func TestCompiledProfileMeansWhatItSays(t *testing.T) {
	for seed := range uint64(400) {
		compare(t, seed)
	}
}

func FuzzCompiledProfileMeansWhatItSays(f *testing.F) {
	f.Add(uint64(1000))
	f.Fuzz(compare)
}

func TestDefaultProfileAgainstReference(t *testing.T) {
	for _, goarch := range []string{"amd64", "arm64"} {
		for name, caps := range map[string][]string{
			"no capabilities": nil,
			"an admin":        {"CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE"},
		} {
			t.Run(goarch+" "+name, func(t *testing.T) {
				s, err := Default().Resolve(Target{GOARCH: goarch, Capabilities: caps})
				if err != nil {
					t.Fatal(err)
				}
				f, err := Compile(s, goarch)
				if err != nil {
					t.Fatal(err)
				}
				r := rand.New(rand.NewPCG(7, 7))
				for _, c := range calls(r, s, 20000) {
					got, _, err := run(f.Program, c)
					if err != nil {
						t.Fatal(err)
					}
					if want := reference(s, goarch, c); got != want {
						t.Fatalf("call %#x with %#x: %#x, want %#x", c.number, c.args, got, want)
					}
				}
			})
		}
	}
}

// A kernel runs the filter once for each call when it is installed, and under
// emulation that counts.
func TestDefaultProfileIsSmallAndFlat(t *testing.T) {
	s, err := Default().Resolve(Target{GOARCH: "amd64", Capabilities: []string{"CAP_CHOWN", "CAP_SYS_CHROOT"}})
	if err != nil {
		t.Fatal(err)
	}
	f, err := Compile(s, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	most, total, conditional := 0, 0, map[string]int{}
	for n := range uint32(472) {
		_, steps, err := run(f.Program, call{number: n, audit: amd64.audit})
		if err != nil {
			t.Fatal(err)
		}
		most, total = max(most, steps), total+steps
	}
	for _, name := range []string{"read", "futex", "clone", "socket", "personality"} {
		_, conditional[name], _ = run(f.Program, call{number: amd64.numbers()[name], audit: amd64.audit})
	}
	t.Logf("%d instructions; steps: %d on average, %d at most, %v", f.Len(), total/472, most, conditional)
	if f.Len() > 500 || most > 24 {
		t.Errorf("the default filter has %d instructions, up to %d of them run: the tree has grown out of balance", f.Len(), most)
	}
}

func TestTablesAgreeWithAnotherSource(t *testing.T) {
	for name, c := range map[string]struct {
		ours   *convention
		theirs *arch.Info
	}{
		"amd64": {amd64, arch.X86_64}, "x86": {x86, arch.I386}, "arm64": {arm64, arch.AARCH64}, "arm": {arm, arch.ARM},
	} {
		t.Run(name, func(t *testing.T) {
			ours := c.ours.numbers()
			if len(ours) < 320 {
				t.Errorf("only %d calls", len(ours))
			}
			for call, n := range c.theirs.SyscallNames {
				if name == "arm64" && only32(call) {
					continue
				}
				if got, ok := ours[call]; !ok || got != uint32(n) {
					t.Errorf("%s: %d, want %d", call, got, n)
				}
			}
		})
	}
}

func TestLongJumps(t *testing.T) {
	// Many conditions on one call push the targets of its jumps out of reach.
	s := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
	for i := range uint64(150) {
		n := uint(i)
		s.Syscalls = append(s.Syscalls, specs.LinuxSyscall{Names: []string{"ioctl"}, Action: specs.ActErrno, ErrnoRet: &n,
			Args: []specs.LinuxSeccompArg{{Index: 0, Value: i << 33, Op: specs.OpEqualTo}, {Index: 1, Value: i, Op: specs.OpGreaterEqual}, {Index: 2, Value: 7, Op: specs.OpNotEqual}}})
	}
	f, err := Compile(s, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(151) {
		for _, second := range []uint64{i - 1, i, i + 1} {
			for _, third := range []uint64{7, 8} {
				c := call{16, amd64.audit, [6]uint64{i << 33, second, third}}
				got, _, err := run(f.Program, c)
				if want := reference(s, "amd64", c); err != nil || got != want {
					t.Fatalf("%v: %#x, want %#x (%v)", c, got, want, err)
				}
			}
		}
	}
}

func TestCompileErrors(t *testing.T) {
	n := uint(5)
	big := uint(4096)
	many := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
	for i := range uint64(1500) {
		many.Syscalls = append(many.Syscalls, specs.LinuxSyscall{Names: []string{"ioctl"}, Action: specs.ActAllow,
			Args: []specs.LinuxSeccompArg{{Index: 1, Value: i << 33, Op: specs.OpEqualTo}}})
	}
	rule := func(r specs.LinuxSyscall) *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{r}}
	}
	for name, c := range map[string]struct {
		s    *specs.LinuxSeccomp
		arch string
		want string
	}{
		"no profile":       {nil, "amd64", "there is none"},
		"machine":          {many, "riscv64", `architecture "riscv64" is not supported (amd64 and arm64 are)`},
		"no default":       {&specs.LinuxSeccomp{}, "amd64", "defaultAction is missing"},
		"unknown default":  {&specs.LinuxSeccomp{DefaultAction: "SCMP_ACT_MAYBE"}, "amd64", `defaultAction: unknown action "SCMP_ACT_MAYBE"`},
		"default errno":    {&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, DefaultErrnoRet: &n}, "amd64", "action SCMP_ACT_ALLOW has no errnoRet"},
		"notify":           {rule(specs.LinuxSyscall{Names: []string{"mkdir"}, Action: specs.ActNotify}), "amd64", "rule 0 (mkdir): action SCMP_ACT_NOTIFY is not supported"},
		"listener":         {&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: "/run/x"}, "amd64", "listenerPath is set"},
		"architecture":     {&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{"amd64"}}, "amd64", `unknown architecture "amd64" (SCMP_ARCH_X86_64 is one)`},
		"flag":             {&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"LOG"}}, "amd64", `unknown flag "LOG"`},
		"killable flag":    {&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}}, "amd64", "belongs to SCMP_ACT_NOTIFY"},
		"empty name":       {rule(specs.LinuxSyscall{Names: []string{"read", ""}, Action: specs.ActTrap}), "amd64", "rule 0 (read): the name of a system call is empty"},
		"errno too large":  {rule(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActErrno, ErrnoRet: &big}), "amd64", "errnoRet 4096 is above 4095"},
		"errno of trap":    {rule(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActTrap, ErrnoRet: &n}), "amd64", "action SCMP_ACT_TRAP has no errnoRet"},
		"index":            {rule(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActTrap, Args: []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}}), "amd64", "there is no argument 6: the index is 0 to 5"},
		"operator":         {rule(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActTrap, Args: []specs.LinuxSeccompArg{{Op: "=="}}}), "amd64", `unknown operator "=="`},
		"too many args":    {rule(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActTrap, Args: make([]specs.LinuxSeccompArg, 65)}), "amd64", "it has 65 conditions, at most 64"},
		"too many rules":   {&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: make([]specs.LinuxSyscall, 4097)}, "amd64", "it has 4097 rules"},
		"too many names":   {rule(specs.LinuxSyscall{Names: make([]string, 40000)}), "amd64", "it names more than 32768 system calls"},
		"too large result": {many, "amd64", "it needs more than the 4096 instructions"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Compile(c.s, c.arch)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "compile seccomp profile: ") {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func TestFlags(t *testing.T) {
	for name, c := range map[string]struct {
		flags []specs.LinuxSeccompFlag
		want  uint32
	}{
		"nothing said": {nil, 4},
		"none":         {[]specs.LinuxSeccompFlag{}, 0},
		"log and sync": {[]specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog, "SECCOMP_FILTER_FLAG_TSYNC"}, 2},
		"both":         {[]specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow}, 6},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: c.flags}, "amd64")
			if err != nil || f.Flags != c.want {
				t.Errorf("flags %d, %v; want %d", f.Flags, err, c.want)
			}
		})
	}
}

func BenchmarkDefault(b *testing.B) {
	for b.Loop() {
		s, err := Default().Resolve(Target{GOARCH: "amd64"})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := Compile(s, "amd64"); err != nil {
			b.Fatal(err)
		}
	}
}

func ExampleCompile() {
	errno := uint(13)
	f, err := Compile(&specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Syscalls:      []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno, ErrnoRet: &errno}},
	}, "amd64")
	fmt.Println(f.Len() > 0, f.Flags, err)
	// Output: true 4 <nil>
}

// A short text can ask for millions of conditions.
func TestMultipliedConditions(t *testing.T) {
	rule := specs.LinuxSyscall{Action: specs.ActTrap, Args: make([]specs.LinuxSeccompArg, maxArgs)}
	for i := range rule.Args {
		rule.Args[i] = specs.LinuxSeccompArg{Value: 0, Op: specs.OpMaskedEqual} // always true: no instruction
	}
	for range maxNames {
		rule.Names = append(rule.Names, "ioctl")
	}
	_, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{rule}}, "amd64")
	if err == nil || !strings.Contains(err.Error(), "4096 instructions") {
		t.Errorf("error %v", err)
	}
}
