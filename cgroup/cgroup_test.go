package cgroup_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"manis/cgroup"
)

// The group of a process gets limits of CPUs and memory, others in their place, and none.
func TestLimits(t *testing.T) {
	name := fmt.Sprintf("manis-test-%d", os.Getpid())
	g, err := cgroup.Make(cgroup.Config{Path: "/" + name + "/inner", Account: true})
	if err != nil {
		t.Skipf("no control group can be made here: %v", err)
	}
	outer, err := cgroup.Find(cgroup.Config{Path: "/" + name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { outer.Remove() })
	t.Cleanup(func() {
		if err := g.Remove(); err != nil {
			t.Error(err)
		}
	})
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if err := g.Join(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	const root = "/sys/fs/cgroup"
	read := func(controller, file string) string {
		b, err := os.ReadFile(filepath.Join(root, controller, name, "inner", file))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	_, v1 := os.Stat(root + "/cpu")
	for _, test := range []struct {
		limit  cgroup.CPU
		v1, v2 string
	}{
		{cgroup.CPU{Shares: 2048, QuotaUs: 200000, PeriodUs: 500000, CPUs: "0", Mems: "0"}, "2048 200000 500000 0", "79 200000 500000 0"},
		{cgroup.CPU{PeriodUs: 100000}, "2048 200000 100000 0", "79 200000 100000 0"},
		{cgroup.CPU{Shares: 1, QuotaUs: 1000, PeriodUs: 1000}, "2 1000 1000 0", "1 1000 1000 0"},
		{cgroup.CPU{QuotaUs: 900000, PeriodUs: 1000000}, "2 900000 1000000 0", "1 900000 1000000 0"},
		{cgroup.CPU{QuotaUs: -1}, "2 -1 1000000 0", "1 max 1000000 0"},
	} {
		if err := g.LimitCPU(test.limit); err != nil {
			t.Errorf("%+v: %v", test.limit, err)
			continue
		}
		if v1 == nil {
			got := strings.Join([]string{read("cpu", "cpu.shares"), read("cpu", "cpu.cfs_quota_us"), read("cpu", "cpu.cfs_period_us"), read("cpuset", "cpuset.cpus")}, " ")
			if got != test.v1 {
				t.Errorf("%+v: %s, want %s", test.limit, got, test.v1)
			}
		} else if got := read("", "cpu.weight") + " " + read("", "cpu.max") + " " + read("", "cpuset.cpus"); got != test.v2 {
			t.Errorf("%+v: %s, want %s", test.limit, got, test.v2)
		}
	}
	if err := g.LimitCPU(cgroup.CPU{CPUs: "4000"}); err == nil || !strings.Contains(err.Error(), "limit cpuset") {
		t.Errorf("a CPU that is not there: %v", err)
	}
	memory := func() string {
		if v1 == nil {
			return read("memory", "memory.limit_in_bytes")
		}
		return read("", "memory.max")
	}
	free := memory()
	if err := g.LimitMemory(64 << 20); err != nil || memory() != "67108864" {
		t.Errorf("a limit of 64 MiB: %s, %v", memory(), err)
	}
	if err := g.LimitMemory(0); err != nil || memory() != free {
		t.Errorf("no limit: %s, want %s, %v", memory(), free, err)
	}
	if err := g.LiftCPU(); err != nil {
		t.Fatal(err)
	}
	if v1 == nil {
		all, err := os.ReadFile(root + "/cpuset/cpuset.cpus")
		if got := read("cpuset", "cpuset.cpus"); err != nil || got != strings.TrimSpace(string(all)) {
			t.Errorf("after all CPUs %s, want %s", got, all)
		}
	}
}
