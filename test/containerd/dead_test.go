package containerd

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"manis/test/stage"
)

// removalTime is how long a pod's removal may take whatever has become of its parts: Manis's own deadlines are shorter.
const removalTime = time.Minute

// remove stops and removes a sandbox within removalTime. As long as containerd still uses the connection to a shim that has just died,
// it does what the kubelet does: it asks again.
func remove(t *testing.T, client cri.RuntimeServiceClient, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), removalTime)
	defer cancel()
	again := func(what string, request func() error) {
		t.Helper()
		err := request()
		for err != nil && strings.Contains(err.Error(), "ttrpc: closed") && ctx.Err() == nil {
			time.Sleep(100 * time.Millisecond)
			err = request()
		}
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	again("StopPodSandbox", func() error {
		_, err := client.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
		return err
	})
	again("RemovePodSandbox", func() error {
		_, err := client.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
		return err
	})
}

// kill kills a part of a pod on the host: its machine, its shim, or containerd, which is started again.
func kill(t *testing.T, part string, machine int) {
	t.Helper()
	switch part {
	case "machine":
		unix.Kill(machine, unix.SIGKILL)
	case "shim":
		unix.Kill(parentOf(machine), unix.SIGKILL)
	case "containerd":
		restart(t)
	}
}

// machinesNow are the processes of machines.
func machinesNow() []int {
	var pids []int
	for _, p := range stage.Machines() {
		pids = append(pids, p.PID)
	}
	return pids
}

// TestDeadWhileMade kills what a pod consists of while it is being made: that ends with an error, and what there is of
// it can be removed.
func TestDeadWhileMade(t *testing.T) {
	client, ctx := kubelet(t)
	for _, part := range []string{"machine", "shim", "containerd"} {
		t.Run(part, func(t *testing.T) {
			before := machinesNow()
			name := "made" + part
			config := &cri.PodSandboxConfig{
				Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name}, LogDirectory: dir("logs", name),
				Linux: &cri.LinuxPodSandboxConfig{CgroupParent: "/" + parent + "/" + name},
			}
			done := make(chan error, 1)
			go func() {
				_, err := client.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: "manis"})
				done <- err
			}()
			machine := 0
			for end := time.Now().Add(time.Minute); machine == 0 && time.Now().Before(end); {
				for _, pid := range machinesNow() {
					if !slices.Contains(before, pid) {
						machine = pid
					}
				}
			}
			kill(t, part, machine)
			// A machine that ends in its beginning is only started anew.
			if err := <-done; err == nil && part != "machine" {
				t.Error("RunPodSandbox has seen nothing")
			}
			list, err := client.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range list.Items {
				remove(t, client, s.Id)
			}
		})
	}
	nothingLeft(t)
}

// TestDead kills what a pod consists of at each later point of its life. What ran has ended with a code, and nothing hangs.
func TestDead(t *testing.T) {
	for _, part := range []string{"machine", "shim", "containerd"} {
		t.Run(part+" before a container", func(t *testing.T) {
			p := newPod(t, "before"+part, nil)
			kill(t, part, podMachine(t, p))
			if part == "containerd" {
				id := p.start("one", nil, "sh", "-c", idle)
				if out, _ := p.exec(id, "echo", "here"); out != "here" {
					t.Errorf("exec: %s", out)
				}
				return
			}
			config := &cri.ContainerConfig{Metadata: &cri.ContainerMetadata{Name: "late"}, Image: &cri.ImageSpec{Image: image}, Command: []string{"true"}}
			made, err := p.cri.CreateContainer(p.ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
			if err == nil {
				_, err = p.cri.StartContainer(p.ctx, &cri.StartContainerRequest{ContainerId: made.ContainerId})
			}
			if err == nil {
				t.Error("a container was started in a dead pod")
			}
		})
		t.Run(part+" while exec runs", func(t *testing.T) {
			p := newPod(t, "exec"+part, nil)
			id := p.start("one", nil, "sh", "-c", idle)
			ended := make(chan error, 1)
			go func() {
				r, err := p.cri.ExecSync(p.ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "touch /tmp/runs; sleep 1000"}, Timeout: 100})
				if err == nil && r.ExitCode == 0 {
					t.Error("a killed process has ended with 0")
				}
				ended <- err
			}()
			stage.Eventually(t, "the exec", func() bool {
				_, code := p.exec(id, "test", "-e", "/tmp/runs")
				return code == 0
			})
			kill(t, part, podMachine(t, p))
			select {
			case <-ended:
			case <-time.After(removalTime):
				t.Error("the caller of exec still waits")
			}
			if part != "containerd" {
				stage.Eventually(t, "the container's end", func() bool { return p.status(id).State == cri.ContainerState_CONTAINER_EXITED })
			}
		})
		t.Run(part+" while it stops", func(t *testing.T) {
			p := newPod(t, "stop"+part, nil)
			id := p.start("one", nil, "sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
			machine := podMachine(t, p)
			stopped := make(chan error, 1)
			ctx, cancel := context.WithTimeout(p.ctx, removalTime)
			defer cancel()
			go func() {
				_, err := p.cri.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id, Timeout: 5})
				stopped <- err
			}()
			time.Sleep(200 * time.Millisecond) // within its grace
			kill(t, part, machine)
			if err := <-stopped; err != nil && ctx.Err() != nil {
				t.Errorf("StopContainer: %v", err)
			}
		})
	}
	nothingLeft(t)
}

// TestHung has a machine stop answering: requests end with a reason, and the pod can be stopped and removed.
func TestHung(t *testing.T) {
	ctr(t)
	t.Cleanup(func() { nothingLeft(t) })
	p := newPod(t, "hung", nil)
	id := p.start("one", nil, "sh", "-c", idle)
	// It stands still as a guest does that spins with interrupts off.
	unix.Kill(podMachine(t, p), unix.SIGSTOP)
	_, err := p.cri.UpdateContainerResources(p.ctx, &cri.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: 96 << 20},
	})
	if err == nil || !strings.Contains(status.Convert(err).Message(), "has not answered") {
		t.Errorf("UpdateContainerResources: %v", err)
	}
	ctx, cancel := context.WithTimeout(p.ctx, removalTime)
	defer cancel()
	if _, err := p.cri.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id}); err != nil {
		t.Errorf("StopContainer: %v", err)
	}
	if s := p.status(id); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
		t.Errorf("the container: %v", s)
	}
	if !reported("the virtual machine is ended: its agent has not taken SIGKILL for container " + id) {
		t.Error("containerd's log does not give the reason")
	}
	// One that is hung from the beginning of its removal.
	other := newPod(t, "hung2", nil)
	other.start("one", nil, "sh", "-c", idle)
	unix.Kill(podMachine(t, other), unix.SIGSTOP)
	remove(t, other.cri, other.id)
}

// TestNoGuest has the guest's files missing: the error names what and where.
func TestNoGuest(t *testing.T) {
	client, ctx := kubelet(t)
	for _, name := range []string{"vmlinuz", "initramfs"} {
		path := filepath.Join(filepath.Dir(stage.Manis(t)), "..", "lib", "manis", name)
		if err := os.Rename(path, path+".away"); err != nil {
			t.Fatal(err)
		}
		_, err := client.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{RuntimeHandler: "manis", Config: &cri.PodSandboxConfig{
			Metadata: &cri.PodSandboxMetadata{Name: "no" + name, Namespace: "default", Uid: name}, LogDirectory: dir("logs", name),
		}})
		if e := os.Rename(path+".away", path); e != nil {
			t.Fatal(e)
		}
		if text := status.Convert(err).Message(); !strings.Contains(text, name) || !strings.Contains(text, "lib/manis") || !strings.Contains(text, "MANIS_GUEST") {
			t.Errorf("without %s: %v", name, err)
		}
	}
	nothingLeft(t)
}
