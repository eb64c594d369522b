package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	api "manis/api/agent"
	"manis/api/wire"
)

// claimTimeout bounds the wait for a stream that a request names.
const claimTimeout = 30 * time.Second

// streamBuffer is the size of one copy, bytes.
const streamBuffer = wire.MaxFrame

// drainGrace is how long after the end of a process its output is still awaited
// from children that have inherited it.
const drainGrace = 500 * time.Millisecond

// streams are the host's ends of a process's stdio; nil where it wants none.
type streams struct {
	in, out, err net.Conn
}

// claim takes the streams that a process names.
func (s *service) claim(ctx context.Context, p *api.Process) (*streams, error) {
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	st := new(streams)
	get := func(what string, token uint64) (net.Conn, error) {
		if token == 0 {
			return nil, nil
		}
		c, err := s.guest.Claim(ctx, token)
		if err != nil {
			st.close()
			return nil, fail(codes.InvalidArgument, fmt.Errorf("%s: %w", what, err))
		}
		return c, nil
	}
	var err error
	if st.in, err = get("stdin", p.Stdin); err != nil {
		return nil, err
	}
	if p.Stdout != 0 && p.Stdout == p.Stdin {
		st.out = st.in
	} else if st.out, err = get("stdout", p.Stdout); err != nil {
		return nil, err
	}
	if p.Terminal {
		return st, nil
	}
	if st.err, err = get("stderr", p.Stderr); err != nil {
		return nil, err
	}
	return st, nil
}

// discard lets go of the streams of a process that will not start.
func (s *service) discard(p *api.Process) {
	s.guest.Discard(p.Stdin, p.Stdout, p.Stderr)
}

func (s *streams) close() {
	for _, c := range []net.Conn{s.in, s.out, s.err} {
		if c != nil {
			c.Close()
		}
	}
}

// stdio is a process's stdin, stdout and stderr inside the machine.
type stdio struct {
	// child are the descriptors that become the child's 0 to 2.
	child [3]int
	tty   *os.File // the terminal's master
	in    *os.File // the agent's ends of pipes, nil where there is none
	out   *os.File
	err   *os.File

	// copying counts the copies of output; ended tells them that the process
	// has ended.
	copying sync.WaitGroup
	ended   chan struct{}

	mu      sync.Mutex
	all     *streams
	outputs []*output
	parked  bool // between two sessions
}

// newStdio makes pipes or a terminal. It runs on a thread inside the container,
// whose terminals they are.
func newStdio(p *api.Process, first bool) (*stdio, error) {
	s := &stdio{child: [3]int{-1, -1, -1}, ended: make(chan struct{})}
	if p.Terminal {
		if err := s.openTerminal(p, first); err != nil {
			s.closeChild()
			s.close()
			return nil, err
		}
		return s, nil
	}
	for i, end := range []struct {
		token uint64
		file  **os.File
	}{{p.Stdin, &s.in}, {p.Stdout, &s.out}, {p.Stderr, &s.err}} {
		if err := s.openPipe(i, end.token, end.file); err != nil {
			s.closeChild()
			s.close()
			return nil, fmt.Errorf("open stream: %w", err)
		}
	}
	return s, nil
}

func (s *stdio) openPipe(i int, token uint64, file **os.File) error {
	if token == 0 {
		fd, err := unix.FcntlInt(uintptr(nullFile), unix.F_DUPFD_CLOEXEC, 3)
		s.child[i] = fd
		return err
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	mine, childs := 0, 1
	if i == 0 {
		mine, childs = 1, 0
	}
	s.child[i] = fds[childs]
	if err := unix.SetNonblock(fds[mine], true); err != nil {
		return err
	}
	*file = os.NewFile(uintptr(fds[mine]), "stream")
	return nil
}

// openTerminal makes a terminal of the container's own devpts.
func (s *stdio) openTerminal(p *api.Process, first bool) error {
	fd, err := unix.Open("/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open terminal (does the container have /dev/pts?): %w", err)
	}
	s.tty = os.NewFile(uintptr(fd), "terminal")
	// The container may have put anything there.
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil || st.Type != unix.DEVPTS_SUPER_MAGIC {
		return errors.New("open terminal: the container's /dev/pts is not one")
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return fmt.Errorf("unlock terminal: %w", err)
	}
	return s.openPeer(p, fd, first)
}

func (s *stdio) openPeer(p *api.Process, master int, first bool) error {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return fmt.Errorf("open terminal: %w", errno)
	}
	slave := int(r)
	s.child = [3]int{slave, slave, slave}
	if p.Rows != 0 || p.Columns != 0 {
		if err := setSize(master, p.Rows, p.Columns); err != nil {
			return err
		}
	}
	if !first {
		return nil
	}
	// The first process's terminal is the container's console.
	console, err := makeTarget("/dev/console", true)
	if err != nil {
		return fmt.Errorf("make /dev/console: %w", err)
	}
	defer unix.Close(console)
	tree, err := cloneTree(slave, "", false)
	if err != nil {
		return fmt.Errorf("bind /dev/console: %w", err)
	}
	defer unix.Close(tree)
	if err := attach(tree, console); err != nil {
		return fmt.Errorf("bind /dev/console: %w", err)
	}
	return nil
}

// setSize is the terminal's window size.
func setSize(fd int, rows, columns uint32) error {
	ws := &unix.Winsize{Row: uint16(min(rows, 65535)), Col: uint16(min(columns, 65535))}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, ws); err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	return nil
}

// own gives the streams to the process's user, so that it can open them
// again by /dev/stdout.
func (s *stdio) own(uid uint32) error {
	if uid == 0 {
		return nil
	}
	for i, fd := range s.child {
		mine := []*os.File{s.in, s.out, s.err}[i] != nil || s.tty != nil
		if fd < 0 || !mine {
			continue
		}
		if err := unix.Fchown(fd, int(uid), -1); err != nil {
			return fmt.Errorf("give stream to user %d: %w", uid, err)
		}
	}
	return nil
}

// closeChild closes the child's ends, after it was forked or was not.
func (s *stdio) closeChild() {
	last := -1
	for i, fd := range s.child {
		if fd >= 0 && fd != last {
			unix.Close(fd)
			last = fd
		}
		s.child[i] = -1
	}
}

func (s *stdio) close() {
	if s == nil {
		return
	}
	for _, f := range []*os.File{s.tty, s.in, s.out, s.err} {
		if f != nil {
			f.Close()
		}
	}
}

// run begins to copy between the host and the process.
func (s *stdio) run(st *streams) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = st
	s.input(st)
	if s.tty != nil {
		s.output(s.tty, st.out, st.in != st.out)
		return
	}
	s.output(s.out, st.out, true)
	s.output(s.err, st.err, true)
}

// input begins to copy from the host to the process.
func (s *stdio) input(st *streams) {
	switch {
	case st.in == nil:
	case s.tty != nil:
		guard("copy to terminal", func() { copyIn(s.tty, st.in) })
	case s.in != nil:
		guard("copy stdin", func() {
			copyIn(s.in, st.in)
			s.mu.Lock()
			defer s.mu.Unlock()
			// The end of a session is not the end of input.
			if !s.parked {
				s.in.Close()
			}
		})
	}
}

// park stops the copies so that a session can end: everything that was read from the process has
// been written to the host then, and the rest waits in its pipes.
func (s *stdio) park(ctx context.Context) error {
	s.mu.Lock()
	s.parked = true
	outputs := s.outputs
	s.mu.Unlock()
	for _, o := range outputs {
		select {
		case <-o.park():
		case <-ctx.Done():
			return fail(codes.DeadlineExceeded, errors.New("the container's output is not being read"))
		}
	}
	return nil
}

// unpark goes on with the streams that there are.
func (s *stdio) unpark() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parked = false
	for _, o := range s.outputs {
		o.unpark(o.to, false)
	}
}

// attach goes on with streams of another session, and reports whether there was a reason to.
func (s *stdio) attach(st *streams) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.parked {
		return false
	}
	s.parked, s.all = false, st
	s.input(st)
	for _, o := range s.outputs {
		to := st.out
		if o.from == s.err {
			to = st.err
		}
		o.unpark(to, to != nil && (s.tty == nil || st.in != st.out))
	}
	return true
}

// output copies from the process to the host.
func (s *stdio) output(from *os.File, to net.Conn, watch bool) {
	if from == nil {
		return
	}
	o := &output{from: from, to: to, ended: s.ended, discard: to == nil, over: make(chan struct{})}
	s.outputs = append(s.outputs, o)
	s.copying.Add(1)
	if to != nil && watch {
		guard("watch output stream", func() { o.watch(to) })
	}
	guard("copy output", func() { o.copy(s.copying.Done) })
}

// finish hands the rest of the output over after the process has ended. It
// returns when the host has it, or when nobody wants it any more.
func (s *stdio) finish(abandoned <-chan struct{}) {
	close(s.ended)
	done := make(chan struct{})
	guard("drain", func() {
		s.copying.Wait()
		close(done)
	})
	select {
	case <-done:
	case <-abandoned:
		s.unpark() // nobody will come for it
		s.mu.Lock()
		s.all.interrupt()
		s.mu.Unlock()
	}
	<-done
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.in != nil {
		s.in.Close()
	}
	s.all.close()
	if s.all.in != nil {
		// Wakes the copy of stdin, which nobody reads any more.
		s.all.in.SetReadDeadline(time.Now())
	}
}

// interrupt ends what waits for the host.
func (s *streams) interrupt() {
	for _, c := range []net.Conn{s.in, s.out, s.err} {
		if c != nil {
			c.SetDeadline(time.Now())
		}
	}
}

// output is one copy from a pipe or terminal to a stream. A host that does not
// read stops the process: nothing is read that cannot be passed on.
type output struct {
	from  *os.File
	ended <-chan struct{}
	over  chan struct{} // closed when nothing more is copied

	mu      sync.Mutex
	to      net.Conn
	discard bool
	// parking is closed when the copy stands, resumed when it may go on; nil while it
	// runs.
	parking, resumed chan struct{}
}

// watch waits for the host's end of the stream to be closed: from then on the
// output is unwanted. That a session ends means nothing.
func (o *output) watch(to net.Conn) {
	var b [64]byte
	for {
		if _, err := to.Read(b[:]); err != nil {
			break
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.parking != nil || o.to != to {
		return
	}
	o.discard = true
	to.SetWriteDeadline(time.Now())
}

// park stops the copy and returns a channel that is closed when it stands.
func (o *output) park() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.parking == nil {
		o.parking, o.resumed = make(chan struct{}), make(chan struct{})
		o.from.SetReadDeadline(time.Now())
	}
	select {
	case <-o.over:
		return o.over
	default:
		return o.parking
	}
}

// unpark lets the copy go on to another stream.
func (o *output) unpark(to net.Conn, watch bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.parking == nil {
		return
	}
	if o.to != to {
		o.to, o.discard = to, to == nil
	}
	close(o.resumed)
	o.parking = nil
	deadline := time.Time{}
	select {
	case <-o.ended:
		deadline = time.Now().Add(drainGrace)
	default:
	}
	o.from.SetReadDeadline(deadline)
	if watch {
		guard("watch output stream", func() { o.watch(to) })
	}
}

// rest waits while the copy is parked, and reports whether it was.
func (o *output) rest() bool {
	o.mu.Lock()
	parking, resumed := o.parking, o.resumed
	o.mu.Unlock()
	if parking == nil {
		return false
	}
	close(parking)
	<-resumed
	return true
}

func (o *output) hasEnded() bool {
	select {
	case <-o.ended:
		return true
	default:
		return false
	}
}

func (o *output) target() net.Conn {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.to
}

func (o *output) throwAway() {
	o.mu.Lock()
	o.discard = true
	o.mu.Unlock()
}

func (o *output) discards() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.discard
}

// copy calls done when everything is handed over that belongs to the process.
// Children that live on keep being read, so that they do not die of it.
func (o *output) copy(done func()) {
	defer o.from.Close()
	defer close(o.over)
	once := sync.OnceFunc(done)
	defer once()
	stop := make(chan struct{})
	defer close(stop)
	guard("end output", func() {
		select {
		case <-o.ended:
			// What the process itself wrote is in the pipe already. Only
			// what its children may still write is waited for, and not for long.
			o.from.SetReadDeadline(time.Now().Add(drainGrace))
		case <-stop:
		}
	})
	buf := make([]byte, streamBuffer)
	for {
		n, err := o.from.Read(buf)
		if n > 0 && !o.discards() {
			if _, err := o.target().Write(buf[:n]); err != nil {
				o.throwAway()
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded) && (o.rest() || !o.hasEnded()):
		case errors.Is(err, os.ErrDeadlineExceeded):
			o.drain(buf)
			o.throwAway()
			once()
			o.from.SetReadDeadline(time.Time{})
		default:
			// EOF of a pipe, EIO of a terminal.
			return
		}
	}
}

// drain passes on what is there without waiting for more: the grace has passed,
// maybe because the host did not read.
func (o *output) drain(buf []byte) {
	conn, err := o.from.SyscallConn()
	if err != nil {
		return
	}
	left := 0
	conn.Control(func(fd uintptr) { left, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	// A terminal tells only a part of what it holds.
	for left = max(left, 4*streamBuffer); left > 0 && !o.discards(); {
		n := 0
		conn.Control(func(fd uintptr) { n, err = unix.Read(int(fd), buf[:min(len(buf), left)]) })
		if err != nil || n <= 0 {
			return
		}
		left -= n
		if _, err := o.target().Write(buf[:n]); err != nil {
			return
		}
	}
}

// copyIn copies from the host to the process.
func copyIn(to *os.File, from net.Conn) {
	io.CopyBuffer(writerOnly{to}, readerOnly{from}, make([]byte, streamBuffer))
}

// writerOnly and readerOnly hide the shortcuts of io.Copy, which would allocate
// other buffers.
type writerOnly struct{ io.Writer }
type readerOnly struct{ io.Reader }
