package seccomp

import (
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Default returns the profile of a container that names none: the calls that
// Docker allows by default. The facts (which calls, under which conditions) are
// those of the profile that the Moby project publishes, github.com/moby/profiles,
// seccomp v0.2.3 of May 2026, restricted to the architectures that a guest runs
// on. The caller may change the copy.
//
// What the profile keeps from a container beyond the kernel's own checks: namespaces
// and mounts for those without CAP_SYS_ADMIN, kernel keyrings, sockets of the
// families AF_ALG and AF_VSOCK, io_uring, userfaultfd, and everything that is new.
func Default() *Profile {
	p := &Profile{
		DefaultAction:   specs.ActErrno,
		DefaultErrnoRet: number(eperm),
		ArchMap: []Architecture{
			{specs.ArchX86_64, []specs.Arch{specs.ArchX86, specs.ArchX32}},
			{specs.ArchAARCH64, []specs.Arch{specs.ArchARM}},
		},
	}
	allow := func(names string, includes *Filters, args ...specs.LinuxSeccompArg) {
		p.Rules = append(p.Rules, Rule{Names: strings.Fields(names), Action: specs.ActAllow, Args: args, Includes: includes})
	}
	allow(ordinary, nil)
	// Before 4.8 a tracer could go around the filter of the traced.
	allow("process_vm_readv process_vm_writev ptrace", &Filters{MinKernel: &Kernel{4, 8}})

	// Every family but AF_ALG (38), the kernel's crypto, and AF_VSOCK (40),
	// which in a VM is a way to the host.
	allow("socket", nil, arg(0, specs.OpLessThan, 38))
	allow("socket", nil, arg(0, specs.OpEqualTo, 39))
	allow("socket", nil, arg(0, specs.OpGreaterThan, 40))

	// PER_LINUX, PER_LINUX32, each with UNAME26, and the question for the
	// current one.
	for _, persona := range []uint64{0, 0x8, 0x20000, 0x20008, 0xffffffff} {
		allow("personality", nil, arg(0, specs.OpEqualTo, persona))
	}
	allow("arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls", &Filters{Arches: []string{"arm", "arm64"}})
	allow("arch_prctl", &Filters{Arches: []string{"amd64", "x32"}})
	allow("modify_ldt", &Filters{Arches: []string{"amd64", "x32", "x86"}})

	// clone may make no namespace without CAP_SYS_ADMIN. clone3 hides its flags
	// behind a pointer, so it does not exist then, and libraries fall back to clone.
	admin := []string{"CAP_SYS_ADMIN"}
	p.Rules = append(p.Rules,
		Rule{Names: []string{"clone"}, Action: specs.ActAllow, Excludes: &Filters{Caps: admin},
			Args: []specs.LinuxSeccompArg{{Index: 0, Value: namespaces, ValueTwo: 0, Op: specs.OpMaskedEqual}}},
		Rule{Names: []string{"clone3"}, Action: specs.ActErrno, ErrnoRet: number(enosys), Excludes: &Filters{Caps: admin}},
	)
	for _, g := range privileged {
		allow(g.names, &Filters{Caps: []string{g.capability}})
	}
	return p
}

// namespaces is every CLONE_NEW* flag but CLONE_NEWTIME, which clone does not take.
const namespaces = 0x7e020000

func number(n uint) *uint { return &n }

func arg(index uint, op specs.LinuxSeccompOperator, value uint64) specs.LinuxSeccompArg {
	return specs.LinuxSeccompArg{Index: index, Value: value, Op: op}
}

// privileged are the calls that come with a capability of the bounding set.
var privileged = []struct{ capability, names string }{
	{"CAP_DAC_READ_SEARCH", "open_by_handle_at"},
	{"CAP_SYS_ADMIN", `bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie
		lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree
		perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare`},
	{"CAP_SYS_BOOT", "reboot"},
	{"CAP_SYS_CHROOT", "chroot"},
	{"CAP_SYS_MODULE", "delete_module init_module finit_module"},
	{"CAP_SYS_PACCT", "acct"},
	{"CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"},
	{"CAP_SYS_RAWIO", "iopl ioperm"},
	{"CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"},
	{"CAP_SYS_TTY_CONFIG", "vhangup"},
	{"CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"},
	{"CAP_SYSLOG", "syslog"},
	{"CAP_BPF", "bpf"},
	{"CAP_PERFMON", "perf_event_open"},
}

// ordinary are the calls that every container may make, by what they are about.
const ordinary = "" +
	// Files.
	`
		_llseek access chdir chmod chown chown32 close close_range creat dup dup2 dup3 faccessat
		faccessat2 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl
		fcntl64 fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64
		fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 getxattr
		getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch lchown lchown32 lgetxattr
		link linkat listmount listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat lstat64
		mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 readlink readlinkat
		removexattr removexattrat rename renameat renameat2 rmdir setxattr setxattrat stat stat64 statfs
		statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs truncate truncate64 umask
		unlink unlinkat utime utimensat utimensat_time64 utimes` +
	// Reading and writing.
	`
		copy_file_range fadvise64 fadvise64_64 io_cancel io_destroy io_getevents io_pgetevents
		io_pgetevents_time64 io_setup io_submit ioctl memfd_create memfd_secret pipe pipe2 pread64 preadv
		preadv2 pwrite64 pwritev pwritev2 read readahead readv sendfile sendfile64 splice tee vmsplice
		write writev` +
	// Waiting for descriptors.
	`
		_newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
		epoll_wait_old eventfd eventfd2 poll ppoll ppoll_time64 pselect6 pselect6_time64 select signalfd
		signalfd4 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64` +
	// Sockets.
	`
		accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg
		recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair` +
	// Memory.
	`
		brk cachestat madvise map_shadow_stack membarrier mincore mlock mlock2 mlockall mmap mmap2
		mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect
		remap_file_pages` +
	// Processes and identity.
	`
		capget capset execve execveat exit exit_group fork get_robust_list get_thread_area getcpu getegid
		getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getpgid getpgrp getpid getppid
		getpriority getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid gettid getuid
		getuid32 ioprio_get ioprio_set landlock_add_rule landlock_create_ruleset landlock_restrict_self
		pidfd_open pidfd_send_signal prctl prlimit64 process_mrelease restart_syscall rseq
		sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
		sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity
		sched_setattr sched_setparam sched_setscheduler sched_yield seccomp set_robust_list
		set_thread_area set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups
		setgroups32 setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32
		setreuid setreuid32 setrlimit setsid setuid setuid32 ugetrlimit uretprobe vfork wait4 waitid
		waitpid` +
	// Signals.
	`
		alarm kill pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
		rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack sigprocmask
		sigreturn tgkill tkill` +
	// Futexes and System V and POSIX IPC.
	`
		futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake ipc mq_getsetattr mq_notify
		mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl
		msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget` +
	// Time.
	`
		adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime
		clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer
		time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime
		timer_settime64 times` +
	// The system.
	`
		getrandom sysinfo uname`
