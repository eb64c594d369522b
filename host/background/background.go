// Package background has work done that nobody waits for, by a process of its own that belongs to nobody: it outlives who
// has started it, runs when no other process wants to, and ends by itself. The package does not know
// what is done.
package background

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"manis/cgroup"
	"manis/host/priority"
)

// GroupsVariable in the environment says, in the form of /proc/PID/cgroup, in which control groups such a process belongs.
// The group of a container, in which it is started, would not become empty with the container's end.
const GroupsVariable = "MANIS_BACKGROUND_GROUPS"

// Start starts this program with an action and its argument, and with further variables in its environment. Where that
// is not possible the work is not done.
func Start(action, argument string, environ ...string) {
	cmd := exec.Command("/proc/self/exe", action, argument)
	cmd.Args[0] = "manis"
	cmd.Env = append(os.Environ(), environ...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if cmd.Start() == nil {
		go cmd.Wait()
	}
}

// Settle is what the process that was started does first: it, and what it starts, takes the processor when nobody else wants
// it, and leaves the control groups of who has started it.
func Settle() error {
	priority.Give(os.Getpid(), priority.Idle)
	groups := os.Getenv(GroupsVariable)
	if groups == "" {
		return nil
	}
	if err := cgroup.Return(os.Getpid(), groups); err != nil {
		return fmt.Errorf("leave the container's control group: %w", err)
	}
	return nil
}
