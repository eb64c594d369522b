package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"time"
)

// task is a program to run in a container.
type task struct {
	args []string
	// volume is a host directory, to be seen read-only at /volume.
	volume string
	// port of the container is to be reached on 127.0.0.1 of the host.
	port int
	// netns is the path of a network namespace to be in, for runtimes that take a bundle.
	netns string
	// stdin connects the container's to the command's.
	stdin bool
	// trace asks for the phases of the start on the command's stderr, where the runtime knows them.
	trace bool
}

// subject is something that runs containers.
type subject interface {
	name() string
	// version is one line.
	version(ctx context.Context) string
	// command runs the task to its end; its streams are the container's.
	// done frees what is left after the command has ended.
	command(ctx context.Context, t task) (cmd *exec.Cmd, done func())
	// address says where a task's port is reached; an error is the reason why it is not.
	address(ctx context.Context, t task) (string, error)
	// members are the processes that a running task costs, by role.
	members(ctx context.Context, cmd *exec.Cmd) (map[string][]int, error)
}

// subjectNames are those of all that can be measured.
var subjectNames = []string{"manis", "runc", "crun", "runsc"}

var counter atomic.Int64

// fresh returns a container's name that no other has.
func fresh() string {
	return fmt.Sprintf("bench-%d-%d", os.Getpid(), counter.Add(1))
}

// ownName finds the names that fresh gives.
var ownName = regexp.MustCompile(`bench-[0-9]+-[0-9]+`)

// interrupted makes a command end by a signal that it can act on, and for sure a
// while later.
func interrupted(cmd *exec.Cmd) *exec.Cmd {
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	return cmd
}

// firstLine of a command's output, or why there is none.
func firstLine(ctx context.Context, name string, args ...string) string {
	out, err := exec.CommandContext(ctx, name, args...).Output()
	if err != nil {
		return err.Error()
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line
}

// descendants lists the processes below pid, and pid itself.
func descendants(pid int) []int {
	parents := make(map[int]int)
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		var p, parent int
		var state string
		text := string(b)
		i := strings.LastIndexByte(text, ')')
		if i < 0 {
			continue
		}
		if _, err := fmt.Sscan(text, &p); err != nil {
			continue
		}
		if _, err := fmt.Sscan(text[i+1:], &state, &parent); err == nil {
			parents[p] = parent
		}
	}
	below := func(p int) bool {
		for range 100 {
			if p == pid {
				return true
			}
			if p = parents[p]; p <= 1 {
				return false
			}
		}
		return false
	}
	var list []int
	for p := range parents {
		if below(p) {
			list = append(list, p)
		}
	}
	return list
}
