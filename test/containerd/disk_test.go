package containerd

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"manis/test/stage"
)

// loopDevice is a block device of the host with a file of the test's. It can be taken down when nobody has it open.
func loopDevice(t *testing.T) (device, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, []byte("of the host"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 16<<20); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device can be made here: %v: %s", err, out)
	}
	device = strings.TrimSpace(string(out))
	t.Cleanup(func() { exec.Command("losetup", "-d", device).Run() })
	return device, file
}

// TestRawBlock gives containers block devices of the host, as kubelets do with volumes in raw block mode.
func TestRawBlock(t *testing.T) {
	device, file := loopDevice(t)
	p := newPod(t, "raw", nil)
	with := func(permissions string) func(*cri.ContainerConfig) {
		return func(c *cri.ContainerConfig) {
			c.Devices = []*cri.Device{{HostPath: device, ContainerPath: "/dev/raw", Permissions: permissions}}
		}
	}
	one := p.start("one", with("mrw"), "sh", "-c", idle)
	if out, _ := p.exec(one, "sh", "-c", "head -c 11 /dev/raw; stat -c ' %F' /dev/raw; grep -c . /sys/class/block/vd*/size | tail -n 1 | wc -l"); !strings.HasPrefix(out, "of the host block special file") {
		t.Errorf("the device is %q", out)
	}
	if out, code := p.exec(one, "sh", "-c", "printf 'of the guest' | dd of=/dev/raw bs=4096 conv=sync,fsync seek=1"); code != 0 {
		t.Errorf("write: exit %d, %s", code, out)
	}
	if b, err := os.ReadFile(file); err != nil || !bytes.HasPrefix(b[4096:], []byte("of the guest")) {
		t.Errorf("the host finds %q, %v", b[4096:4096+16], err)
	}
	if out, code := p.exec(one, "sh", "-c", "mkfs.ext2 /dev/raw >/dev/null 2>&1; wc -c </dev/raw"); code != 0 || out != "16777216" {
		t.Errorf("its size: exit %d, %s", code, out)
	}
	// Another container of the pod sees nothing of it, and one that may only read does.
	other := p.start("other", nil, "sh", "-c", idle)
	if out, code := p.exec(other, "sh", "-c", "ls /dev/raw 2>/dev/null; for n in 0 16 32 48 64; do mknod /tmp/d$n b 254 $n && head -c 1 /tmp/d$n; done 2>&1 | grep -vc 'not permitted'"); strings.TrimSpace(out) != "0" {
		t.Errorf("another container: %q, exit %d", out, code)
	}
	if _, err := p.cri.StopContainer(p.ctx, &cri.StopContainerRequest{ContainerId: one}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.cri.RemoveContainer(p.ctx, &cri.RemoveContainerRequest{ContainerId: one}); err != nil {
		t.Fatal(err)
	}
	reads := p.start("reads", with("r"), "sh", "-c", idle)
	if out, code := p.exec(reads, "sh", "-c", "wc -c </dev/raw; echo x >/dev/raw"); code == 0 || !strings.Contains(out, "16777216") {
		t.Errorf("one that may only read: %q, exit %d", out, code)
	}
	if _, err := p.cri.RemoveContainer(p.ctx, &cri.RemoveContainerRequest{ContainerId: reads}); err != nil {
		t.Fatal(err)
	}
	// The machine lives, and has let go of it: the kernel takes a loop device down when the last one closes it.
	if out, err := exec.Command("losetup", "-d", device).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	stage.Eventually(t, "the end of the loop device", func() bool {
		out, _ := exec.Command("losetup", "-j", file).Output()
		return len(out) == 0
	})
	if out, _ := p.exec(other, "echo", "goes on"); out != "goes on" {
		t.Errorf("the other container: %s", out)
	}
}
