package agent

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// earlyTime is for how long after its start a first process may be without a handler for a
// signal and yet get it. Under emulation a shell needs a second before its traps are set.
const earlyTime = 5 * time.Second

// deliver sends a signal to the container's process. The kernel drops what the first process of a PID
// namespace has no handler for (pid_namespaces(7)); callers who send a signal when they see the
// process run mean one that has begun its work. So a signal that comes early waits for its handler.
func (p *process) deliver(sig syscall.Signal) error {
	if !p.lost(sig) {
		return p.signal(sig)
	}
	guard(fmt.Sprintf("signal %d for process %d", sig, p.pid), func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for p.lost(sig) {
			select {
			case <-p.exited:
				return
			case <-tick.C:
			}
		}
		p.signal(sig)
	})
	return nil
}

// lost reports whether a signal would be dropped that the process may still come to want.
func (p *process) lost(sig syscall.Signal) bool {
	switch sig {
	case unix.SIGKILL, unix.SIGSTOP, unix.SIGCONT, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU,
		unix.SIGCHLD, unix.SIGURG, unix.SIGWINCH:
		return false
	}
	if time.Since(p.launched) > earlyTime || p.hasExited() {
		return false
	}
	status, err := readFile(fmt.Sprintf("/proc/%d/status", p.pid), 16<<10)
	return err == nil && dropped(string(status), sig)
}

// dropped reads from a /proc/PID/status whether the kernel drops a signal: one for the first process of a
// PID namespace that it neither catches nor ignores nor blocks.
func dropped(status string, sig syscall.Signal) bool {
	first := false
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		switch name {
		case "NSpid":
			// In the namespaces from the agent's to its own.
			ids := strings.Fields(value)
			first = len(ids) > 1 && ids[len(ids)-1] == "1"
		case "SigBlk", "SigIgn", "SigCgt":
			mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			if err != nil || mask>>(uint(sig)-1)&1 == 1 {
				return false
			}
		}
	}
	return first
}
