package priority

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// classes are those of a process's threads.
func classes(t *testing.T, pid int) (all []Class) {
	t.Helper()
	tasks, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "task"))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		tid, _ := strconv.Atoi(task.Name())
		if attr, err := unix.SchedGetAttr(tid, 0); err == nil {
			all = append(all, Class(attr.Policy))
		}
	}
	return all
}

// A process begins idle and becomes an ordinary one, its starter stays one.
func TestClasses(t *testing.T) {
	if Idle.set(os.Getpid()) != nil || Ordinary.set(os.Getpid()) != nil {
		t.Skip("this user may not change the class of a thread")
	}
	cmd := exec.Command("sleep", "1000")
	if err := StartIdle(cmd); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	pid := cmd.Process.Pid
	for _, c := range classes(t, os.Getpid()) {
		if c != Ordinary {
			t.Errorf("the starter has a thread of the class %d", c)
		}
	}
	if got := classes(t, pid); len(got) != 1 || got[0] != Idle {
		t.Errorf("started with %v", got)
	}
	Give(pid, Ordinary)
	if got := classes(t, pid); len(got) != 1 || got[0] != Ordinary {
		t.Errorf("became %v", got)
	}
	// All threads of one that has several.
	Give(os.Getpid(), Idle)
	all := classes(t, os.Getpid())
	Give(os.Getpid(), Ordinary)
	if len(all) < 2 {
		t.Errorf("a Go process of %d threads", len(all))
	}
	for _, c := range all {
		if c != Idle {
			t.Errorf("a thread of the class %d was left", c)
		}
	}
}
