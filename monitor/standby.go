package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"manis/api/agent"
	"manis/container"
	"manis/host/priority"
	"manis/network"
	"manis/place"
	"manis/pool"
	"manis/sandbox"
	"manis/template"
	"manis/trace"
	"manis/vmm"
	"manis/vmm/qemu"
)

// Standby is a machine that waits for a container: it was cloned from a template, and it, or the machine that it is
// a copy of, has run a container of no use already, so that what a start executes has been executed once. Its process
// becomes the monitor of the container that claims it, and belongs to nobody else from then on.
type Standby struct {
	sandbox  *sandbox.Sandbox
	template *template.Template
	// exercised: it was continued from a machine that had rehearsed.
	exercised bool
	key       string
	guest     network.Addresses // as they were set up
	tap       bool              // its card is a tap that leads nowhere
	setups    int
	dir       string // with the rehearsal's disks
	pool      string // the directory of the pool that it belongs to; empty: none
}

// Waiting lists the sockets of machines that wait for a container with this configuration, whose machine
// is vm.
func Waiting(places *place.Places, cfg *container.Config, driver *qemu.Driver, vm vmm.Config) []string {
	dir, err := os.Open(places.Pool())
	if err != nil {
		return nil // no pool
	}
	dir.Close()
	if !poolable(cfg) {
		return nil
	}
	kind, err := poolKind(driver, vm)
	if err != nil {
		return nil
	}
	sockets, _ := filepath.Glob(filepath.Join(places.Pool(), kind.Key+"-*"))
	return sockets
}

// poolKey is how much of a template's key is in a socket's name.
const poolKey = 16

// poolable reports whether a container can have a machine that runs already: host directories
// are mounted when QEMU is started.
func poolable(cfg *container.Config) bool {
	if cfg.Boot != "" && cfg.Boot != "auto" || cfg.Snapshot != "" {
		return false
	}
	for _, m := range cfg.Mounts {
		if m.Type == "bind" || m.Type == "volume" {
			return false
		}
	}
	return true
}

// claimRequest is the message by which a front end claims a machine. With it come the connection
// to the front end and the file for the monitor's own messages.
type claimRequest struct {
	ID   string `json:"id"`
	Root string `json:"root"`
}

// claimTime bounds how long a waiting machine may take to accept: it only takes a lock.
const claimTime = 2 * time.Second

// claim gives a container to the first waiting machine that takes it.
func claim(ctx context.Context, sockets []string, c *container.Container, front, log *os.File) bool {
	if len(sockets) == 0 {
		return false
	}
	ctx, span := trace.Start(ctx, "claim")
	defer span.End()
	request, err := json.Marshal(claimRequest{ID: c.ID, Root: c.Dir()})
	if err != nil {
		return false
	}
	rights := unix.UnixRights(int(front.Fd()), int(log.Fd()))
	for _, path := range sockets {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if err != nil {
			if errors.Is(err, unix.ECONNREFUSED) {
				os.Remove(path) // its process was killed
			}
			continue
		}
		conn.SetDeadline(time.Now().Add(claimTime))
		answer := make([]byte, 1)
		_, _, err = conn.(*net.UnixConn).WriteMsgUnix(request, rights, nil)
		if err == nil {
			_, err = io.ReadFull(conn, answer)
		}
		conn.Close()
		if err == nil {
			return true
		}
	}
	return false
}

// StandbyMain is the body of `manis standby`: it makes a machine of the size that cfg asks for,
// says on w when it waits and when it is claimed, and then is a container's monitor. It ends
// when idle, which its starter closes, ends first.
func StandbyMain(ctx context.Context, cfg *container.Config, w io.Writer, idle io.Reader) error {
	places, err := place.Find("", "")
	if err != nil {
		return err
	}
	if err := places.Make(); err != nil {
		return err
	}
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		io.Copy(io.Discard, idle)
		cancel()
	}()
	s, err := newStandby(waiting, places, cfg)
	if err != nil {
		return err
	}
	defer s.release()
	listener, path, err := s.listen(places)
	if err != nil {
		return err
	}
	defer os.Remove(path)
	defer listener.Close()
	fmt.Fprintln(w, "ready")
	defer context.AfterFunc(waiting, func() { listener.Close() })()
	go func() {
		select {
		case <-s.sandbox.Done():
			listener.Close()
		case <-waiting.Done():
		}
	}()
	for {
		conn, err := listener.AcceptUnix()
		if err != nil {
			return errors.New("waited for a container in vain")
		}
		id, first, log, err := s.accept(conn, places)
		if err != nil {
			conn.Close()
			continue
		}
		began := time.Now()
		// Nobody else finds it any more.
		os.Remove(path)
		listener.Close()
		if log != nil {
			unix.Dup3(int(log.Fd()), 2, 0)
			log.Close()
		}
		unix.Chdir("/")
		return own(ctx, places, id, task{first: first, standby: s, ready: func() {
			s.hurry()
			conn.Write([]byte{1})
			conn.Close()
			fmt.Fprintln(w, "claimed", time.Since(began).Microseconds())
			if c, ok := w.(io.Closer); ok {
				c.Close()
			}
		}})
	}
}

// listen makes the socket by which the machine is claimed.
func (s *Standby) listen(places *place.Places) (*net.UnixListener, string, error) {
	if err := os.MkdirAll(places.Pool(), 0o700); err != nil {
		return nil, "", fmt.Errorf("make the directory of waiting machines: %w", err)
	}
	path := filepath.Join(places.Pool(), s.key[:poolKey]+"-"+strconv.Itoa(os.Getpid()))
	os.Remove(path)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, "", fmt.Errorf("wait for a container: %w", err)
	}
	l.SetUnlinkOnClose(false)
	return l, path, nil
}

// accept reads a claim, which only this user may make.
func (s *Standby) accept(conn *net.UnixConn, places *place.Places) (id string, first net.Conn, log *os.File, err error) {
	conn.SetDeadline(time.Now().Add(claimTime))
	uid, err := pool.Peer(conn)
	if err != nil {
		return "", nil, nil, err
	}
	if uid != os.Geteuid() {
		return "", nil, nil, errors.New("claimed by another user")
	}
	b, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(8))
	n, oobn, _, _, err := conn.ReadMsgUnix(b, oob)
	if err != nil {
		return "", nil, nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return "", nil, nil, errors.New("a claim without descriptors")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 2 {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return "", nil, nil, errors.New("a claim without its two descriptors")
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	log = os.NewFile(uintptr(fds[1]), "log")
	first, err = fileConn(fds[0])
	var r claimRequest
	if err == nil {
		err = json.Unmarshal(b[:n], &r)
	}
	if err == nil && filepath.Dir(r.Root) != places.Containers() {
		err = errors.New("a claim of another installation")
	}
	if err != nil {
		log.Close()
		if first != nil {
			first.Close()
		}
		return "", nil, nil, err
	}
	return r.ID, first, log, nil
}

// newStandby makes a machine that has run a container of no use, or is a copy of one that has.
func newStandby(ctx context.Context, places *place.Places, cfg *container.Config) (_ *Standby, err error) {
	vm, driver, err := Machine(ctx, places, cfg)
	if err != nil {
		return nil, err
	}
	vm = TemplateOf(vm)
	t, err := Templates(places, driver).Get(ctx, vm, nil)
	if err != nil {
		return nil, err
	}
	if err := Exercise(ctx, places, driver, t, vm, false); err != nil {
		fmt.Fprintf(os.Stderr, "rehearsing in every machine: %v\n", err)
	}
	if err := os.MkdirAll(places.Pool(), 0o700); err != nil {
		t.Close()
		return nil, err
	}
	s, err := cloneStandby(ctx, driver, t, vm, filepath.Join(places.Pool(), place.StandbyDir(os.Getpid())))
	if err != nil {
		pool.Leave(places.Pool())
		return nil, err
	}
	s.pool = places.Pool()
	if s.exercised {
		return s, nil // it has answered, and what a rehearsal would still save takes the next machine's time
	}
	if err := s.rehearse(ctx, places, 1); err != nil {
		s.release()
		return nil, err
	}
	return s, nil
}

// cloneStandby clones a template, which belongs to the machine from then on. What the machine needs of
// files is in dir, which is made.
func cloneStandby(ctx context.Context, driver *qemu.Driver, t *template.Template, vm vmm.Config, dir string) (_ *Standby, err error) {
	s := &Standby{template: t, key: t.Info.Key, tap: vm.NIC.Tap != nil}
	defer func() {
		if err != nil {
			s.release()
		}
	}()
	s.dir = dir
	os.RemoveAll(s.dir)
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return nil, err
	}
	vm.RunDir, vm.CodeCache = s.dir, standbyCode
	// What the network will be is known before it is there.
	stack, err := network.New(ctx, network.Config{})
	if err != nil {
		return nil, err
	}
	s.guest = stack.Guest()
	stack.Close()
	s.sandbox, s.exercised, err = startClone(ctx, sandbox.Config{
		Driver: driver, VM: vm, MAC: s.guest.MAC.String(), Hold: !s.tap,
		Setup: &agent.SetupRequest{Network: guestNetwork(&s.guest)},
	}, t)
	return s, err
}

// release ends the machine.
func (s *Standby) release() {
	if s.sandbox != nil {
		s.sandbox.Kill()
	}
	s.template.Close()
	if s.dir != "" {
		os.RemoveAll(s.dir)
	}
	if s.pool != "" {
		pool.Leave(s.pool) // when it was the last
	}
}

// hurry gives the machine the scheduling of ordinary processes: it was made when nobody else
// wanted the processor.
func (s *Standby) hurry() {
	priority.Give(os.Getpid(), priority.Ordinary)
	priority.Give(s.sandbox.VM().Info().PID, priority.Ordinary)
}

// claimed makes the machine that has waited this container's, if there is one that still works.
func (m *Monitor) claimed(ctx context.Context, b *machine, cfg *sandbox.Config) bool {
	s := m.standby
	m.standby = nil
	if s == nil {
		return false
	}
	ctx, span := trace.Start(ctx, "claim")
	defer span.End()
	if err := s.sandbox.Claim(ctx, *cfg); err != nil {
		s.release() // before the next machine is given the same network
		fmt.Fprintf(os.Stderr, "cloning a template instead of using the machine that waited: %v\n", err)
		return false
	}
	b.later(s.release)
	b.sandbox, b.boot = s.sandbox, "pool "+s.key
	return true
}
