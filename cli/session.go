package cli

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	monitorapi "manis/api/monitor"
	"manis/cli/terminal"
	"manis/monitor"
)

// session joins this process's stdio with that of a container's process: the
// first one, or one of exec.
type session struct {
	a      *app
	client *monitor.Client
	tty    bool
	execID string // "" is the first process
	keys   []byte // that detach, with a terminal

	stdin, stdout, stderr net.Conn // nil: not attached
	tokens                *monitorapi.Streams

	// first, if not nil, is called once, at the first byte of output.
	first     func()
	firstOnce sync.Once
}

func (s *session) firstByte() {
	s.firstOnce.Do(func() {
		if s.first != nil {
			s.first()
		}
	})
}

// attachment says what to join.
type attachment struct {
	in, out, err bool
	tty          bool
	keys         []byte
}

// errReaderGone ends a session whose output nobody reads any more.
var errReaderGone = errors.New("nobody reads the output any more")

// open opens the streams that a request then names.
func (a *app) open(client *monitor.Client, what attachment) (*session, error) {
	s := &session{a: a, client: client, tty: what.tty, tokens: &monitorapi.Streams{}}
	if what.tty && what.in && terminal.Is(a.in) {
		s.keys = what.keys
	}
	for _, w := range []struct {
		wanted bool
		conn   *net.Conn
		token  *uint64
	}{
		{what.in, &s.stdin, &s.tokens.Stdin},
		{what.out, &s.stdout, &s.tokens.Stdout},
		// With a terminal there is one output only.
		{what.err && !what.tty, &s.stderr, &s.tokens.Stderr},
	} {
		if !w.wanted {
			continue
		}
		var err error
		if *w.conn, *w.token, err = client.Stream(); err != nil {
			s.close()
			return nil, err
		}
	}
	return s, nil
}

// size is the terminal's, for a container with one.
func (s *session) size() (rows, columns uint32) {
	if !s.tty {
		return 0, 0
	}
	return s.a.terminalSize()
}

func (a *app) terminalSize() (rows, columns uint32) {
	if terminal.Is(a.out) {
		return terminal.Size(a.out)
	}
	return terminal.Size(a.in)
}

func (s *session) close() {
	for _, c := range []net.Conn{s.stdin, s.stdout, s.stderr} {
		if c != nil {
			// A copy that waits for the other side ends now.
			c.SetDeadline(time.Unix(1, 0))
			c.Close()
		}
	}
}

// run copies until the process's output has ended (nil), the user detaches
// (terminal.ErrDetached), or the output's reader is gone (errReaderGone).
func (s *session) run(ctx context.Context) error {
	// A broken pipe is an error to handle, not a signal to die of.
	signal.Ignore(unix.SIGPIPE)
	defer signal.Reset(unix.SIGPIPE)

	ctx, cancel := context.WithCancel(ctx)
	var helpers sync.WaitGroup
	defer helpers.Wait()
	defer cancel()
	defer s.close()

	// Why the session ends; the first reason counts.
	ended := make(chan error, 4)
	if s.tty && s.stdin != nil && terminal.Is(s.a.in) {
		restore, err := terminal.Raw(s.a.in)
		if err != nil {
			return err
		}
		defer restore()
	}
	if s.tty && (terminal.Is(s.a.out) || terminal.Is(s.a.in)) {
		helpers.Go(func() {
			file := s.a.out
			if !terminal.Is(file) {
				file = s.a.in
			}
			terminal.Resizes(ctx, file, func(rows, columns uint32) { s.resize(ctx, rows, columns) })
		})
	}
	if s.stdin != nil {
		in, err := terminal.NewInput(s.a.in)
		if err != nil {
			return err
		}
		defer in.Close()
		copied := make(chan struct{})
		helpers.Go(func() {
			defer close(copied)
			err := s.sendInput(in)
			if errors.Is(err, terminal.ErrDetached) {
				ended <- err
			} else if s.stdout == nil && s.stderr == nil {
				ended <- nil
			}
		})
		defer func() {
			in.Cancel()
			s.stdin.SetDeadline(time.Unix(1, 0))
			<-copied
		}()
	}
	if s.stdout != nil || s.stderr != nil {
		var outputs sync.WaitGroup
		for _, o := range []struct {
			from net.Conn
			to   *os.File
		}{{s.stdout, s.a.out}, {s.stderr, s.a.err}} {
			if o.from == nil {
				continue
			}
			outputs.Go(func() {
				if err := s.receive(o.to, o.from); err != nil {
					ended <- err
				}
			})
		}
		helpers.Go(func() {
			outputs.Wait()
			ended <- nil
		})
	}
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// sendInput copies this process's stdin to the container's and then closes it.
func (s *session) sendInput(in io.Reader) error {
	if len(s.keys) > 0 {
		in = terminal.NewKeyReader(in, s.keys)
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := in.Read(buf)
		if n > 0 {
			if _, err := s.stdin.Write(buf[:n]); err != nil {
				return nil // the process reads no more
			}
		}
		switch {
		case errors.Is(err, terminal.ErrCancelled), errors.Is(err, terminal.ErrDetached):
			return err
		case err != nil:
			// The end, or an input that cannot be read: there is no more.
			s.stdin.Close()
			return nil
		}
	}
}

// receive copies output. An error is one of writing it.
func (s *session) receive(to *os.File, from io.Reader) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			_, err := to.Write(buf[:n])
			s.firstByte()
			if err != nil {
				if errors.Is(err, unix.EPIPE) {
					return errReaderGone
				}
				return err
			}
		}
		if err != nil {
			return nil
		}
	}
}

func (s *session) resize(ctx context.Context, rows, columns uint32) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	// It fails when the process has just ended, which the session will see.
	s.client.API().Resize(ctx, &monitorapi.ResizeRequest{ExecId: s.execID, Rows: rows, Columns: columns})
}
