package containerd

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"manis/test/stage"
)

// TestSandboxAPI is a pod that containerd makes by the Sandbox API: no container stands for it.
func TestSandboxAPI(t *testing.T) {
	c := ctr(t)
	t.Cleanup(func() { nothingLeft(t) })
	p := newPodOf(t, sandboxHandler, "api", func(c *cri.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1"}
		c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 200 << 20, CpuQuota: 100000, CpuPeriod: 100000}
		c.DnsConfig = &cri.DNSConfig{Servers: []string{"192.0.2.7"}, Searches: []string{"pods.test"}}
	})
	if tasks := c.OK(t, "-n", "k8s.io", "container", "ls", "-q"); strings.Contains(tasks, p.id) {
		t.Errorf("a container stands for the pod: %s", tasks)
	}
	machines := stage.Machines()
	if len(machines) != 1 {
		t.Fatalf("there are %d machines", len(machines))
	}
	for line := range strings.Lines(groupsOf(t, machines[0].PID)) {
		if strings.Contains(line, ":memory:") && !strings.Contains(line, filepath.Join("/", parent, "api", p.id)) {
			t.Errorf("the machine is in %s", line)
		}
	}
	one := p.start("one", nil, "sh", "-c", idle)
	two := p.start("two", nil, "sh", "-c", idle)
	for command, want := range map[string]string{
		"hostname": "api-host", "nproc": "1", "cat /proc/sys/kernel/shm_rmid_forced": "1", "cat /etc/hostname": "api-host",
		"cat /etc/resolv.conf": "nameserver 192.0.2.7\nsearch pods.test", "echo shared >/dev/shm/x": "",
	} {
		if out, code := p.exec(one, "sh", "-c", command); out != want || code != 0 {
			t.Errorf("%s: %q, exit %d", command, out, code)
		}
	}
	if out, _ := p.exec(two, "cat", "/dev/shm/x"); out != "shared" {
		t.Errorf("the other container's shared memory: %s", out)
	}
	if out, _ := p.exec(two, "grep", "-c", "localhost", "/etc/hosts"); out != "2" {
		t.Errorf("/etc/hosts: %s", out)
	}
	r, err := p.cri.PodSandboxStatus(p.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatal(err)
	}
	if out, _ := p.exec(one, "ip", "addr"); r.Status.State != cri.PodSandboxState_SANDBOX_READY || !strings.Contains(out, r.Status.Network.GetIp()+"/") {
		t.Errorf("the status is %v, the addresses %s", r.Status, out)
	}
	podCounts(t, p)
	restart(t)
	stage.Eventually(t, "the pod", func() bool {
		r, err := p.cri.PodSandboxStatus(p.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
		return err == nil && r.Status.State == cri.PodSandboxState_SANDBOX_READY
	})
	if out, _ := p.exec(one, "echo", "again"); out != "again" {
		t.Errorf("exec: %s", out)
	}
	if _, err := p.cri.StopContainer(p.ctx, &cri.StopContainerRequest{ContainerId: two, Timeout: 30}); err != nil {
		t.Error(err)
	}
	if _, err := p.cri.RemoveContainer(p.ctx, &cri.RemoveContainerRequest{ContainerId: two}); err != nil {
		t.Error(err)
	}
	three := p.start("three", nil, "sh", "-c", "exit 9")
	stage.Eventually(t, "the end of a container", func() bool { return p.status(three).State == cri.ContainerState_CONTAINER_EXITED })
	if s := p.status(three); s.ExitCode != 9 {
		t.Errorf("exit code %d", s.ExitCode)
	}
	for _, victim := range []string{"machine", "shim"} {
		t.Run("dead "+victim, func(t *testing.T) {
			before := machinesNow()
			p := newPodOf(t, sandboxHandler, "api"+victim, nil)
			id := p.start("one", nil, "sh", "-c", idle)
			pid := newest(before)
			if victim == "shim" {
				pid = parentOf(pid)
			}
			unix.Kill(pid, unix.SIGKILL)
			stage.Eventually(t, "the container's end", func() bool { return p.status(id).State == cri.ContainerState_CONTAINER_EXITED })
			stage.Eventually(t, "the sandbox's end", func() bool {
				r, err := p.cri.PodSandboxStatus(p.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
				return err == nil && r.Status.State == cri.PodSandboxState_SANDBOX_NOTREADY
			})
			if victim == "machine" {
				stage.Eventually(t, "the reason in containerd's log", func() bool {
					return reported("sandbox " + p.id + ": the virtual machine of the pod ended")
				})
			}
		})
	}
	t.Run("the host's network", func(t *testing.T) {
		_, err := p.cri.RunPodSandbox(p.ctx, &cri.RunPodSandboxRequest{RuntimeHandler: sandboxHandler, Config: &cri.PodSandboxConfig{
			Metadata: &cri.PodSandboxMetadata{Name: "apihosts", Namespace: "default", Uid: "apihosts"}, LogDirectory: dir("logs", "apihosts"),
			Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE},
			}},
		}})
		if err == nil || !strings.Contains(err.Error(), "the host's network was asked for") {
			t.Errorf("RunPodSandbox: %v", err)
		}
	})
}

// newest is the machine that was not there before.
func newest(before []int) int {
	for _, pid := range machinesNow() {
		found := false
		for _, old := range before {
			found = found || old == pid
		}
		if !found {
			return pid
		}
	}
	return 0
}

// podCounts checks that a pod's counters are those of its machine, and grow.
func podCounts(t *testing.T, p *pod) {
	t.Helper()
	counts := func() *cri.LinuxPodSandboxStats {
		r, err := p.cri.PodSandboxStats(p.ctx, &cri.PodSandboxStatsRequest{PodSandboxId: p.id})
		if err != nil {
			t.Fatal(err)
		}
		return r.Stats.Linux
	}
	before := counts()
	if n := before.GetMemory().GetWorkingSetBytes().GetValue(); n < 20<<20 {
		t.Errorf("the pod has %d bytes of memory, less than any machine", n)
	}
	if n := before.GetCpu().GetUsageCoreNanoSeconds().GetValue(); n < uint64(10*time.Millisecond) {
		t.Errorf("the pod has used %d ns of a processor", n)
	}
	id := p.start("counts", nil, "sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; exec sleep 1000")
	stage.Eventually(t, "more time of processors", func() bool {
		return counts().GetCpu().GetUsageCoreNanoSeconds().GetValue() > before.GetCpu().GetUsageCoreNanoSeconds().GetValue()
	})
	p.exec(id, "wget", "-q", "-T", "1", "-O-", "http://10.88.7.1:1/")
	stage.Eventually(t, "bytes in the network", func() bool {
		return counts().GetNetwork().GetDefaultInterface().GetTxBytes().GetValue() > 0
	})
}

// TestPodCounts reads the counters of a pod for which a container stands.
func TestPodCounts(t *testing.T) {
	p := newPod(t, "counts", nil)
	p.start("one", nil, "sh", "-c", idle)
	podCounts(t, p)
	r := ctr(t).OK(t, "-n", "k8s.io", "task", "metrics", p.id)
	for line := range strings.Lines(r) {
		if f := strings.Fields(line); len(f) == 2 && (strings.HasPrefix(f[0], "memory.usage") || strings.HasPrefix(f[0], "cpu")) && f[1] == "0" {
			t.Errorf("the sandbox's task has used nothing: %s", r)
		}
	}
}
