package terminal

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// ErrCancelled is what Read returns after Cancel.
var ErrCancelled = errors.New("reading was cancelled")

// Input reads a file descriptor that may never have anything to say, such as a
// terminal's, in a way that can be given up: the goroutine that reads ends with
// Cancel instead of taking the next line that the user types for the shell.
type Input struct {
	fd     int
	cancel int // eventfd
}

// NewInput reads from f, which stays the caller's. Close frees the rest.
func NewInput(f *os.File) (*Input, error) {
	efd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("prepare to read %s: %w", f.Name(), err)
	}
	return &Input{fd: int(f.Fd()), cancel: efd}, nil
}

// Read waits for input, its end, or Cancel.
func (in *Input) Read(p []byte) (int, error) {
	for {
		fds := []unix.PollFd{{Fd: int32(in.fd), Events: unix.POLLIN}, {Fd: int32(in.cancel), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil {
			if err == unix.EINTR {
				continue
			}
			return 0, fmt.Errorf("wait for input: %w", err)
		}
		if fds[1].Revents != 0 {
			return 0, ErrCancelled
		}
		n, err := unix.Read(in.fd, p)
		switch {
		case err == unix.EINTR, err == unix.EAGAIN:
			continue
		case err == unix.EIO:
			// The terminal is gone (a closed window): nothing more to read.
			return 0, io.EOF
		case err != nil:
			return 0, fmt.Errorf("read input: %w", err)
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

// Cancel ends the Read under way and all that follow.
func (in *Input) Cancel() {
	var one = [8]byte{1}
	unix.Write(in.cancel, one[:])
}

// Close frees the descriptor. No Read may be under way.
func (in *Input) Close() error { return unix.Close(in.cancel) }
