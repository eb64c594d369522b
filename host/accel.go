package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"manis/vmm"
	"manis/vmm/qemu"
)

// kvmDevice is how a process gets at the processor's virtualization.
const kvmDevice = "/dev/kvm"

// probeTime is how long a guest may take under KVM until its kernel looks for
// an init. A tenth of it is usual; an unusable KVM tends to hang.
const probeTime = 3 * time.Second

// ErrAccel: the accelerator asked for cannot be used.
var ErrAccel = errors.New("accelerator not usable")

// Accelerators decides between KVM and emulation.
type Accelerators struct {
	Driver *qemu.Driver
	// Kernel is the guest kernel to try KVM with.
	Kernel string
	// Cache is a directory for the outcome of the trial; empty tries each time.
	Cache string
}

// Choice is an accelerator, and why.
type Choice struct {
	Accel vmm.Accel
	// Notice is one line for the user, empty when there is nothing to say.
	Notice string
	// Why is the reason in a few words, like "KVM has booted a guest on this host".
	Why string
	// New is set when KVM was tried for this choice and not remembered.
	New bool
}

// Choose resolves "auto" (or ""), "kvm" or "tcg". Auto takes KVM only where it has
// booted our kernel on this host: that the device exists and opens says too
// little, as nested and paravirtual KVM may hang any guest. The trial takes at
// most some seconds once for each combination of host kernel, processor, QEMU
// and guest kernel. An explicit kvm is taken at its word. Errors wrap ErrAccel
// or are ctx's.
func (a *Accelerators) Choose(ctx context.Context, want string) (Choice, error) {
	switch want {
	case string(vmm.AccelTCG):
		return Choice{Accel: vmm.AccelTCG, Why: "asked for"}, nil
	case string(vmm.AccelKVM):
		if err := openKVM(); err != nil {
			return Choice{}, fmt.Errorf("%w: kvm: %w", ErrAccel, err)
		}
		return Choice{Accel: vmm.AccelKVM, Why: "asked for"}, nil
	case "", "auto":
	default:
		return Choice{}, fmt.Errorf("%w: %q is none of auto, kvm, tcg", ErrAccel, want)
	}
	t, err := a.KVM(ctx)
	if err != nil {
		return Choice{}, err
	}
	if t.Works {
		return Choice{Accel: vmm.AccelKVM, Why: t.Detail, New: t.New}, nil
	}
	why := t.Detail
	if t.Tried {
		why = "it does not boot a guest on this host"
	}
	return Choice{Accel: vmm.AccelTCG, Why: t.Detail, New: t.New, Notice: fmt.Sprintf("KVM cannot be used (%s): emulating, which is slower; see manis doctor", why)}, nil
}

// Trial is what is known of KVM.
type Trial struct {
	Works  bool
	Detail string
	// Advice says what could be done where it does not work.
	Advice string
	// Tried is set when a guest was started for it, now or earlier.
	Tried bool
	// New is set when it was started now.
	New bool `json:"-"`
}

// KVM says whether KVM boots a guest, by what is remembered or by trying. The
// error is ctx's, or that of a host which cannot start any VM.
func (a *Accelerators) KVM(ctx context.Context) (Trial, error) {
	if err := openKVM(); err != nil {
		return Trial{Detail: err.Error(), Advice: kvmAdvice(err)}, nil
	}
	in, err := a.Driver.Installation()
	if err != nil {
		return Trial{}, err
	}
	program := in.Closure.Program
	key, err := a.key(program)
	if err != nil {
		return Trial{}, err
	}
	if t, ok := a.recall(program, key); ok {
		return t, nil
	}
	t := Trial{Tried: true, New: true}
	switch err := boot(ctx, a.Driver, a.Kernel, vmm.AccelKVM, probeTime); {
	case err == nil:
		t.Works, t.Detail = true, "KVM has booted a guest on this host"
	case ctx.Err() != nil:
		return Trial{}, fmt.Errorf("try KVM: %w", ctx.Err())
	case errors.Is(err, vmm.ErrNoMonitor), errors.Is(err, vmm.ErrNotJailed), errors.Is(err, vmm.ErrConfig):
		// Nothing about KVM: no VM starts at all.
		return Trial{}, err
	default:
		t.Detail = err.Error()
		t.Advice = "if this host is a virtual machine itself, enable nested virtualization in its hypervisor; manis doctor then tries again"
	}
	a.keep(program, key, t)
	return t, nil
}

// errNoKVM and errNoPermission are the plain reasons against KVM.
var (
	errNoKVM        = errors.New(kvmDevice + " does not exist")
	errNoPermission = errors.New("no permission for " + kvmDevice)
)

func openKVM() error {
	fd, err := unix.Open(kvmDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		unix.Close(fd)
		return nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return errNoKVM
	case errors.Is(err, fs.ErrPermission):
		return errNoPermission
	}
	return fmt.Errorf("open %s: %w", kvmDevice, err)
}

func kvmAdvice(err error) string {
	switch err {
	case errNoKVM:
		return "enable virtualization in the firmware, or nested virtualization in the hypervisor of this virtual machine, and load the kernel module kvm_intel or kvm_amd"
	case errNoPermission:
		return "add yourself to the group of the device: sudo usermod -aG kvm $USER, then log in again"
	}
	return ""
}

// boot starts the kernel without any file system to go on with and waits for
// its panic about that, which only a kernel that runs can report.
func boot(ctx context.Context, driver vmm.Driver, kernel string, accel vmm.Accel, limit time.Duration) (err error) {
	dir, err := os.MkdirTemp("", "manis-probe-")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	v, err := driver.Start(ctx, vmm.Config{Kernel: kernel, MemoryBytes: 128 << 20, Accel: accel, ConsoleLimit: 4096, RunDir: dir})
	if err == nil {
		defer func() { err = errors.Join(err, v.Kill()) }()
		select {
		case <-v.Done():
			switch e := v.Exit(); e.Reason {
			case vmm.Panic, vmm.Reset, vmm.PowerOff:
				return nil
			default:
				return errors.New(e.Detail)
			}
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("a guest does not boot within %v", limit)
	}
	return err
}
