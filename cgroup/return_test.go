package cgroup

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// A process that a group's process has started goes back to where it all began, and the group can be
// removed.
func TestReturn(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make control groups")
	}
	own := Own()
	g, err := Make(Config{Path: "/manis-test-return-" + strconv.Itoa(os.Getpid()), Account: true})
	if err != nil {
		t.Skipf("no control groups on this host: %v", err)
	}
	defer g.Remove()
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	if err := g.Join(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if err := Return(cmd.Process.Pid, own); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "cgroup"))
	if err != nil || strings.Contains(string(b), "manis-test-return") {
		t.Errorf("the process is in %s, %v", b, err)
	}
	if err := g.Remove(); err != nil {
		t.Error(err)
	}
}

// Take has a process leave every group that it was put into, in hierarchies as well that no limits are set in.
func TestTake(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make control groups")
	}
	name := "manis-test-take-" + strconv.Itoa(os.Getpid())
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	pid := strconv.Itoa(cmd.Process.Pid)
	joined := 0
	for _, mounted := range []string{"devices", "systemd", "unified", "pids", "cpu", ""} {
		dir := filepath.Join(root, mounted, name)
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		defer os.Remove(dir)
		if os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(pid), 0) == nil {
			joined++
		}
	}
	if joined == 0 {
		t.Skip("no control groups on this host")
	}
	Take(cmd.Process.Pid)
	if b, err := os.ReadFile(filepath.Join("/proc", pid, "cgroup")); err != nil || string(b) != Own() {
		t.Errorf("the process is in %s, %v, and not in %s", b, err, Own())
	}
}
