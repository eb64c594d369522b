package qemu_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"manis/vmm"
	"manis/vmm/qemu"
	"manis/vmm/vmmtest"
)

func TestMain(m *testing.M) {
	os.Exit(vmmtest.Main(m))
}

func driver(t testing.TB) *qemu.Driver {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("QEMU is not installed: ", err)
	}
	return qemu.New("")
}

func TestDriver(t *testing.T) { vmmtest.Run(t, driver(t)) }

// TestJail looks at the jail of a running VM the way `manis inspect` does, and
// past it at /proc.
func TestJail(t *testing.T) {
	c := vmm.Config{Kernel: vmmtest.Kernel(t), Initrd: vmmtest.Initrd(t), MemoryBytes: 128 << 20}
	v, _ := vmmtest.Start(t, driver(t), c)
	info := v.Info()
	for _, f := range info.Jail {
		if !f.InForce && f.Name != "control group" && f.Name != "Landlock" && f.Name != "starter" {
			t.Errorf("%s: not in force: %s", f.Name, f.Detail)
		}
		t.Logf("%-15s %v: %s", f.Name, f.InForce, f.Detail)
	}
	if len(info.Jail) < 10 {
		t.Errorf("%d facts", len(info.Jail))
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", info.PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"NoNewPrivs:\t1\n", "Seccomp:\t2\n", "Seccomp_filters:\t3\n", "CapEff:\t0000000000000000\n", "CapBnd:\t0000000000000000\n"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("status lacks %q", want)
		}
	}
	if os.Geteuid() == 0 && strings.Contains(string(status), "Uid:\t0\t") {
		t.Error("QEMU runs as root")
	}
	for _, path := range []string{"etc", "home", "proc", "sys", "dev", "usr/bin/sh", "tmp"} {
		if _, err := os.Lstat(fmt.Sprintf("/proc/%d/root/%s", info.PID, path)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("/%s in the jail: %v, want not there", path, err)
		}
	}
}

func TestUnjailed(t *testing.T) {
	c := vmm.Config{Kernel: vmmtest.Kernel(t), Initrd: vmmtest.Initrd(t), MemoryBytes: 128 << 20, Unjailed: true}
	v, _ := vmmtest.Start(t, driver(t), c)
	if jail := v.Info().Jail; len(jail) != 1 || jail[0].InForce {
		t.Errorf("facts %+v, want that there is no jail", jail)
	}
	c.Shares = []vmm.Share{{Tag: "t", Entries: []vmm.ShareEntry{{Name: "a", HostPath: "/etc"}}}}
	if _, err := driver(t).Start(t.Context(), c); !errors.Is(err, vmm.ErrConfig) {
		t.Errorf("shares without a jail: %v, want ErrConfig", err)
	}
}

// TestMonitorDies kills a process that runs a VM, in the way that leaves it no
// chance to clean up.
func TestMonitorDies(t *testing.T) {
	if os.Getenv(monitorVar) != "" {
		v, _ := vmmtest.Start(t, driver(t), vmm.Config{Kernel: vmmtest.Kernel(t), Initrd: vmmtest.Initrd(t), MemoryBytes: 128 << 20})
		fmt.Printf("pid %d\n", v.Info().PID)
		select {}
	}
	vmmtest.Kernel(t)
	driver(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestMonitorDies$", "-test.timeout=3m")
	// As a second run it neither builds the guest nor repeats itself.
	cmd.Env = append(os.Environ(), monitorVar+"=1", "MANIS_TEST_SECOND_RUN=1", "TMPDIR="+t.TempDir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	pid := 0
	for lines := bufio.NewScanner(out); pid == 0 && lines.Scan(); {
		fmt.Sscanf(lines.Text(), "pid %d", &pid)
	}
	if pid == 0 {
		t.Fatal("the monitor started no VM")
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// A pidfd becomes readable when its process has ended.
	n, err := 0, error(unix.EINTR)
	for err == unix.EINTR {
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 60_000)
	}
	if n != 1 {
		t.Errorf("QEMU (%d) outlives its monitor: %v", pid, err)
		unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
	}
}

const monitorVar = "MANIS_TEST_MONITOR"

func TestAbilities(t *testing.T) {
	a, err := driver(t).Abilities(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if a.Major < 7 || !a.TCG || len(a.Missing) > 0 || len(a.Jail) < 10 {
		t.Errorf("%+v", a)
	}
}

// A host may give every program the same addresses. Then a program that continues a saved one has its
// stack where the saved one had its own; elsewhere that happens once in some thousand times.
func TestSaveWithoutRandomAddresses(t *testing.T) {
	driver(t)
	vmmtest.Kernel(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("setarch", "--addr-no-randomize", self, "-test.run=^TestDriver$/^Save$", "-test.count=1")
	cmd.Env = append(os.Environ(), vmmtest.SecondRun+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
