package agent_test

import (
	"strings"
	"testing"

	api "manis/api/agent"
)

func TestLimits(t *testing.T) {
	m := theMachine(t)
	c, p := m.start(t, sh("cd /sys/fs/cgroup; cat memory.max memory.low cpu.max cpu.weight pids.max cpuset.cpus memory.high; echo up; cat; cat memory.max cpu.max pids.max"), func(r *api.CreateContainerRequest) {
		r.Resources = &api.Resources{
			MemoryBytes: 32 << 20, MemoryLowBytes: 1 << 20, CpuQuotaUs: 50000, CpuPeriodUs: 100000, CpuWeight: 50,
			Pids: 77, Cpuset: "0", Unified: map[string]string{"memory.high": "31457280"},
		}
	})
	p.stdout.await(t, "up")
	if _, err := m.agent.Update(deadline(t), &api.UpdateRequest{Id: c.id, Resources: &api.Resources{MemoryBytes: 64 << 20, Pids: 0, CpuQuotaUs: 0}}); err != nil {
		t.Error(err)
	}
	p.stdin.Close()
	want := "33554432\n1048576\n50000 100000\n50\n77\n0\n31457280\nup\n67108864\nmax 100000\nmax\n"
	if r := p.wait(); r.stdout != want {
		t.Errorf("got %q, want %q", r.stdout, want)
	}
}

// The files that an OCI configuration's limits become besides.
func TestUnifiedLimits(t *testing.T) {
	m := theMachine(t)
	r := m.run(t, sh("cd /sys/fs/cgroup; cat cpu.max.burst hugetlb.2MB.max hugetlb.2MB.rsvd.max cpu.idle"), func(r *api.CreateContainerRequest) {
		r.Resources = &api.Resources{CpuQuotaUs: 50000, CpuPeriodUs: 100000, Unified: map[string]string{
			"cpu.max.burst": "1000", "hugetlb.2MB.max": "4194304", "hugetlb.2MB.rsvd.max": "2097152", "cpu.idle": "1",
		}}
	})
	if r.stdout != "1000\n4194304\n2097152\n1\n" {
		t.Errorf("got %q %s", r.stdout, r.stderr)
	}
}

func TestOutOfMemory(t *testing.T) {
	m := theMachine(t)
	r := m.run(t, sh("exec dd if=/dev/zero of=/dev/null bs=64M count=1"), func(r *api.CreateContainerRequest) {
		r.Resources = &api.Resources{MemoryBytes: 16 << 20}
	})
	if r.ExitCode != 137 || !r.OomKilled {
		t.Errorf("got %v", r.WaitResponse)
	}
	if r := m.run(t, sh("echo alive"), nil); r.stdout != "alive\n" || r.OomKilled {
		t.Errorf("afterwards: %q", r.stdout)
	}
}

func TestMemoryOfTheMachineIsNotExhausted(t *testing.T) {
	m := theMachine(t)
	// No limit of its own: the machine's less the reserve holds.
	r := m.run(t, sh("exec dd if=/dev/zero of=/dev/null bs=900M count=1"), nil)
	if r.ExitCode == 0 {
		t.Errorf("got %v %s", r.WaitResponse, r.stderr)
	}
	if r := m.run(t, sh("echo alive"), nil); r.stdout != "alive\n" {
		t.Errorf("afterwards: %q", r.stdout)
	}
}

func TestForkBomb(t *testing.T) {
	m := theMachine(t)
	bomb := sh("f() { f | f & }; f; while :; do f; sleep 0.01; done")
	c, p := m.start(t, bomb, func(r *api.CreateContainerRequest) {
		r.Resources = &api.Resources{Pids: 60}
	})
	p.stdin.Close()
	// Meanwhile the agent serves, and others run.
	for range 3 {
		stats, err := m.agent.Stats(deadline(t), &api.ContainerRef{Id: c.id})
		if err != nil {
			t.Fatal(err)
		}
		if stats.Pids > 60 || stats.PidsLimit != 60 {
			t.Errorf("%d processes of %d", stats.Pids, stats.PidsLimit)
		}
		if r := m.run(t, sh("echo alive"), nil); r.stdout != "alive\n" {
			t.Errorf("other container: %q", r.stdout)
		}
	}
	if _, err := m.agent.Signal(deadline(t), &api.SignalRequest{Id: c.id, Signal: 9, All: true}); err != nil {
		t.Fatal(err)
	}
	p.wait()
}

func TestForkBombWithoutLimit(t *testing.T) {
	m := theMachine(t)
	c, p := m.start(t, sh("while :; do sleep 1000 & done"), nil)
	p.stdin.Close()
	// Until processes or memory of the whole sandbox are nearly used up.
	for count, same := uint64(0), 0; same < 3; {
		s, err := m.agent.Stats(deadline(t), &api.ContainerRef{Id: c.id})
		if err != nil {
			t.Fatal(err)
		}
		if s.Pids > count {
			count, same = s.Pids, 0
		} else {
			same++
		}
	}
	if _, err := m.agent.Signal(deadline(t), &api.SignalRequest{Id: c.id, Signal: 9, All: true}); err != nil {
		t.Fatal(err)
	}
	p.wait()
	if r := m.run(t, sh("echo alive"), nil); r.stdout != "alive\n" {
		t.Errorf("afterwards: %q", r.stdout)
	}
}

func TestStats(t *testing.T) {
	m := theMachine(t)
	c, p := m.start(t, sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; cat /bin/busybox >/tmp/copy; echo up; cat"), func(r *api.CreateContainerRequest) {
		r.Resources = &api.Resources{MemoryBytes: 64 << 20, Pids: 50}
	})
	p.stdout.await(t, "up")
	s, err := m.agent.Stats(deadline(t), &api.ContainerRef{Id: c.id})
	if err != nil {
		t.Fatal(err)
	}
	if s.MemoryBytes < 1<<20 || s.MemoryLimitBytes != 64<<20 || s.CpuUsageUs == 0 || s.CpuUserUs == 0 || s.Pids != 2 && s.Pids != 1 || s.PidsLimit != 50 || s.MemoryStat["anon"] == 0 {
		t.Errorf("stats %v", s)
	}
	p.stdin.Close()
}

func TestCgroupTreeOfTheContainer(t *testing.T) {
	m := theMachine(t)
	// A container that makes cgroups of its own: exec joins its first process
	// there, and all of it is removed.
	c, p := m.start(t, sh("mkdir /sys/fs/cgroup/own && echo $$ >/sys/fs/cgroup/own/cgroup.procs && echo +pids >/sys/fs/cgroup/cgroup.subtree_control && echo up; cat"), func(r *api.CreateContainerRequest) {
		r.Privileged = true
		r.Process.Capabilities = &api.Capabilities{Bounding: capabilityNames, Effective: capabilityNames, Permitted: capabilityNames}
	})
	p.stdout.await(t, "up")
	if r := c.exec(sh("cat /proc/self/cgroup")); !strings.Contains(r.stdout, "/own") && r.stdout != "0::/\n" {
		t.Errorf("exec is in %q", r.stdout)
	}
	if list, err := m.agent.Processes(deadline(t), &api.ContainerRef{Id: c.id}); err != nil || len(list.Processes) != 1 {
		t.Errorf("processes %v, %v", list, err)
	}
	p.stdin.Close()
	p.wait()
}
