package containerd

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"manis/place"
	"manis/pool"
	"manis/test/stage"
)

// keeper is a manisd of a test's.
type keeper struct {
	t   *testing.T
	cmd *exec.Cmd
}

// startKeeper starts manisd with these settings. That other tests keep the host busy is no reason for it to wait.
func startKeeper(t *testing.T, settings string) *keeper {
	t.Helper()
	config := filepath.Join(t.TempDir(), "manisd.json")
	if err := os.WriteFile(config, []byte(settings), 0o644); err != nil {
		t.Fatal(err)
	}
	k := &keeper{t: t, cmd: exec.Command(filepath.Join(filepath.Dir(stage.Manis(t)), "manisd"), "--max-pressure", "0", "--config", config)}
	k.cmd.Env = suite.env
	said := new(strings.Builder)
	k.cmd.Stderr = said
	if err := k.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		k.end(unix.SIGTERM)
		if t.Failed() {
			t.Logf("manisd said: %s", said)
		}
	})
	return k
}

// end sends a signal and waits.
func (k *keeper) end(signal unix.Signal) {
	k.cmd.Process.Signal(signal)
	k.cmd.Wait()
}

// counts are what manis pool ls says of machines for engines.
func (k *keeper) counts() (waiting, claims, misses string) {
	k.t.Helper()
	cmd := exec.Command(stage.Manis(k.t), "pool", "ls", "--format", "{{json .}}")
	cmd.Env = suite.env
	out, err := cmd.Output()
	if err != nil {
		return "", "", ""
	}
	for line := range strings.Lines(string(out)) {
		var row struct{ For, Waiting, Claims, Misses string }
		if json.Unmarshal([]byte(line), &row) == nil && row.For == "engines" {
			return row.Waiting, row.Claims, row.Misses
		}
	}
	return "", "", ""
}

func (k *keeper) awaitWaiting() {
	k.t.Helper()
	stage.Eventually(k.t, "a machine to wait", func() bool {
		waiting, _, _ := k.counts()
		return waiting == "1"
	})
}

// groupsOf lists the control groups of a process, without their controllers.
func groupsOf(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestPool has pods and a container that is alone use machines that wait: they are claimed, what they
// become is like any other shim with its machine, and without one pods start as before.
func TestPool(t *testing.T) {
	c := ctr(t)
	t.Cleanup(func() { nothingLeft(t) })
	k := startKeeper(t, `{"sizes": [{"waiting": 1, "max": 1, "engines": true}], "otherSizes": 0}`)
	k.awaitWaiting()
	before := stage.Machines()[0].PID
	began := time.Now()
	p := newPod(t, "waited", func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1"} })
	t.Logf("RunPodSandbox with a machine that waited: %v", time.Since(began).Round(time.Millisecond))
	if _, claims, _ := k.counts(); claims != "1" {
		t.Fatalf("%s machines were claimed", claims)
	}
	// The machine, and the process that serves, are in the pod's group on the host and nowhere else.
	shim := 0
	for _, x := range stage.Processes() {
		if x.PID == before {
			shim = x.Parent
		}
	}
	for _, pid := range []int{before, shim} {
		for line := range strings.Lines(groupsOf(t, pid)) {
			if strings.Contains(line, ":memory:") && !strings.Contains(line, "/"+parent+"/waited/"+p.id) {
				t.Errorf("process %d is in %s", pid, line)
			}
		}
	}
	one := p.start("one", nil, "sh", "-c", idle)
	stage.Eventually(t, "manisd to hear of a pod and a container", func() bool {
		s, err := pool.Ask(t.Context(), "/run/manis/"+place.PoolSocketName)
		if err != nil || len(s.Starts) != 2 {
			return false
		}
		heard := map[string]uint64{}
		for _, one := range s.Starts {
			heard[one.What] = one.Results[pool.Started]
		}
		return heard[pool.PodStart] == 1 && heard[pool.ContainerStart] == 1
	})
	if out, _ := p.exec(one, "hostname"); out != "waited-host" {
		t.Errorf("hostname: %s", out)
	}
	if out, _ := p.exec(one, "cat", "/proc/sys/kernel/shm_rmid_forced"); out != "1" {
		t.Errorf("the pod's sysctl is %s", out)
	}
	r, err := p.cri.PodSandboxStatus(p.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatal(err)
	}
	if out, _ := p.exec(one, "ip", "addr"); !strings.Contains(out, r.Status.Network.GetIp()+"/") {
		t.Errorf("the pod's address %s is not the machine's: %s", r.Status.Network.GetIp(), out)
	}
	// The end of who has kept it, and of containerd, are nothing to a pod.
	k.awaitWaiting()
	k.end(unix.SIGKILL)
	restart(t)
	stage.Eventually(t, "the pod", func() bool {
		r, err := p.cri.ContainerStatus(p.ctx, &cri.ContainerStatusRequest{ContainerId: one})
		return err == nil && r.Status.State == cri.ContainerState_CONTAINER_RUNNING
	})
	if out, _ := p.exec(one, "echo", "again"); out != "again" {
		t.Errorf("exec: %s", out)
	}
	began = time.Now()
	other := newPod(t, "fresh", nil)
	t.Logf("RunPodSandbox without: %v", time.Since(began).Round(time.Millisecond))
	other.start("one", nil, "sh", "-c", idle)

	t.Run("alone", func(t *testing.T) {
		k := startKeeper(t, `{"sizes": [{"waiting": 1, "max": 1, "engines": true}], "otherSizes": 0}`)
		k.awaitWaiting()
		r := c.Run(t, "run", "--rm", "--runtime", runtime, image, "alone", "sh", "-c", "echo here; exit 3")
		if _, claims, _ := k.counts(); r.Code != 3 || r.Out != "here\n" || claims != "1" {
			t.Errorf("%v; %s machines were claimed", r, claims)
		}
	})
	t.Run("another size", func(t *testing.T) {
		k := startKeeper(t, `{"sizes": [{"waiting": 1, "max": 1, "engines": true}], "otherSizes": 0}`)
		k.awaitWaiting()
		newPod(t, "larger", func(c *cri.PodSandboxConfig) {
			c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 200 << 20}
		})
		if waiting, claims, _ := k.counts(); claims != "0" || waiting != "1" {
			t.Errorf("%s machines of the wrong size were claimed, %s wait", claims, waiting)
		}
	})
	for _, victim := range []string{"machine", "shim"} {
		t.Run("dead "+victim, func(t *testing.T) {
			k := startKeeper(t, `{"sizes": [{"waiting": 1, "max": 1, "engines": true}], "otherSizes": 0}`)
			k.awaitWaiting()
			p := newPod(t, "dead"+victim, nil)
			id := p.start("one", nil, "sh", "-c", idle)
			pid := podMachine(t, p)
			if victim == "shim" {
				pid = parentOf(pid)
			}
			unix.Kill(pid, unix.SIGKILL)
			stage.Eventually(t, "the container's end", func() bool { return p.status(id).State == cri.ContainerState_CONTAINER_EXITED })
		})
	}
}

// podMachine is the process of a pod's machine, which is what its sandbox's task is for containerd.
func podMachine(t *testing.T, p *pod) int {
	t.Helper()
	r, err := p.cri.PodSandboxStatus(p.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ PID int }
	if err := json.Unmarshal([]byte(r.Info["info"]), &info); err != nil || info.PID == 0 {
		t.Fatalf("the sandbox has no process: %v: %s", err, r.Info["info"])
	}
	return info.PID
}

// parentOf is the process that has started another one.
func parentOf(pid int) int {
	for _, p := range stage.Processes() {
		if p.PID == pid {
			return p.Parent
		}
	}
	return 0
}
