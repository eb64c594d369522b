package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Session is a further process in a container, for which the caller's own process stands in place of a proxy. It is killed when that
// ends, or closes the session.
type Session struct{ socket *os.File }

// Attend runs a further process. Files are its standard input, output and error, or a terminal, which stay the caller's.
func (c *Client) Attend(ctx context.Context, r *ExecRequest, files ...*os.File) (*Session, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("attend a process: %w", os.NewSyscallError("socketpair", err))
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "process"), os.NewFile(uintptr(fds[1]), "pod")
	defer theirs.Close()
	if err := c.Exec(ctx, r, append([]*os.File{theirs}, files...)...); err != nil {
		ours.Close()
		return nil, err
	}
	return &Session{ours}, nil
}

// Signal sends one; SIGWINCH says that the terminal has another size.
func (s *Session) Signal(signal unix.Signal) error {
	_, err := s.socket.Write([]byte{byte(signal)})
	return err
}

// Wait waits for the process's end, and returns its exit code. ErrGone means that the pod has ended without a word.
func (s *Session) Wait() (code int, err error) {
	var b [1]byte
	n, err := s.socket.Read(b[:])
	switch {
	case n == 1:
		return int(b[0]), nil
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
		return 0, ErrGone
	}
	return 0, fmt.Errorf("wait for the process: %w", err)
}

// Close ends the session.
func (s *Session) Close() { s.socket.Close() }
