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
