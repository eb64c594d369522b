package jail

import (
	"runtime"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"manis/seccomp"
)

// filters are the seccomp programs for a list of calls, in the order in which they are installed: the kernel asks the last one
// first, and of two that refuse a call takes its answer.
func filters(c *Calls) ([]seccomp.Filter, error) {
	if c == nil {
		f, err := filter()
		return []seccomp.Filter{f}, err
	}
	return []seccomp.Filter{c.allow, c.quiet}, nil
}

// forbidden are system calls that a program which only computes, and reads and
// writes descriptors and files it was given, never needs. Most of them need a
// privilege that a jailed process has not; forbidding them as well keeps the
// kernel's code behind them, where flaws have been, out of its reach.
var forbidden = []string{
	// Other identities, privileges and namespaces.
	"capset", "chroot", "pivot_root", "setns", "unshare", "setuid", "setgid", "setreuid", "setregid",
	"setresuid", "setresgid", "setgroups", "setfsuid", "setfsgid", "personality",
	// File systems.
	"mount", "umount2", "mount_setattr", "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount", "fspick",
	"open_by_handle_at", "name_to_handle_at", "fanotify_init", "quotactl", "quotactl_fd", "swapon", "swapoff",
	"lookup_dcookie", "sysfs", "ustat", "uselib", "acct",
	// Sockets: what it may talk through it was given. This also bars families
	// without namespaces, like vsock, netlink and the kernel's cryptography.
	"socket", "bind", "connect", "listen", "accept", "accept4",
	// Other processes.
	"fork", "vfork", "execveat", "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease",
	"kcmp", "pidfd_open", "pidfd_getfd", "pidfd_send_signal", "move_pages", "migrate_pages",
	// Wide interfaces of the kernel. io_uring would go round this filter.
	"bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register",
	"add_key", "request_key", "keyctl", "vmsplice", "modify_ldt",
	// The machine.
	"reboot", "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "iopl", "ioperm",
	"settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname", "setdomainname", "syslog", "vhangup",
}

// newNamespaces are flags that clone(2) must not have; clone3(2), whose flags
// no filter can see, is said not to exist, and C libraries fall back.
var newNamespaces = []uint64{
	unix.CLONE_NEWUSER, unix.CLONE_NEWNS, unix.CLONE_NEWPID, unix.CLONE_NEWIPC,
	unix.CLONE_NEWUTS, unix.CLONE_NEWNET, unix.CLONE_NEWCGROUP,
}

// filter is the seccomp program for programs of which no list of calls was made. Like those of a list it is in force before the program
// executes its first instruction.
var filter = sync.OnceValues(func() (seccomp.Filter, error) {
	eperm, enosys := uint(unix.EPERM), uint(unix.ENOSYS)
	profile := &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Syscalls: []specs.LinuxSyscall{
			{Names: forbidden, Action: specs.ActErrno, ErrnoRet: &eperm},
			{Names: []string{"clone3"}, Action: specs.ActErrno, ErrnoRet: &enosys},
		},
	}
	for _, flag := range newNamespaces {
		profile.Syscalls = append(profile.Syscalls, specs.LinuxSyscall{
			Names: []string{"clone"}, Action: specs.ActErrno, ErrnoRet: &eperm,
			Args: []specs.LinuxSeccompArg{{Index: 0, Value: flag, ValueTwo: flag, Op: specs.OpMaskedEqual}},
		})
	}
	return seccomp.Compile(profile, runtime.GOARCH)
})
