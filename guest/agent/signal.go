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
// signal and yet get it: under emulation a shell needs a second before its traps are set. settleTime is for
// how long it may go on when it has one until it waits for something.
const (
	earlyTime  = 5 * time.Second
	settleTime = 500 * time.Millisecond
)

// deliver sends a signal to the container's process. The kernel drops what the first process of a PID
// namespace has no handler for (pid_namespaces(7)); callers who send a signal when they see the
// process run mean one that has begun its work. So a signal that comes early waits for that.
func (p *process) deliver(sig syscall.Signal) error {
	var e early
	if !p.holds(sig, &e) {
		return p.signal(sig)
	}
	guard(fmt.Sprintf("signal %d for process %d", sig, p.pid), func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for p.holds(sig, &e) {
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

// early is a signal that may have come early.
type early struct {
	caught time.Time // when a handler was seen first
}

// holds reports whether a signal is to wait.
func (p *process) holds(sig syscall.Signal, e *early) bool {
	switch sig {
	case unix.SIGKILL, unix.SIGSTOP, unix.SIGCONT, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU,
		unix.SIGCHLD, unix.SIGURG, unix.SIGWINCH:
		return false
	}
	if time.Since(p.launched) > earlyTime || p.hasExited() {
		return false
	}
	b, err := readFile(fmt.Sprintf("/proc/%d/status", p.pid), 16<<10)
	if err != nil {
		return false
	}
	status := parseSignalStatus(string(b), sig)
	switch {
	case !status.first, status.set && !status.busy:
		return false
	case status.set && e.caught.IsZero():
		e.caught = time.Now()
	}
	return e.caught.IsZero() || time.Since(e.caught) < settleTime
}

// signalStatus is what a process would do with a signal.
type signalStatus struct {
	first bool // it is the first one of a PID namespace below the agent's
	set   bool // it catches, ignores or blocks the signal
	busy  bool // it waits for nothing
}

// parseSignalStatus reads a /proc/PID/status.
func parseSignalStatus(text string, sig syscall.Signal) signalStatus {
	var s signalStatus
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch name {
		case "State":
			// R: it runs. D: it waits for a disk, or for a page of its program.
			s.busy = strings.HasPrefix(value, "R") || strings.HasPrefix(value, "D")
		case "NSpid":
			// In the namespaces from the agent's to its own.
			ids := strings.Fields(value)
			s.first = len(ids) > 1 && ids[len(ids)-1] == "1"
		case "SigBlk", "SigIgn", "SigCgt":
			mask, err := strconv.ParseUint(value, 16, 64)
			s.set = s.set || err != nil || mask>>(uint(sig)-1)&1 == 1
		}
	}
	return s
}
