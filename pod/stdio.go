package pod

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"manis/api/agent"
	"manis/sandbox"
)

// copyBuffer is the size of one read of a stream, bytes.
const copyBuffer = 64 << 10

// descriptor reads and writes a caller's descriptor, which is shared with others and so stays
// blocking, but can be interrupted at any moment. It never moves more at once than a pipe
// takes without blocking.
type descriptor struct {
	file *os.File
	wake [2]int // a pipe whose closing interrupts
	once sync.Once
}

func newDescriptor(f *os.File) (*descriptor, error) {
	d := &descriptor{file: f}
	if err := unix.Pipe2(d.wake[:], unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	return d, nil
}

var errInterrupted = errors.New("interrupted")

// await waits until the descriptor is ready for events.
func (d *descriptor) await(events int16) error {
	fds := []unix.PollFd{{Fd: int32(d.file.Fd()), Events: events}, {Fd: int32(d.wake[0])}}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case fds[0].Revents != 0:
			return nil
		case fds[1].Revents != 0:
			return errInterrupted
		}
	}
}

func (d *descriptor) Read(b []byte) (int, error) {
	for {
		if err := d.await(unix.POLLIN); err != nil {
			return 0, err
		}
		n, err := unix.Read(int(d.file.Fd()), b)
		switch {
		case err == unix.EINTR, err == unix.EAGAIN:
		case err == unix.EIO, n == 0 && err == nil:
			return 0, io.EOF // EIO: the other end of a terminal was closed
		case err != nil:
			return 0, err
		default:
			return n, nil
		}
	}
}

func (d *descriptor) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		if err := d.await(unix.POLLOUT); err != nil {
			return done, err
		}
		n, err := unix.Write(int(d.file.Fd()), b[done:min(len(b), done+pipeBuffer)])
		switch {
		case err == unix.EINTR, err == unix.EAGAIN:
		case err != nil:
			return done, err
		default:
			done += n
		}
	}
	return done, nil
}

// pipeBuffer is what a pipe that is ready for writing takes without blocking (PIPE_BUF).
const pipeBuffer = 4096

// interrupt ends reads and writes, those under way and later ones.
func (d *descriptor) interrupt() { d.once.Do(func() { unix.Close(d.wake[1]) }) }

func (d *descriptor) close() {
	d.interrupt()
	unix.Close(d.wake[0])
	d.file.Close()
}

// streams are the descriptors of one process and the pumps between them and the guest.
type streams struct {
	terminal bool
	// tty is the caller's own terminal, nil if there is none.
	tty *descriptor
	// stdin, stdout and stderr are the caller's, or nil: with a terminal of its own both of the first two are
	// that.
	stdin, stdout, stderr *descriptor

	own      []*descriptor // each once
	lines    []*sandbox.Line
	pumps    []func()
	patience time.Duration
	inputs   sync.WaitGroup
	output   sync.WaitGroup
}

// newStreams takes the files, also with an error.
func newStreams(terminal bool, from Streams) (*streams, error) {
	s := &streams{terminal: terminal, patience: from.Patience}
	for i, f := range from.files() {
		d, err := newDescriptor(f)
		if err != nil {
			closeAll(from.files()[i:])
			s.close()
			return nil, err
		}
		s.own = append(s.own, d)
		switch f {
		case from.Stdin:
			s.stdin = d
		case from.Stdout:
			s.stdout = d
		case from.Stderr:
			s.stderr = d
		case from.Terminal:
			s.tty, s.stdin, s.stdout = d, d, d
		}
	}
	if !terminal && s.tty != nil || s.tty != nil && len(s.own) != 1 {
		s.close()
		return nil, errors.New("the request lacks streams")
	}
	return s, nil
}

// size is that of the terminal as its user has set it, nil where there is none.
func (s *streams) size() *unix.Winsize {
	if s.tty == nil {
		return nil
	}
	size, err := unix.IoctlGetWinsize(int(s.tty.file.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return nil
	}
	return size
}

// connect opens the guest's ends and gives the process their tokens.
func (s *streams) connect(process *agent.Process, open func() (net.Conn, uint64, error)) error {
	fresh := func(name string, token *uint64) (net.Conn, error) {
		conn, t, err := open()
		if err != nil {
			return nil, err
		}
		line := sandbox.NewLine(name, conn)
		s.lines = append(s.lines, line)
		*token = t
		return line, nil
	}
	if s.terminal {
		line, err := fresh("console", &process.Stdin)
		if err != nil {
			return err
		}
		process.Stdout = process.Stdin
		s.pumps = append(s.pumps, func() { s.in(s.stdin, line, false) }, func() { s.out(s.stdout, line) })
		return nil
	}
	for _, stream := range []struct {
		name  string
		own   *descriptor
		token *uint64
	}{{"stdin", s.stdin, &process.Stdin}, {"stdout", s.stdout, &process.Stdout}, {"stderr", s.stderr, &process.Stderr}} {
		if stream.own == nil {
			continue
		}
		line, err := fresh(stream.name, stream.token)
		if err != nil {
			return err
		}
		if stream.own == s.stdin {
			s.pumps = append(s.pumps, func() { s.in(stream.own, line, true) })
		} else {
			s.pumps = append(s.pumps, func() { s.out(stream.own, line) })
		}
	}
	return nil
}

// pump copies until the process has ended and all that it wrote has arrived.
func (s *streams) pump() {
	for _, start := range s.pumps {
		start()
	}
}

// in hands on input, whose end is the process's end of input with end.
func (s *streams) in(own *descriptor, guest net.Conn, end bool) {
	if own == nil {
		return
	}
	s.inputs.Go(func() {
		io.CopyBuffer(onlyWriter{guest}, onlyReader{own}, make([]byte, copyBuffer))
		if end {
			guest.Close()
		}
	})
}

// out hands on output, or throws it away.
func (s *streams) out(own *descriptor, guest net.Conn) {
	s.output.Go(func() {
		buf := make([]byte, copyBuffer)
		if own != nil {
			if _, err := io.CopyBuffer(onlyWriter{own}, onlyReader{guest}, buf); err == nil {
				return
			}
		}
		// Who reads has gone: the process meets no full pipe for that.
		io.CopyBuffer(onlyWriter{io.Discard}, onlyReader{guest}, buf)
	})
}

// drained waits until all output has been handed over, or for as long as there is patience.
func (s *streams) drained() {
	if s.patience > 0 {
		timer := time.AfterFunc(s.patience, s.abandon)
		defer timer.Stop()
	}
	s.output.Wait()
}

// close ends everything at once.
func (s *streams) close() {
	for _, d := range s.own {
		d.interrupt()
	}
	for _, c := range s.lines {
		c.Close()
	}
	s.inputs.Wait()
	s.output.Wait()
	for _, d := range s.own {
		d.close()
	}
}

// onlyReader and onlyWriter hide ReadFrom and WriteTo, which would take the descriptor for
// themselves.
type onlyReader struct{ io.Reader }
type onlyWriter struct{ io.Writer }

// abandon gives up what was to be handed to a caller that has gone.
func (s *streams) abandon() {
	for _, d := range s.own {
		d.interrupt()
	}
}
