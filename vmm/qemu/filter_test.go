package qemu

import (
	words "encoding/binary"
	"runtime"
	"slices"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Results of a seccomp program.
const (
	allow = unix.SECCOMP_RET_ALLOW
	kill  = unix.SECCOMP_RET_KILL_PROCESS
	errno = unix.SECCOMP_RET_ERRNO
)

// A QEMU that was continued may do nothing that QEMU's own -sandbox, as in always, forbids. The list is
// that of QEMU 7.2 to 10, but for system calls that amd64 has not.
func TestResumedFilter(t *testing.T) {
	program, err := resumedFilter()
	if err != nil {
		t.Fatal(err)
	}
	var all []bpf.Instruction
	for i := range slices.Chunk(program, 8) {
		all = append(all, bpf.RawInstruction{
			Op: words.NativeEndian.Uint16(i), Jt: i[2], Jf: i[3], K: words.NativeEndian.Uint32(i[4:]),
		}.Disassemble())
	}
	vm, err := bpf.NewVM(all)
	if err != nil {
		t.Fatal(err)
	}
	machine := uint32(unix.AUDIT_ARCH_X86_64)
	run := func(nr int, args ...uint64) uint32 {
		data := make([]byte, 64) // struct seccomp_data, its words as this machine reads them
		words.BigEndian.PutUint32(data, uint32(nr))
		words.BigEndian.PutUint32(data[4:], machine)
		for i, a := range args {
			words.BigEndian.PutUint32(data[16+8*i:], uint32(a))
			words.BigEndian.PutUint32(data[20+8*i:], uint32(a>>32))
		}
		result, err := vm.Run(data)
		if err != nil {
			t.Fatal(err)
		}
		return uint32(result)
	}
	for want, names := range map[uint32][]string{
		kill: {
			"reboot", "swapon", "swapoff", "syslog", "mount", "umount2", "kexec_load", "afs_syscall", "getpmsg", "putpmsg",
			"security", "tuxcall", "vserver", "_sysctl", "create_module", "get_kernel_syms", "query_module", "sysfs", "uselib", "ustat",
			"setuid", "setgid", "setpgid", "setsid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid",
			"fork", "vfork", "execve", "execveat", "setns", "unshare",
		},
		errno | uint32(unix.EPERM):  {"setpriority", "sched_setparam", "sched_setscheduler", "sched_setaffinity", "sched_setattr"},
		errno | uint32(unix.ENOSYS): {"clone3"},
		allow:                       {"read", "mmap", "mprotect", "futex", "openat", "ppoll", "exit_group", "rt_sigreturn", "rseq", "set_robust_list", "prctl"},
	} {
		for _, name := range names {
			nr, ok := arch.X86_64.SyscallNames[name]
			if !ok {
				t.Fatalf("no system call %s", name)
			}
			if got := run(nr); got != want {
				t.Errorf("%s: %#x, want %#x", name, got, want)
			}
		}
	}
	if got := run(unix.SYS_SCHED_SETSCHEDULER, 0, schedIdle); got != allow {
		t.Errorf("becoming idle: %#x", got)
	}

	const thread = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD | unix.CLONE_SYSVSEM |
		unix.CLONE_SETTLS | unix.CLONE_PARENT_SETTID | unix.CLONE_CHILD_CLEARTID
	if got := run(unix.SYS_CLONE, thread); got != allow {
		t.Errorf("a thread: %#x", got)
	}
	for _, flags := range []uint64{
		0, uint64(unix.SIGCHLD), unix.CLONE_VM | unix.CLONE_VFORK | uint64(unix.SIGCHLD), unix.CLONE_THREAD, unix.CLONE_PARENT | uint64(unix.SIGCHLD),
	} {
		if got := run(unix.SYS_CLONE, flags); got != kill {
			t.Errorf("clone with %#x: %#x", flags, got)
		}
	}
	for bit := range 32 {
		flag := uint64(1) << bit
		wrong := thread&flag != 0 || slices.Contains(forbiddenClone, flag)
		if got := run(unix.SYS_CLONE, thread^flag); wrong != (got == kill) {
			t.Errorf("a thread with flag %#x inverted: %#x", flag, got)
		}
	}

	// The other ways into the kernel: x32 and 32-bit system calls.
	if got := run(0x40000000 | unix.SYS_EXECVE); got == allow {
		t.Error("x32's execve is allowed")
	}
	machine = unix.AUDIT_ARCH_I386
	if got := run(11); got == allow {
		t.Error("the 32-bit execve is allowed")
	}
	if runtime.GOARCH != "amd64" {
		t.Error("these are the numbers of amd64")
	}
}
