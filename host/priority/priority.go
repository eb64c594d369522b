// Package priority says which processes have the processor first: those that somebody waits for,
// or those that take what nobody else wants. Where the kernel refuses, they run as they did. The
// package does not know what they do.
package priority

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// Class of scheduling. Threads and processes inherit it from the thread that makes them.
type Class uint32

const (
	Ordinary Class = unix.SCHED_NORMAL
	// Idle threads run when no other one wants to.
	Idle Class = unix.SCHED_IDLE
)

// Give gives a class to all threads that a process has, also to those that are made meanwhile.
func Give(pid int, c Class) {
	given := make(map[string]bool)
	for more := true; more; {
		more = false
		tasks, _ := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "task"))
		for _, t := range tasks {
			tid, err := strconv.Atoi(t.Name())
			if err != nil || given[t.Name()] {
				continue
			}
			c.set(tid)
			given[t.Name()], more = true, true
		}
	}
}

// set gives the class to a thread; 0 is the caller's.
func (c Class) set(tid int) error {
	return unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: uint32(c)}, 0)
}

// StartIdle starts a process that is Idle from its beginning.
func StartIdle(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	idle := Idle.set(0) == nil
	err := cmd.Start()
	// A thread that cannot come back ends with its goroutine, still locked.
	if !idle || Ordinary.set(0) == nil {
		runtime.UnlockOSThread()
	}
	return err
}
