package checkpoint

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const smaps = `555555554000-555555a00000 r-xp 00003000 fe:00 1234    /usr/bin/qemu-system-x86_64
Size:               4784 kB
VmFlags: rd ex mr mw me
555556000000-555556100000 rw-p 00000000 00:00 0    [heap]
VmFlags: rd wr mr mw me ac
7f0000000000-7f0000001000 rw-p 00000000 00:00 0    [anon: glibc: getrandom]
VmFlags: rd wr mr mw me wf dp
7f1000000000-7f1000001000 rw-s 00000000 00:01 77    /memfd:x y (deleted)
VmFlags: rd wr sh mr mw me ms
7f2000000000-7f2000001000 rw-p 00000000 00:00 0
VmFlags: rd wr um
7f3000000000-7f3000001000 rw-p 00000000 00:06 5    /dev/x
VmFlags: rd wr io pf
7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0    [stack]
VmFlags: rd wr mr mw me gd ac
7ffff7ff9000-7ffff7ffd000 r--p 00000000 00:00 0    [vvar]
VmFlags: rd mr pf io de dd
7ffff7ffd000-7ffff7fff000 r--p 00000000 00:00 0    [vvar_vclock]
VmFlags: rd mr pf io de dd
7ffff7fff000-7ffff8001000 r-xp 00000000 00:00 0    [vdso]
VmFlags: rd ex mr mw me de
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0    [vsyscall]
VmFlags: ex
`

func TestAreas(t *testing.T) {
	areas, err := parseAreas(strings.NewReader(smaps))
	if err != nil || len(areas) != 10 {
		t.Fatalf("%d areas, %v", len(areas), err)
	}
	for i, want := range []struct {
		name, refusal          string
		kernels, forgets, grow bool
	}{
		{name: "/usr/bin/qemu-system-x86_64"},
		{name: "[heap]"},
		{name: "[anon: glibc: getrandom]", forgets: true},
		{name: "/memfd:x y (deleted)", refusal: "it shares /memfd:x y (deleted) with others"},
		{refusal: "another one supplies its memory (userfaultfd)"},
		{name: "/dev/x", refusal: "it has mapped the device /dev/x"},
		{name: "[stack]", grow: true},
		{name: "[vvar]", kernels: true},
		{name: "[vvar_vclock]", kernels: true},
		{name: "[vdso]", kernels: true},
	} {
		a := areas[i]
		if a.kernels() {
			want.refusal = a.refusal() // is not asked
		}
		if a.name != want.name || a.refusal() != want.refusal || a.kernels() != want.kernels || a.forgets() != want.forgets || a.grows() != want.grow {
			t.Errorf("area %d is %+v, want %+v; refused: %q", i, a, want, a.refusal())
		}
	}
	if a := areas[0]; a.prot != unix.PROT_READ|unix.PROT_EXEC || !a.file() || a.shared || a.offset != 0x3000 || a.size() != 0x4ac000 {
		t.Errorf("%+v", a)
	}
	own, err := readAreas(os.Getpid())
	if err != nil || !slices.ContainsFunc(own, area.grows) || !slices.ContainsFunc(own, area.kernels) {
		t.Errorf("this process: %+v, %v", own, err)
	}
}

func FuzzAreas(f *testing.F) {
	f.Add(smaps)
	f.Add("1-2 ---p 0 0 0\nVmFlags:")
	f.Add("VmFlags: rd\n:\n")
	f.Fuzz(func(t *testing.T, text string) {
		areas, _ := parseAreas(strings.NewReader(text))
		for _, a := range areas {
			if a.start >= a.end {
				t.Errorf("%+v", a)
			}
			a.refusal()
		}
	})
}

// What the resumer itself brought is left out of a process that was continued, and nothing else.
func TestWithoutResumer(t *testing.T) {
	areas, err := parseAreas(strings.NewReader(smaps))
	if err != nil {
		t.Fatal(err)
	}
	const at = 0x10000000
	code := area{start: at, end: at + codeSize, inode: 1, name: "/resumer"}
	data := area{start: at + dataOffset, end: at + dataOffset + 0x5000, inode: 1, name: "/resumer"}
	all := append([]area{code, data}, areas...)
	if got := withoutResumer(all, 0); len(got) != len(all) {
		t.Errorf("of a process that was not continued %d of %d areas are left", len(got), len(all))
	}
	got := withoutResumer(all, at)
	if len(got) != len(areas)-1 || slices.ContainsFunc(got, area.grows) || got[0].start != areas[0].start {
		t.Errorf("%+v", got)
	}
}

func TestLayout(t *testing.T) {
	tr := &tracee{pid: os.Getpid()}
	b, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	l, err := parseLayout(string(b))
	if err != nil {
		t.Fatal(err)
	}
	areas, err := readAreas(tr.pid)
	if err != nil {
		t.Fatal(err)
	}
	within := func(what string, at uint64, name string) {
		if !slices.ContainsFunc(areas, func(a area) bool { return a.start <= at && at <= a.end && a.name == name }) {
			t.Errorf("%s at %#x, not in %s", what, at, name)
		}
	}
	exe, _ := os.Readlink("/proc/self/exe")
	within("code", l.startCode, exe)
	within("stack", l.startStack, "[stack]")
	within("arguments", l.startArgs, "[stack]")
	within("environment", l.endEnvironment, "[stack]")
	if size := binary.Size(l); size != 104 {
		t.Errorf("struct prctl_mm_map has %d bytes", size)
	}
	// A name may hold what it likes.
	odd := strings.Replace(string(b), "(", "(a) 1 (", 1)
	if again, err := parseLayout(odd); err != nil || *again != *l {
		t.Errorf("%+v, %v", again, err)
	}
	for _, bad := range []string{"", "1 (x", "1 (x) R 1 2 3", strings.Repeat("0 ", 60)} {
		if _, err := parseLayout(bad); err == nil {
			t.Errorf("%q is a layout", bad)
		}
	}
}

// extendedRegisters are a thread's as ptrace(2) shows them on a processor with AMX: more than a process has
// that never asked for it.
func extendedRegisters(components ...int) *thread {
	th := &thread{extended: make([]byte, 11008)}
	le := binary.LittleEndian
	for i := minExtendedSize; i < len(th.extended); i++ {
		th.extended[i] = 0xcc
	}
	le.PutUint64(th.extended[softwareOffset:], 0x602e7)
	used := uint64(3)
	for _, c := range components {
		used |= 1 << c
	}
	le.PutUint64(th.extended[legacySize:], used)
	clear(th.extended[legacySize+8 : minExtendedSize])
	return th
}

func TestExtendedState(t *testing.T) {
	ends := map[int]int{2: 832, 5: 1088 + 64, 6: 1152 + 512, 7: 1664 + 1024, 9: 2688 + 8, 18: 2816 + 8192}
	end := func(c int) int { return ends[c] }
	for _, c := range []struct {
		used []int
		size int
	}{
		{nil, 576}, {[]int{2}, 832}, {[]int{2, 5, 6, 7}, 2688}, {[]int{2, 9}, 2696}, {[]int{9, 18}, 11008},
	} {
		b, err := extendedRegisters(c.used...).extendedState(end)
		if err != nil {
			t.Fatal(err)
		}
		le := binary.LittleEndian
		if len(b) != c.size+4 || le.Uint32(b[softwareOffset+16:]) != uint32(c.size) || le.Uint32(b[softwareOffset+4:]) != uint32(c.size+4) ||
			le.Uint32(b[softwareOffset:]) != extendedMagic1 || le.Uint32(b[c.size:]) != extendedMagic2 || le.Uint64(b[softwareOffset+8:]) != 0x602e7 {
			t.Errorf("with %v: %d bytes, %x", c.used, len(b), b[softwareOffset:legacySize])
		}
	}
	th := extendedRegisters(2)
	th.extended = th.extended[:700]
	if _, err := th.extendedState(end); err == nil {
		t.Error("registers without the end of one are accepted")
	}
	th = extendedRegisters(2)
	th.extended[legacySize+15] = 0x80
	if _, err := th.extendedState(end); err == nil {
		t.Error("registers in the compacted layout are accepted")
	}
	if got := componentEnd(2); got != 832 {
		t.Errorf("this processor's AVX registers end at %d", got) // on every processor that has them
	}
}

// A system call that was interrupted is performed again, or fails as if by a signal.
func TestFrame(t *testing.T) {
	for _, c := range []struct {
		nr, result int64
		rax, rip   uint64
	}{
		{202, restartSys, 202, 998}, {271, restartNoHnd, 271, 998}, {7, restartNoInt, 7, 998},
		{230, restartBlock, ^uint64(3), 1000}, {0, 5, 5, 1000}, {-1, restartSys, 1<<64 + restartSys, 1000},
	} {
		th := &thread{}
		th.regs.Orig_rax, th.regs.Rax, th.regs.Rip = uint64(c.nr), uint64(c.result), 1000
		b := th.frame(0x1234)
		word := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
		const rax, rip, extended = 5 + 13, 5 + 16, 5 + 23
		if word(rax) != c.rax || word(rip) != c.rip || word(extended) != 0x1234 {
			t.Errorf("call %d, %d: rax %d at %d, registers at %#x", c.nr, c.result, int64(word(rax)), word(rip), word(extended))
		}
	}
}

// Only what a file holds is read.
func TestHole(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(8 << 20); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("x"), 3<<20); err != nil {
		t.Fatal(err)
	}
	for at, want := range map[int64]bool{0: true, 2 << 20: true, 3 << 20: false, 4 << 20: true, 7 << 20: true} {
		if got := hole(f, at, 1<<20); got != want {
			t.Errorf("a hole at %d: %v", at, got)
		}
	}
	if hole(nil, 0, 1) {
		t.Error("a file that could not be opened holds nothing")
	}
}

// The resumer is a program that loads where it was told to, and nowhere that anybody knows before.
func TestProgram(t *testing.T) {
	bases := map[uint64]bool{}
	for range 8 {
		bases[newBase(nil)] = true
	}
	if len(bases) != 8 {
		t.Errorf("eight resumers lie at %v", bases)
	}
	p := &plan{base: newBase(nil)}
	p.call("end", unix.SYS_EXIT_GROUP, 0)
	b, err := p.program()
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if f.Entry != p.base || p.base%pageSize != 0 || p.base < lowestBase || p.base >= highestBase {
		t.Errorf("entry %#x, base %#x", f.Entry, p.base)
	}
	for _, s := range f.Progs {
		if s.Type == elf.PT_LOAD && (s.Flags&elf.PF_W != 0 || s.Vaddr < p.base || s.Vaddr+s.Memsz > p.base+resumerSpan) {
			t.Errorf("segment %+v", s.ProgHeader)
		}
	}
	// An area in the way makes it go elsewhere.
	if base := newBase([]area{{start: lowestBase, end: highestBase - 2*resumerSpan}}); base+resumerSpan < highestBase-2*resumerSpan {
		t.Errorf("it lies at %#x, over memory", base)
	}
	p.put(make([]byte, dataLimit), 1)
	if _, err := p.program(); err == nil {
		t.Error("more data than there is room for")
	}
}

// Where a process must not be traced, the error says what to look at.
func TestSaveWithoutPermission(t *testing.T) {
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	// No process may trace itself.
	_, err = Save(os.Getpid(), file, file, Options{Given: []int{0}})
	if err == nil || !strings.Contains(err.Error(), "ptrace_scope") || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v", err)
	}
}

// A signal that arrives while a process is being stopped reaches it.
func TestSignalsAreNotLost(t *testing.T) {
	cmd := exec.Command("sh", "-c", "trap 'echo got' USR1; echo ready; while :; do sleep 0.01; done")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	said := bufio.NewReader(out)
	if line, err := said.ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	runtime.LockOSThread() // ends with the test
	for range 20 {
		// It is delivered once the process runs, which is when it is stopped.
		if err := ptrace(unix.PTRACE_SEIZE, cmd.Process.Pid, 0, 0); err != nil {
			t.Fatal(err)
		}
		tr := &tracee{pid: cmd.Process.Pid, threads: []*thread{{tid: cmd.Process.Pid}}}
		if err := unix.Kill(tr.pid, unix.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		if err := ptrace(unix.PTRACE_INTERRUPT, tr.pid, 0, 0); err != nil {
			t.Fatal(err)
		}
		if err := tr.awaitInterrupt(tr.pid); err != nil {
			t.Fatal(err)
		}
		tr.release()
		if line, err := said.ReadString('\n'); err != nil || line != "got\n" {
			t.Fatalf("%q, %v", line, err)
		}
	}
}
