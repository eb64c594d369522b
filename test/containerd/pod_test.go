package containerd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"manis/test/stage"
)

// pod is a sandbox that is removed after the test.
type pod struct {
	t      *testing.T
	cri    cri.RuntimeServiceClient
	ctx    context.Context
	config *cri.PodSandboxConfig
	id     string
}

func newPod(t *testing.T, name string, change func(*cri.PodSandboxConfig)) *pod {
	t.Helper()
	return newPodOf(t, "manis", name, change)
}

// newPodOf makes a pod of a handler.
func newPodOf(t *testing.T, handler, name string, change func(*cri.PodSandboxConfig)) *pod {
	t.Helper()
	p := &pod{t: t}
	p.cri, p.ctx = kubelet(t)
	p.config = &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name, Attempt: 1},
		Hostname: name + "-host", LogDirectory: dir("logs", name),
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    "/" + parent + "/" + name,
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}},
		},
	}
	if change != nil {
		change(p.config)
	}
	if err := os.MkdirAll(p.config.LogDirectory, 0o755); err != nil {
		t.Fatal(err)
	}
	answer, err := p.cri.RunPodSandbox(p.ctx, &cri.RunPodSandboxRequest{Config: p.config, RuntimeHandler: handler})
	if err != nil {
		t.Fatalf("RunPodSandbox: %v", err)
	}
	p.id = answer.PodSandboxId
	t.Cleanup(func() { remove(t, p.cri, p.id) })
	return p
}

// start starts a container of the pod.
func (p *pod) start(name string, change func(*cri.ContainerConfig), command ...string) string {
	p.t.Helper()
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: image}, Command: command, LogPath: name + ".log",
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions}},
	}
	if change != nil {
		change(config)
	}
	made, err := p.cri.CreateContainer(p.ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	if err != nil {
		p.t.Fatalf("CreateContainer: %v", err)
	}
	if _, err := p.cri.StartContainer(p.ctx, &cri.StartContainerRequest{ContainerId: made.ContainerId}); err != nil {
		p.t.Fatalf("StartContainer: %v", err)
	}
	return made.ContainerId
}

// exec runs a command and returns its output.
func (p *pod) exec(id string, command ...string) (string, int32) {
	p.t.Helper()
	r, err := p.cri.ExecSync(p.ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: 60})
	if err != nil {
		p.t.Fatalf("ExecSync %v: %v", command, err)
	}
	return strings.TrimSpace(string(r.Stdout) + string(r.Stderr)), r.ExitCode
}

func (p *pod) status(id string) *cri.ContainerStatus {
	p.t.Helper()
	r, err := p.cri.ContainerStatus(p.ctx, &cri.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		p.t.Fatalf("ContainerStatus: %v", err)
	}
	return r.Status
}

const idle = "trap 'exit 0' TERM; while :; do sleep 0.1; done"

// TestPod is a pod's life as the kubelet leads it.
func TestPod(t *testing.T) {
	p := newPod(t, "two", nil)
	machines := len(stage.Machines())
	server := p.start("server", nil, "sh", "-c", "mkdir /www; echo page >/www/index.html; echo started; exec httpd -f -p 80 -h /www")
	client := p.start("client", nil, "sh", "-c", idle)
	if n := len(stage.Machines()); n != machines || machines != 1 {
		t.Errorf("there are %d machines, and were %d before the containers", n, machines)
	}
	stage.Eventually(t, "the page by localhost", func() bool {
		out, code := p.exec(client, "wget", "-q", "-O-", "http://127.0.0.1/")
		return code == 0 && out == "page"
	})
	if out, _ := p.exec(client, "hostname"); out != "two-host" {
		t.Errorf("hostname: %s", out)
	}
	if out, code := p.exec(client, "sh", "-c", "echo words >&2; exit 6"); out != "words" || code != 6 {
		t.Errorf("exec: %q, exit %d", out, code)
	}
	r, err := p.cri.PodSandboxStatus(p.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatal(err)
	}
	address := r.Status.Network.GetIp()
	if out, _ := p.exec(client, "ip", "addr"); address == "" || !strings.Contains(out, address+"/") {
		t.Errorf("the pod's address %s is not the machine's: %s", address, out)
	}
	if log, _ := os.ReadFile(filepath.Join(p.config.LogDirectory, "server.log")); !strings.Contains(string(log), " stdout F started") {
		t.Errorf("the log file holds %q", log)
	}
	stats, err := p.cri.ContainerStats(p.ctx, &cri.ContainerStatsRequest{ContainerId: client})
	if err != nil {
		t.Fatal(err)
	}
	if s := stats.Stats; s.Cpu.GetUsageCoreNanoSeconds().GetValue() == 0 || s.Memory.GetWorkingSetBytes().GetValue() == 0 {
		t.Errorf("counters: %v", s)
	}
	if _, err := p.cri.StopContainer(p.ctx, &cri.StopContainerRequest{ContainerId: client, Timeout: 30}); err != nil {
		t.Fatal(err)
	}
	if s := p.status(client); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 0 {
		t.Errorf("the stopped container: %v", s)
	}
	if s := p.status(server); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the other one: %v", s)
	}
	if _, err := p.cri.RemoveContainer(p.ctx, &cri.RemoveContainerRequest{ContainerId: client}); err != nil {
		t.Fatal(err)
	}
	// One that ends by itself, in the place of the removed one.
	third := p.start("third", nil, "sh", "-c", "exit 9")
	stage.Eventually(t, "the end of a container", func() bool { return p.status(third).State == cri.ContainerState_CONTAINER_EXITED })
	if s := p.status(third); s.ExitCode != 9 {
		t.Errorf("exit code %d", s.ExitCode)
	}
}

// TestSharedProcesses is a pod whose containers see each other's processes.
func TestSharedProcesses(t *testing.T) {
	p := newPod(t, "shared", func(c *cri.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
		c.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1"}
	})
	p.start("one", nil, "sh", "-c", "exec sleep 54321")
	two := p.start("two", nil, "sh", "-c", idle)
	if out, _ := p.exec(two, "ps"); !strings.Contains(out, "sleep 54321") {
		t.Errorf("the other container's process is not there: %s", out)
	}
	if out, _ := p.exec(two, "cat", "/proc/sys/kernel/shm_rmid_forced"); out != "1" {
		t.Errorf("the pod's sysctl is %s", out)
	}
}

// TestLimits has a container run out of its memory, and another one's limits change.
func TestLimits(t *testing.T) {
	p := newPod(t, "limits", func(c *cri.PodSandboxConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 200 << 20, CpuQuota: 100000, CpuPeriod: 100000}
	})
	limit := func(bytes int64) func(*cri.ContainerConfig) {
		return func(c *cri.ContainerConfig) {
			c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: bytes}
		}
	}
	eats := p.start("eats", limit(32<<20), "sh", "-c", "tail /dev/zero")
	stage.Eventually(t, "the end of a container", func() bool { return p.status(eats).State == cri.ContainerState_CONTAINER_EXITED })
	if s := p.status(eats); s.Reason != "OOMKilled" || s.ExitCode == 0 {
		t.Errorf("it ended with %d (%s)", s.ExitCode, s.Reason)
	}
	other := p.start("other", limit(64<<20), "sh", "-c", idle)
	if out, _ := p.exec(other, "nproc"); out != "1" {
		t.Errorf("the machine of a pod with one CPU has %s", out)
	}
	if _, err := p.cri.UpdateContainerResources(p.ctx, &cri.UpdateContainerResourcesRequest{
		ContainerId: other, Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: 96 << 20},
	}); err != nil {
		t.Fatal(err)
	}
	if out, _ := p.exec(other, "cat", "/sys/fs/cgroup/memory.max"); out != "100663296" {
		t.Errorf("after the update the limit is %s", out)
	}
}

// TestGrow has a container's limits grow beyond the pod's machine, and shrink.
func TestGrow(t *testing.T) {
	p := newPod(t, "grow", func(c *cri.PodSandboxConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 128 << 20, CpuQuota: 100000, CpuPeriod: 100000}
	})
	limits := func(r *cri.LinuxContainerResources) func(*cri.ContainerConfig) {
		return func(c *cri.ContainerConfig) { c.Linux.Resources = r }
	}
	id := p.start("one", limits(&cri.LinuxContainerResources{MemoryLimitInBytes: 96 << 20, CpuQuota: 50000, CpuPeriod: 100000}), "sh", "-c", idle)
	p.start("two", limits(&cri.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, CpuQuota: 50000, CpuPeriod: 100000}), "sh", "-c", idle)
	// What the machine has, MiB and processors.
	size := func() (memory, processors int) {
		t.Helper()
		text, _ := p.exec(id, "cat", "/proc/meminfo")
		if _, err := fmt.Sscanf(text, "MemTotal: %d kB", &memory); err != nil {
			t.Fatalf("%v: %.80q", err, text)
		}
		out, _ := p.exec(id, "nproc")
		processors, _ = strconv.Atoi(out)
		return memory >> 10, processors
	}
	update := func(r *cri.LinuxContainerResources) {
		t.Helper()
		if _, err := p.cri.UpdateContainerResources(p.ctx, &cri.UpdateContainerResourcesRequest{ContainerId: id, Linux: r}); err != nil {
			t.Fatal(err)
		}
	}
	memory, processors := size()
	if memory > 300 || processors != 1 {
		t.Fatalf("it begins with %d MiB and %d processors", memory, processors)
	}
	update(&cri.LinuxContainerResources{MemoryLimitInBytes: 1 << 30, CpuQuota: 150000, CpuPeriod: 100000})
	grown, processors := size()
	if grown < 1<<10+32 || processors != 2 {
		t.Errorf("grown, it has %d MiB and %d processors", grown, processors)
	}
	if out, _ := p.exec(id, "cat", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cpu.max"); out != "1073741824\n150000 100000" {
		t.Errorf("the limits are %q", out)
	}
	// It is there: more than the machine had is taken, on both processors.
	if out, code := p.exec(id, "sh", "-c", "dd if=/dev/zero of=/dev/null bs=300M count=1"); code != 0 || !strings.Contains(out, "1+0 records out") {
		t.Errorf("300 MiB: exit %d, %q", code, out)
	}
	update(&cri.LinuxContainerResources{MemoryLimitInBytes: 96 << 20, CpuQuota: 50000, CpuPeriod: 100000})
	stage.Eventually(t, "memory that is given back, as far as it is not in use", func() bool {
		now, processors := size()
		return now < grown && processors == 1
	})
	// Both at once, again.
	update(&cri.LinuxContainerResources{MemoryLimitInBytes: 512 << 20, CpuQuota: 150000, CpuPeriod: 100000})
	if again, processors := size(); again < 512+32 || processors != 2 {
		t.Errorf("grown again, it has %d MiB and %d processors", again, processors)
	}
}

// TestTarget is a container that is added to a pod in order to look at one of the others (kubectl debug --target).
func TestTarget(t *testing.T) {
	p := newPod(t, "target", nil)
	p.start("one", nil, "sh", "-c", "exec sleep 11111")
	two := p.start("two", nil, "sh", "-c", "exec sleep 22222")
	debug := p.start("debug", func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: two}
	}, "sh", "-c", idle)
	if out, _ := p.exec(debug, "ps"); !strings.Contains(out, "sleep 22222") || strings.Contains(out, "sleep 11111") {
		t.Errorf("the processes are not those of the target: %s", out)
	}
}

// TestPodRestart kills containerd while a pod runs.
func TestPodRestart(t *testing.T) {
	p := newPod(t, "stays", nil)
	id := p.start("one", nil, "sh", "-c", idle)
	restart(t)
	stage.Eventually(t, "the pod", func() bool {
		r, err := p.cri.PodSandboxStatus(p.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
		return err == nil && r.Status.State == cri.PodSandboxState_SANDBOX_READY
	})
	if out, _ := p.exec(id, "echo", "again"); out != "again" {
		t.Errorf("exec: %s", out)
	}
	other := p.start("two", nil, "sh", "-c", idle)
	if s := p.status(other); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("a later container: %v", s)
	}
}

// TestPodKilled kills what a pod consists of on the host: everything is found to have ended, and can be removed.
func TestPodKilled(t *testing.T) {
	for name, code := range map[string]int32{"machine": 137, "shim": 255} {
		program := map[string]string{"machine": "qemu-system", "shim": "containerd-shim-manis-v2"}[name]
		t.Run(name, func(t *testing.T) {
			p := newPod(t, "no"+name, nil)
			id := p.start("one", nil, "sh", "-c", idle)
			for _, process := range stage.Processes() {
				if strings.Contains(strings.Fields(process.Command + " -")[0], program) {
					unix.Kill(process.PID, unix.SIGKILL)
				}
			}
			stage.Eventually(t, "the container's end", func() bool { return p.status(id).State == cri.ContainerState_CONTAINER_EXITED })
			// containerd gives 255 where there is no shim that it could ask.
			if s := p.status(id); s.ExitCode != code {
				t.Errorf("exit code %d, want %d", s.ExitCode, code)
			}
			stage.Eventually(t, "the sandbox's end", func() bool {
				r, err := p.cri.PodSandboxStatus(p.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
				return err == nil && r.Status.State == cri.PodSandboxState_SANDBOX_NOTREADY
			})
		})
	}
	nothingLeft(t)
}

// TestHostNetwork is refused with words that the kubelet shows.
func TestHostNetwork(t *testing.T) {
	client, ctx := kubelet(t)
	_, err := client.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{RuntimeHandler: "manis", Config: &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "hosts", Namespace: "default", Uid: "hosts"}, LogDirectory: dir("logs", "hosts"),
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE},
		}},
	}})
	if err == nil || !strings.Contains(status.Convert(err).Message(), "the host's network was asked for") {
		t.Errorf("RunPodSandbox: %v", err)
	}
}
