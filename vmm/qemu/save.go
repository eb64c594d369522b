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

// resumedForbidden is what QEMU's own filter forbids (its option -sandbox, as in always) beyond
// the jail's: a saved process's filters cannot be read.
var resumedForbidden = []string{
	"execve", "execveat", "fork", "vfork", "setpgid", "setsid",
	"setpriority", "sched_setparam", "sched_setscheduler", "sched_setaffinity", "sched_setattr", "ioprio_set",
}

// resumedFilter is what a saved QEMU installs in place of its own filter.
var resumedFilter = sync.OnceValues(func() ([]byte, error) {
	eperm := uint(unix.EPERM)
	f, err := seccomp.Compile(&specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Syscalls: []specs.LinuxSyscall{
			{Names: resumedForbidden, Action: specs.ActKillProcess},
			// No process but threads.
			{Names: []string{"clone"}, Action: specs.ActErrno, ErrnoRet: &eperm,
				Args: []specs.LinuxSeccompArg{{Index: 0, Value: unix.CLONE_THREAD, ValueTwo: 0, Op: specs.OpMaskedEqual}}},
		},
	}, runtime.GOARCH)
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

func (v *machine) proceed(ctx context.Context, disks []vmm.Disk) error {
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
	if err := v.thawed(ctx); err != nil {
		return err
	}
	return v.verify()
}
