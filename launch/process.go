package launch

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Process is a running child with an owner: a thread that waits for it.
type Process struct {
	// PID in the parent's PID namespace.
	PID    int
	pidfd  int
	done   chan struct{}
	status unix.WaitStatus
}

// Start runs the program on a thread of its own that lives exactly as long as
// the child, so that DieWithParent means the parent process and not some
// thread of it. prepare, if not nil, runs on this thread before the clone: what it
// changes of the thread (namespaces, credentials) is inherited by the child and
// ends with it.
func Start(p *Program, attr Attr, prepare func() error) (*Process, error) {
	proc := &Process{done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with this goroutine.
		runtime.LockOSThread()
		if prepare != nil {
			if err := prepare(); err != nil {
				started <- err
				return
			}
		}
		child, err := Fork(p, attr, true)
		if err != nil {
			started <- err
			return
		}
		proc.PID, proc.pidfd = child.PID, child.FD
		started <- nil
		proc.reap()
		close(proc.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return proc, nil
}

// reap waits for the end. wait4(2) would also return when another thread of this
// program traces the child and stops it, so it is called when there is an end only.
func (p *Process) reap() {
	fds := []unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}
	for p.pidfd >= 0 && fds[0].Revents == 0 {
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			break
		}
	}
	for {
		if _, err := unix.Wait4(p.PID, &p.status, 0, nil); err != unix.EINTR {
			return
		}
	}
}

// Done is closed when the process has ended and was reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Status is how the process ended; valid after Done.
func (p *Process) Status() unix.WaitStatus {
	<-p.done
	return p.status
}

// Signal sends sig. A process that has ended gives os.ErrProcessDone.
func (p *Process) Signal(sig unix.Signal) error {
	select {
	case <-p.done:
		return os.ErrProcessDone
	default:
	}
	err := unix.PidfdSendSignal(p.pidfd, sig, nil, 0)
	if err == unix.ESRCH {
		return os.ErrProcessDone
	}
	if err != nil {
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	return nil
}

// Release closes the handle of a process that has ended.
func (p *Process) Release() {
	<-p.done
	if p.pidfd >= 0 {
		unix.Close(p.pidfd)
		p.pidfd = -1
	}
}
