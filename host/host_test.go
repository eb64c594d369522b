package host

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"manis/vmm"
	"manis/vmm/qemu"
	"manis/vmm/vmmtest"
)

func TestMain(m *testing.M) { os.Exit(vmmtest.Main(m)) }

func accelerators(t *testing.T) *Accelerators {
	d := qemu.New("")
	if err := d.Prepare(); err != nil {
		t.Skip(err)
	}
	return &Accelerators{Driver: d, Kernel: vmmtest.Kernel(t), Cache: t.TempDir()}
}

func TestChoose(t *testing.T) {
	a := accelerators(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	first, err := a.Choose(ctx, "auto")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", first)
	if (first.Accel == vmm.AccelTCG) != (first.Notice != "") || strings.Contains(first.Notice, "\n") || first.Why == "" {
		t.Errorf("%+v: want one line of notice for TCG only, and a reason", first)
	}
	// A driver that cannot start anything shows that the second answer is remembered.
	again := &Accelerators{Driver: a.Driver, Kernel: a.Kernel, Cache: a.Cache}
	cancelled, stop := context.WithCancel(t.Context())
	stop()
	second, err := again.Choose(cancelled, "")
	if err != nil || second != first {
		t.Errorf("second answer %+v, %v; the first was %+v", second, err, first)
	}
	trial, err := a.KVM(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if trial.Tried {
		// Without the memory it would have to try again.
		again.Forget()
		if _, err := again.Choose(cancelled, "auto"); !errors.Is(err, context.Canceled) {
			t.Errorf("after Forget: %v, want cancelled", err)
		}
		// A changed kernel is another question.
		again.keep("another key", Trial{Works: true, Tried: true})
		if _, err := again.Choose(cancelled, "auto"); !errors.Is(err, context.Canceled) {
			t.Errorf("with another kernel's outcome: %v, want cancelled", err)
		}
	} else if os.Geteuid() != 0 && trial.Advice == "" {
		t.Error("no advice")
	}
	if c, err := a.Choose(ctx, "tcg"); err != nil || c.Accel != vmm.AccelTCG || c.Notice != "" {
		t.Errorf("tcg: %+v, %v", c, err)
	}
	if _, err := a.Choose(ctx, "warp"); !errors.Is(err, ErrAccel) {
		t.Errorf("warp: %v", err)
	}
	if c, err := a.Choose(ctx, "kvm"); openKVM() == nil && c.Accel != vmm.AccelKVM || openKVM() != nil && !errors.Is(err, ErrAccel) {
		t.Errorf("kvm: %+v, %v", c, err)
	}
}

// TestBootShowsWhatWorks uses emulation, which works everywhere, to show that
// the trial can succeed, and a limit that nothing meets to show that it can fail.
func TestBootShowsWhatWorks(t *testing.T) {
	a := accelerators(t)
	if err := boot(t.Context(), a.Driver, a.Kernel, vmm.AccelTCG, 2*time.Minute); err != nil {
		t.Errorf("with emulation: %v", err)
	}
	if err := boot(t.Context(), a.Driver, a.Kernel, vmm.AccelTCG, 100*time.Millisecond); err == nil || !strings.Contains(err.Error(), "does not boot within") {
		t.Errorf("with no time: %v", err)
	}
}
