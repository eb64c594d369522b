package qemu

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"manis/seccomp"
	"manis/vmm"
	"manis/vmm/checkpoint"
)

// Save implements vmm.VM.
func (v *machine) Save(ctx context.Context, pages, resumer *os.File) (string, error) {
	switch {
	case v.config.Frozen == nil && v.config.Saved == nil || v.config.NIC == nil:
		return "", fmt.Errorf("%w: only a machine that went on from a frozen one, with a network interface, can be saved", vmm.ErrConfig)
	case slices.ContainsFunc(v.config.Disks, func(d vmm.Disk) bool { return d.File != nil }), v.full():
		return "", fmt.Errorf("%w: a machine with disks that cannot be taken out cannot be saved", vmm.ErrConfig)
	}
	if err := v.Pause(ctx); err != nil {
		return "", err
	}
	filter, err := resumedFilter()
	if err != nil {
		return "", err
	}
	o := checkpoint.Options{
		Given:    []int{fdNull, fdOut, fdErr, fdQMP, fdAgent, fdConsole, v.nic},
		Replaced: map[string]string{memoryPath: checkpoint.PagesPath, checkpoint.PagesPath: checkpoint.PagesPath},
		Filter:   filter,
	}
	if err := checkpoint.Save(v.process.PID, pages, resumer, o); err != nil {
		return "", err
	}
	return v.monitor.version, nil
}

// full reports whether a slot holds a file.
func (v *machine) full() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, b := range v.below {
		if b.file {
			return true
		}
	}
	return false
}

// resumedForbidden is what QEMU's own filter forbids (its option -sandbox, as in always), and
// execveat(2), setpgid(2)'s kin and later system calls of the same use: a saved process's filters cannot be read.
var resumedForbidden = []string{
	"execve", "execveat", "fork", "vfork", "setns", "unshare",
	"setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid", "setgroups", "setpgid", "setsid",
	"reboot", "swapon", "swapoff", "syslog", "mount", "umount2", "kexec_load", "kexec_file_load",
	"afs_syscall", "getpmsg", "putpmsg", "security", "tuxcall", "vserver",
	"_sysctl", "create_module", "get_kernel_syms", "query_module", "sysfs", "uselib", "ustat",
}

// resumedRefused are those of QEMU's group resourcecontrol, which fail.
var resumedRefused = []string{
	"setpriority", "sched_setparam", "sched_setaffinity", "sched_setattr", "ioprio_set",
}

// A thread has all of neededClone and nothing of forbiddenClone; everything else is a process.
var (
	neededClone = []uint64{
		unix.CLONE_VM, unix.CLONE_FS, unix.CLONE_FILES, unix.CLONE_SIGHAND, unix.CLONE_THREAD, unix.CLONE_SYSVSEM,
		unix.CLONE_SETTLS, unix.CLONE_PARENT_SETTID, unix.CLONE_CHILD_CLEARTID,
	}
	forbiddenClone = []uint64{
		unix.CLONE_PIDFD, unix.CLONE_PTRACE, unix.CLONE_VFORK, unix.CLONE_PARENT, unix.CLONE_UNTRACED, unix.CLONE_IO,
		unix.CLONE_NEWNS, unix.CLONE_NEWCGROUP, unix.CLONE_NEWUTS, unix.CLONE_NEWIPC, unix.CLONE_NEWUSER, unix.CLONE_NEWPID, unix.CLONE_NEWNET,
	}
)

const schedIdle = 5 // SCHED_IDLE

// resumedFilter is what a saved QEMU installs in place of its own filter.
var resumedFilter = sync.OnceValues(func() ([]byte, error) {
	eperm, enosys := uint(unix.EPERM), uint(unix.ENOSYS)
	p := &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Syscalls: []specs.LinuxSyscall{
			{Names: resumedForbidden, Action: specs.ActKillProcess},
			{Names: resumedRefused, Action: specs.ActErrno, ErrnoRet: &eperm},
			{Names: []string{"sched_setscheduler"}, Action: specs.ActErrno, ErrnoRet: &eperm,
				Args: []specs.LinuxSeccompArg{{Index: 1, Value: schedIdle, Op: specs.OpNotEqual}}},
			// Its flags are in memory, where no filter sees them; C libraries fall back to clone(2).
			{Names: []string{"clone3"}, Action: specs.ActErrno, ErrnoRet: &enosys},
		},
	}
	forbid := func(flag, value uint64) {
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{"clone"}, Action: specs.ActKillProcess,
			Args: []specs.LinuxSeccompArg{{Index: 0, Value: flag, ValueTwo: value, Op: specs.OpMaskedEqual}}})
	}
	for _, flag := range neededClone {
		forbid(flag, 0)
	}
	for _, flag := range forbiddenClone {
		forbid(flag, flag)
	}
	f, err := seccomp.Compile(p, runtime.GOARCH)
	return f.Program, err
})

// resume continues a saved QEMU: with its slots filled while the guest still stands.
func (v *machine) resume(ctx context.Context, in *Installation, c vmm.Config) error {
	disks := slices.Clone(c.Disks)
	c.Disks = slices.Clone(c.Disks)
	for i := range c.Disks {
		c.Disks[i].File = nil
	}
	v.config, v.nic, v.paused = c, fdFree, true
	v.mark("prepare")
	if err := v.spawn(in, []*os.File{c.NIC.Conn}); err != nil {
		return err
	}
	err := v.proceed(ctx, disks)
	if err != nil && ctx.Err() == nil {
		select {
		case <-v.done:
			return fmt.Errorf("%w: %s", vmm.ErrRejected, v.Exit().Detail)
		case <-time.After(endTime):
		}
	}
	return err
}

// proceed has the guest go on, when the process has been seen to be confined.
func (v *machine) proceed(ctx context.Context, disks []vmm.Disk) error {
	// An answer shows that the resumer is done, its filter included.
	if err := v.execute(ctx, "query-status", nil, nil); err != nil {
		return err
	}
	if err := v.verify(); err != nil {
		return err
	}
	for _, d := range disks {
		if d.File == nil {
			continue
		}
		if err := v.Insert(ctx, d); err != nil {
			return err
		}
	}
	v.mark("disks")
	if err := v.Resume(ctx); err != nil {
		return err
	}
	return v.thawed(ctx)
}
