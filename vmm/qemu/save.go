package qemu

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"manis/seccomp"
	"manis/vmm"
	"manis/vmm/checkpoint"
	"manis/vmm/jail"
)

// Save implements vmm.VM.
func (v *machine) Save(ctx context.Context, pages, resumer *os.File) (*vmm.Saved, error) {
	if v.config.Frozen == nil && v.config.Saved == nil || v.config.NIC == nil {
		return nil, fmt.Errorf("%w: only a machine that went on from a frozen one, with a network interface, can be saved", vmm.ErrConfig)
	}
	if v.config.Accel == vmm.AccelKVM {
		return nil, fmt.Errorf("%w: what KVM knows of a machine is not in its process", vmm.ErrConfig)
	}
	v.mu.Lock()
	plugged, disks, larger := len(v.cards), len(v.attached), v.grown.device || v.grown.vcpus > 0
	v.mu.Unlock()
	if disks > 0 {
		return nil, fmt.Errorf("%w: a machine cannot be saved while it has block devices of the host (%d)", vmm.ErrConfig, disks)
	}
	if larger {
		return nil, fmt.Errorf("%w: a machine cannot be saved when it has grown: it has memory or processors that were plugged into it", vmm.ErrConfig)
	}
	if plugged > 0 {
		return nil, fmt.Errorf("%w: a machine cannot be saved while it has network interfaces that were plugged into it (%d)", vmm.ErrConfig, plugged)
	}
	if err := v.Pause(ctx); err != nil {
		return nil, err
	}
	filter, err := resumedFilter()
	if err != nil {
		return nil, err
	}
	saved := &vmm.Saved{Monitor: v.monitor.version, NIC: v.nic, Tap: v.config.NIC.Tap != nil}
	if saved.Disks, err = v.diskDescriptors(); err != nil {
		return nil, err
	}
	o := checkpoint.Options{
		Given:    []int{fdNull, fdOut, fdErr, fdQMP, fdAgent, fdConsole, v.nic},
		Replaced: map[string]string{memoryPath: checkpoint.PagesPath, checkpoint.PagesPath: checkpoint.PagesPath},
		Keep:     jail.SharesDir,
		Filter:   filter,
	}
	for fd := range saved.Disks {
		o.Given = append(o.Given, fd)
	}
	files, err := checkpoint.Save(v.process.PID, pages, resumer, o)
	if err != nil {
		return nil, shareError(err)
	}
	saved.Files = savedFiles(files)
	return saved, nil
}

// fileID identifies an open file.
type fileID struct{ dev, ino uint64 }

// holds remembers which file is in a slot; nil is none.
func (v *machine) holds(serial string, f *os.File) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.disks, serial)
	if f == nil {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("disk %s: %w", serial, err)
	}
	if v.disks == nil {
		v.disks = map[string]fileID{}
	}
	v.disks[serial] = fileID{st.Dev, st.Ino}
	return nil
}

// diskDescriptors finds the descriptors by which QEMU has the files in the slots open.
func (v *machine) diskDescriptors() (map[int]string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	dir := fmt.Sprintf("/proc/%d/fd", v.process.PID)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read QEMU's descriptors: %w", err)
	}
	found := map[int]string{}
	for _, e := range entries {
		var st unix.Stat_t
		if unix.Stat(dir+"/"+e.Name(), &st) != nil {
			continue
		}
		for serial, id := range v.disks {
			if id == (fileID{st.Dev, st.Ino}) {
				fd, err := strconv.Atoi(e.Name())
				if err != nil {
					return nil, err
				}
				found[fd] = serial
			}
		}
	}
	return found, nil
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
	files, inserts, err := placed(&c)
	if err != nil {
		return err
	}
	for _, d := range c.Disks {
		if err := v.holds(d.Serial, d.File); err != nil {
			return err
		}
	}
	c.Disks = slices.Clone(c.Disks)
	for i := range c.Disks {
		c.Disks[i].File = nil
	}
	if c.Saved.Tap {
		if err := equip(c.NIC.Tap); err != nil {
			return err
		}
	}
	if err := checkFiles(&c); err != nil {
		return err
	}
	v.config, v.nic, v.paused = c, c.Saved.NIC, true
	v.mark("prepare")
	if err := v.spawn(in, files); err != nil {
		return err
	}
	err = v.proceed(ctx, inserts)
	if err != nil && ctx.Err() == nil {
		select {
		case <-v.done:
			return fmt.Errorf("%w: %s", vmm.ErrRejected, v.Exit().Detail)
		case <-time.After(endTime):
		}
	}
	return err
}

// placed sorts out what a saved QEMU is given: files by their descriptors from fdFree on, with
// nil for those that it has not, and the disks for slots that were empty.
func placed(c *vmm.Config) (files []*os.File, inserts []vmm.Disk, err error) {
	at := map[int]*os.File{c.Saved.NIC: c.NIC.File()}
	was := map[string]bool{}
	for fd, serial := range c.Saved.Disks {
		i := slices.IndexFunc(c.Disks, func(d vmm.Disk) bool { return d.Serial == serial && d.File != nil })
		if i < 0 {
			return nil, nil, fmt.Errorf("%w: the saved machine had a disk %s", vmm.ErrConfig, serial)
		}
		at[fd], was[serial] = c.Disks[i].File, true
	}
	for fd, f := range at {
		if fd < fdFree || fd >= fdFree+maxPlaced {
			return nil, nil, fmt.Errorf("%w: a saved machine with descriptor %d", vmm.ErrConfig, fd)
		}
		for len(files) <= fd-fdFree {
			files = append(files, nil)
		}
		files[fd-fdFree] = f
	}
	for _, d := range c.Disks {
		if d.File != nil && !was[d.Serial] {
			inserts = append(inserts, d)
		}
	}
	return files, inserts, nil
}

// maxPlaced bounds the descriptors that a saved machine is given.
const maxPlaced = 256

// proceed has the guest go on, when the process has been seen to be confined.
func (v *machine) proceed(ctx context.Context, inserts []vmm.Disk) error {
	// An answer shows that the resumer is done, its filter included.
	if err := v.execute(ctx, "query-status", nil, nil); err != nil {
		return err
	}
	if err := v.verify(); err != nil {
		return err
	}
	for _, d := range inserts {
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
