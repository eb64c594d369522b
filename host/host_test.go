package host

import (
	"context"
	"errors"
	"os"
	"path/filepath"
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
	if second.New {
		t.Error("what is remembered is said to be new")
	}
	first.New = false
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
		again.keep(program(t, again), "another key", Trial{Works: true, Tried: true})
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

// What one guest kernel's trial has shown is still known after another's.
func TestTrialForEachKernel(t *testing.T) {
	if err := openKVM(); err != nil {
		t.Skipf("nothing is tried: %v", err)
	}
	one := accelerators(t)
	copied := filepath.Join(t.TempDir(), "vmlinuz")
	b, err := os.ReadFile(one.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(copied, b, 0o600); err != nil {
		t.Fatal(err)
	}
	other := &Accelerators{Driver: one.Driver, Kernel: copied, Cache: one.Cache}
	for i, c := range []struct {
		a   *Accelerators
		new bool
	}{{one, true}, {other, true}, {one, false}, {other, false}} {
		trial, err := c.a.KVM(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if trial.New != c.new {
			t.Errorf("question %d was tried: %v, want %v", i, trial.New, c.new)
		}
	}
}

func program(t *testing.T, a *Accelerators) string {
	t.Helper()
	in, err := a.Driver.Installation()
	if err != nil {
		t.Fatal(err)
	}
	return in.Closure.Program
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

func TestExamine(t *testing.T) {
	a := accelerators(t)
	s := Subject{Accelerators: *a, Initrd: vmmtest.Initrd(t), Dirs: []Dir{
		{Name: "images", Path: t.TempDir() + "/not/yet"}, {Name: "volumes", Path: t.TempDir(), Volumes: true},
	}}
	checks := Examine(t.Context(), s)
	seen := map[string]bool{}
	for _, c := range checks {
		t.Logf("%-15s %-4s %s | %s", c.Name, c.Status, c.Detail, c.Advice)
		if seen[c.Name] || c.Detail == "" || strings.Contains(c.Detail+c.Advice, "\n") {
			t.Errorf("%+v: want a new name and one line each", c)
		}
		seen[c.Name] = true
		if (c.Status == OK) != (c.Advice == "") {
			t.Errorf("%s: status %s with advice %q", c.Name, c.Status, c.Advice)
		}
		if c.Status == Fail && c.Name != "mkfs.ext4" && c.Name != "disk: images" {
			t.Errorf("%s fails although VMs run here: %s", c.Name, c.Detail)
		}
	}
	for _, name := range []string{"processor", "memory", "qemu", "jail", "kvm", "tcg", "guest kernel", "cgroups", "namespaces", "disk: volumes", "open files"} {
		if !seen[name] {
			t.Errorf("no check of %s", name)
		}
	}
}

func TestExamineWithout(t *testing.T) {
	status := func(checks []Check, name string) Status {
		for _, c := range checks {
			if c.Name == name {
				if c.Status != OK && c.Advice == "" {
					t.Errorf("%s: %s without advice", name, c.Detail)
				}
				return c.Status
			}
		}
		return ""
	}
	t.Run("QEMU", func(t *testing.T) {
		checks := Examine(t.Context(), Subject{Accelerators: Accelerators{Driver: qemu.New("/nonexistent/qemu")}})
		if got := status(checks, "qemu"); got != Fail {
			t.Errorf("qemu: %q", got)
		}
		if got := status(checks, "guest kernel"); got != Fail {
			t.Errorf("guest kernel: %q", got)
		}
	})
	t.Run("directory", func(t *testing.T) {
		if c := dirCheck(Dir{Name: "x", Path: "/proc/x"}); c.Status != Fail {
			t.Errorf("/proc: %+v", c)
		}
	})
	t.Run("tool", func(t *testing.T) {
		if c := toolCheck("mkfs.nonexistent", "x", "nothing"); c.Status != Fail || c.Advice == "" {
			t.Errorf("%+v", c)
		}
	})
	t.Run("another program than QEMU", func(t *testing.T) {
		a := accelerators(t)
		a.Driver = qemu.New("/bin/true")
		checks := Examine(t.Context(), Subject{Accelerators: *a})
		if got := status(checks, "jail"); got != Fail {
			t.Errorf("jail: %q in %+v", got, checks)
		}
	})
}
