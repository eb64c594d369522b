package seccomp_test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"manis/launch"
	"manis/seccomp"
)

// probe is a system call that the child makes under the filter.
type probe struct {
	Name   string
	Number uintptr
	Args   [6]uintptr
	// Want is the error number expected, 0 for none.
	Want syscall.Errno
	// Allowed: the kernel must have seen the call, whatever it said of it. The
	// arguments are such that it refuses with something other than what the filter gives.
	Allowed bool
}

const childVariable = "MANIS_SECCOMP_PROBES"

// TestMain runs the probes when this is the child of a test.
func TestMain(m *testing.M) {
	text := os.Getenv(childVariable)
	if text == "" {
		os.Exit(m.Run())
	}
	var probes []probe
	if err := json.Unmarshal([]byte(text), &probes); err != nil {
		fmt.Println(err)
		os.Exit(3)
	}
	for _, p := range probes {
		a := p.Args
		_, _, errno := syscall.Syscall6(p.Number, a[0], a[1], a[2], a[3], a[4], a[5])
		fmt.Println(int(errno))
	}
	os.Exit(0)
}

// filtered runs a program under the filter and returns what it wrote.
func filtered(t *testing.T, f seccomp.Filter, path string, env ...string) (string, unix.WaitStatus, error) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	// A program that is killed may say much about it.
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	p := new(launch.Program)
	defer p.Release()
	p.Files([]int{-1, int(w.Fd()), int(null.Fd())})
	p.NoNewPrivileges()
	p.Seccomp(f.Program, f.Flags)
	p.Exec([]string{path}, []string{path}, env)
	proc, err := launch.Start(p, launch.Attr{}, nil)
	w.Close()
	if err != nil {
		return "", 0, err
	}
	defer proc.Release()
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(out), proc.Status(), nil
}

func runProbes(t *testing.T, f seccomp.Filter, probes []probe) ([]syscall.Errno, unix.WaitStatus) {
	t.Helper()
	text, err := json.Marshal(probes)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out, status, err := filtered(t, f, self, childVariable+"="+string(text))
	if err != nil {
		t.Fatal(err)
	}
	var got []syscall.Errno
	for line := range strings.Lines(out) {
		var n int
		if _, err := fmt.Sscan(line, &n); err != nil {
			t.Fatalf("child wrote %q", out)
		}
		got = append(got, syscall.Errno(n))
	}
	return got, status
}

func compiled(t *testing.T, p *seccomp.Profile, caps ...string) seccomp.Filter {
	t.Helper()
	s, err := p.Resolve(seccomp.Target{GOARCH: runtime.GOARCH, Capabilities: caps})
	if err != nil {
		t.Fatal(err)
	}
	f, err := seccomp.Compile(s, runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

const bad = ^uintptr(0) // a descriptor or address that no one has

func TestDefaultProfileInTheKernel(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the numbers in the table are those of amd64")
	}
	plain := []probe{
		{Name: "getpid", Number: unix.SYS_GETPID},
		{Name: "close", Number: unix.SYS_CLOSE, Args: [6]uintptr{bad}, Want: unix.EBADF},
		{Name: "openat2", Number: unix.SYS_OPENAT2, Args: [6]uintptr{bad, bad, bad, 0}, Want: unix.EINVAL},
		{Name: "memfd_create", Number: unix.SYS_MEMFD_CREATE, Args: [6]uintptr{bad, 0}, Want: unix.EFAULT},
		{Name: "socket AF_UNIX", Number: unix.SYS_SOCKET, Args: [6]uintptr{unix.AF_UNIX, unix.SOCK_STREAM}},
		{Name: "socket AF_VSOCK", Number: unix.SYS_SOCKET, Args: [6]uintptr{unix.AF_VSOCK, unix.SOCK_STREAM}, Want: unix.EPERM},
		{Name: "socket AF_ALG", Number: unix.SYS_SOCKET, Args: [6]uintptr{unix.AF_ALG, unix.SOCK_SEQPACKET}, Want: unix.EPERM},
		{Name: "socket of family 40 in the low half", Number: unix.SYS_SOCKET, Args: [6]uintptr{1<<32 + unix.AF_VSOCK, unix.SOCK_STREAM}, Allowed: true},
		{Name: "socket of no family", Number: unix.SYS_SOCKET, Args: [6]uintptr{99, unix.SOCK_STREAM}, Want: unix.EAFNOSUPPORT},
		{Name: "personality query", Number: unix.SYS_PERSONALITY, Args: [6]uintptr{0xffffffff}},
		{Name: "personality ADDR_NO_RANDOMIZE", Number: unix.SYS_PERSONALITY, Args: [6]uintptr{0x40000}, Want: unix.EPERM},
		{Name: "personality PER_LINUX32", Number: unix.SYS_PERSONALITY, Args: [6]uintptr{8}},
		{Name: "clone with a new mount namespace", Number: unix.SYS_CLONE, Args: [6]uintptr{unix.CLONE_NEWNS | unix.CLONE_FS}, Want: unix.EPERM},
		{Name: "clone with a new user namespace", Number: unix.SYS_CLONE, Args: [6]uintptr{unix.CLONE_NEWUSER | unix.CLONE_FS}, Want: unix.EPERM},
		{Name: "clone of an impossible thread", Number: unix.SYS_CLONE, Args: [6]uintptr{unix.CLONE_THREAD}, Want: unix.EINVAL},
		{Name: "clone3", Number: unix.SYS_CLONE3, Want: unix.ENOSYS},
		{Name: "unshare", Number: unix.SYS_UNSHARE, Want: unix.EPERM},
		{Name: "setns", Number: unix.SYS_SETNS, Args: [6]uintptr{bad}, Want: unix.EPERM},
		{Name: "mount", Number: unix.SYS_MOUNT, Args: [6]uintptr{bad, bad, bad}, Want: unix.EPERM},
		{Name: "keyctl", Number: unix.SYS_KEYCTL, Args: [6]uintptr{bad}, Want: unix.EPERM},
		{Name: "add_key", Number: unix.SYS_ADD_KEY, Args: [6]uintptr{bad, bad}, Want: unix.EPERM},
		{Name: "io_uring_setup", Number: unix.SYS_IO_URING_SETUP, Args: [6]uintptr{0, bad}, Want: unix.EPERM},
		{Name: "userfaultfd", Number: unix.SYS_USERFAULTFD, Args: [6]uintptr{bad}, Want: unix.EPERM},
		{Name: "bpf", Number: unix.SYS_BPF, Args: [6]uintptr{bad}, Want: unix.EPERM},
		{Name: "kexec_load", Number: unix.SYS_KEXEC_LOAD, Args: [6]uintptr{0, 99}, Want: unix.EPERM},
		{Name: "ptrace", Number: unix.SYS_PTRACE, Args: [6]uintptr{bad, 1 << 22}, Want: unix.ESRCH},
		{Name: "chroot", Number: unix.SYS_CHROOT, Args: [6]uintptr{bad}, Want: unix.EPERM},
		{Name: "a call that is too new", Number: 467, Want: unix.ENOSYS},
		{Name: "a number without a call", Number: 1000, Want: unix.ENOSYS},
		{Name: "a call that is new, but below the newest of the profile", Number: 461, Want: unix.EPERM},
	}
	privileged := []probe{
		{Name: "chroot", Number: unix.SYS_CHROOT, Args: [6]uintptr{bad}, Want: unix.EFAULT},
		{Name: "setns", Number: unix.SYS_SETNS, Args: [6]uintptr{bad}, Want: unix.EBADF},
		{Name: "clone3", Number: unix.SYS_CLONE3, Want: unix.EINVAL},
		{Name: "mount", Number: unix.SYS_MOUNT, Args: [6]uintptr{bad, bad, bad}, Want: unix.EFAULT},
		{Name: "keyctl", Number: unix.SYS_KEYCTL, Args: [6]uintptr{bad}, Want: unix.EPERM},
		{Name: "reboot", Number: unix.SYS_REBOOT, Want: unix.EPERM},
	}
	for name, c := range map[string]struct {
		caps   []string
		probes []probe
	}{
		"without capabilities": {nil, plain},
		"with capabilities":    {[]string{"CAP_SYS_ADMIN", "CAP_SYS_CHROOT"}, privileged},
	} {
		t.Run(name, func(t *testing.T) {
			got, status := runProbes(t, compiled(t, seccomp.Default(), c.caps...), c.probes)
			if !status.Exited() || status.ExitStatus() != 0 || len(got) != len(c.probes) {
				t.Fatalf("the child ended with %#x after %d of %d probes", int(status), len(got), len(c.probes))
			}
			for i, p := range c.probes {
				if p.Allowed && got[i] == unix.EPERM || !p.Allowed && got[i] != p.Want {
					t.Errorf("%s: %v, want %v", p.Name, got[i], p.Want)
				}
			}
		})
	}
}

func TestActionsInTheKernel(t *testing.T) {
	errno := uint(77)
	for name, c := range map[string]struct {
		rule   specs.LinuxSyscall
		want   syscall.Errno
		signal syscall.Signal
	}{
		"errno":        {specs.LinuxSyscall{Action: specs.ActErrno, ErrnoRet: &errno}, 77, 0},
		"log":          {specs.LinuxSyscall{Action: specs.ActLog}, unix.EBADF, 0},
		"allow":        {specs.LinuxSyscall{Action: specs.ActAllow}, unix.EBADF, 0},
		"no tracer":    {specs.LinuxSyscall{Action: specs.ActTrace}, unix.ENOSYS, 0},
		"kill process": {specs.LinuxSyscall{Action: specs.ActKillProcess}, 0, unix.SIGSYS},
		// The Go runtime turns the signal of a trap into a crash of exit code 2.
		"trap": {specs.LinuxSyscall{Action: specs.ActTrap}, 0, -1},
		"other arguments": {specs.LinuxSyscall{Action: specs.ActKillProcess,
			Args: []specs.LinuxSeccompArg{{Index: 2, Value: 8, Op: specs.OpNotEqual}}}, unix.EBADF, 0},
		"high half": {specs.LinuxSyscall{Action: specs.ActErrno, ErrnoRet: &errno,
			Args: []specs.LinuxSeccompArg{{Index: 3, Value: 1 << 32, Op: specs.OpGreaterThan}, {Index: 0, Value: 0xf0, ValueTwo: 0xf0, Op: specs.OpMaskedEqual}}}, 77, 0},
	} {
		t.Run(name, func(t *testing.T) {
			c.rule.Names = []string{"sync_file_range"}
			f, err := seccomp.Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{c.rule}}, runtime.GOARCH)
			if err != nil {
				t.Fatal(err)
			}
			got, status := runProbes(t, f, []probe{{Number: unix.SYS_SYNC_FILE_RANGE, Args: [6]uintptr{bad, 0, 8, 1<<32 + 1}}})
			switch {
			case c.signal > 0:
				if !status.Signaled() || status.Signal() != c.signal {
					t.Errorf("status %#x, want signal %v", int(status), c.signal)
				}
			case c.signal < 0:
				if status == 0 {
					t.Error("the child lived")
				}
			case len(got) != 1 || got[0] != c.want:
				t.Errorf("%v (status %#x), want %v", got, int(status), c.want)
			}
		})
	}
}

// An i386 program of 21 instructions' worth of bytes: it makes one call and
// exits with the error number.
func TestThe32BitArchitecture(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("i386 runs on amd64 only")
	}
	program := func(number, ebx uint32) string {
		const base, head = 0x08048000, 52 + 32
		code := []byte{0xb8}
		code = binary.LittleEndian.AppendUint32(code, number) // mov eax, number
		code = append(code, 0xbb)
		code = binary.LittleEndian.AppendUint32(code, ebx)            // mov ebx, ebx
		code = append(code, 0x31, 0xc9, 0x31, 0xd2, 0xcd, 0x80)       // xor ecx,ecx; xor edx,edx; int 0x80
		code = append(code, 0x89, 0xc3, 0xf7, 0xdb)                   // mov ebx,eax; neg ebx
		code = append(code, 0xb8, 1, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xfe) // exit(ebx)
		b := []byte("\x7fELF\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
		for _, n := range []uint16{2, 3} {
			b = binary.LittleEndian.AppendUint16(b, n)
		}
		for _, n := range []uint32{1, base + head, 52, 0, 0} {
			b = binary.LittleEndian.AppendUint32(b, n)
		}
		for _, n := range []uint16{52, 32, 1, 0, 0, 0} {
			b = binary.LittleEndian.AppendUint16(b, n)
		}
		size := uint32(head + len(code))
		for _, n := range []uint32{1, 0, base, base, size, size, 5, 0x1000} {
			b = binary.LittleEndian.AppendUint32(b, n)
		}
		path := filepath.Join(t.TempDir(), "program")
		if err := os.WriteFile(path, append(b, code...), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	alone := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
	other, err := seccomp.Compile(alone, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		filter      seccomp.Filter
		number, ebx uint32
		exit        int
		signal      syscall.Signal
	}{
		"close":                 {compiled(t, seccomp.Default()), 6, 0xffffffff, int(unix.EBADF), 0},
		"socket AF_VSOCK":       {compiled(t, seccomp.Default()), 359, 40, int(unix.EPERM), 0},
		"socket of no family":   {compiled(t, seccomp.Default()), 359, 99, int(unix.EAFNOSUPPORT), 0},
		"keyctl":                {compiled(t, seccomp.Default()), 288, 99, int(unix.EPERM), 0},
		"unknown":               {compiled(t, seccomp.Default()), 1000, 0, int(unix.ENOSYS), 0},
		"architecture unlisted": {other, 6, 0xffffffff, 0, unix.SIGSYS},
	} {
		t.Run(name, func(t *testing.T) {
			_, status, err := filtered(t, c.filter, program(c.number, c.ebx))
			if errors.Is(err, unix.ENOEXEC) {
				t.Skip("this kernel runs no 32-bit programs")
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.signal != 0 && status.Signal() != c.signal || c.signal == 0 && status.ExitStatus() != c.exit {
				t.Errorf("status %#x, want exit %d or signal %v", int(status), c.exit, c.signal)
			}
		})
	}
}
