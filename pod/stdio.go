package pod

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
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
	// own are the caller's: stdin, stdout, stderr, or the terminal alone.
	own    []*descriptor
	guest  []net.Conn
	inputs sync.WaitGroup
	output sync.WaitGroup
}

// newStreams takes the files, also with an error.
func newStreams(terminal bool, files []*os.File) (*streams, error) {
	s := &streams{terminal: terminal}
	for i, f := range files {
		d, err := newDescriptor(f)
		if err != nil {
			closeAll(files[i:])
			s.close()
			return nil, err
		}
		s.own = append(s.own, d)
	}
	if want := s.number(); len(s.own) != want {
		s.close()
		return nil, errors.New("the request lacks streams")
	}
	return s, nil
}

func (s *streams) number() int {
	if s.terminal {
		return 1
	}
	return 3
}

// size is that of the terminal as its user has set it, nil where there is none.
func (s *streams) size() *unix.Winsize {
	if !s.terminal {
		return nil
	}
	size, err := unix.IoctlGetWinsize(int(s.own[0].file.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return nil
	}
	return size
}

// connect opens the guest's ends and returns their tokens, in the order of the
// descriptors.
func (s *streams) connect(open func() (net.Conn, uint64, error)) ([]uint64, error) {
	var tokens []uint64
	for range s.own {
		conn, token, err := open()
		if err != nil {
			return nil, err
		}
		s.guest = append(s.guest, conn)
		tokens = append(tokens, token)
	}
	return tokens, nil
}

// pump copies until the process has ended and all that it wrote has arrived.
func (s *streams) pump() {
	if s.terminal {
		s.in(0, false)
		s.out(0)
		return
	}
	s.in(0, true)
	s.out(1)
	s.out(2)
}

func (s *streams) in(i int, end bool) {
	own, guest := s.own[i], s.guest[i]
	s.inputs.Go(func() {
		io.CopyBuffer(onlyWriter{guest}, onlyReader{own}, make([]byte, copyBuffer))
		if end {
			guest.Close()
		}
	})
}

func (s *streams) out(i int) {
	own, guest := s.own[i], s.guest[i]
	s.output.Go(func() {
		buf := make([]byte, copyBuffer)
		if _, err := io.CopyBuffer(onlyWriter{own}, onlyReader{guest}, buf); err != nil {
			// Who reads has gone: the process meets no full pipe for that.
			io.CopyBuffer(onlyWriter{io.Discard}, onlyReader{guest}, buf)
		}
	})
}

// drained waits until all output has been handed over.
func (s *streams) drained() { s.output.Wait() }

// close ends everything at once.
func (s *streams) close() {
	for _, d := range s.own {
		d.interrupt()
	}
	for _, c := range s.guest {
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
