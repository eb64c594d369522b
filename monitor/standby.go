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
	"manis/network/netns"
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
	spare     *netns.Spare
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

// StandbyMain is the body of a program's word standby, by which manisd starts it: it makes a machine of the size, JSON of a
// container.Config, says on descriptor 3 when it waits and when it is claimed, and then is a container's monitor, or what pods makes
// of it. It ends when descriptor 4, which its starter closes, ends first.
func StandbyMain(ctx context.Context, size string, pods PodOwners) error {
	cfg := new(container.Config)
	if err := json.Unmarshal([]byte(size), cfg); err != nil {
		return fmt.Errorf("read the size of the machine: %w", err)
	}
	w, idle := os.NewFile(3, "reports"), os.NewFile(4, "idle")
	if w == nil || idle == nil {
		return errors.New("this word is manisd's: it needs descriptors 3 and 4")
	}
	unix.CloseOnExec(3)
	unix.CloseOnExec(4)
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
	defer s.Release()
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
		c, err := s.accept(conn, places, pods)
		if err != nil {
			conn.Close()
			continue
		}
		began := time.Now()
		// Nobody else finds it any more.
		os.Remove(path)
		listener.Close()
		unix.Dup3(int(c.log.Fd()), 2, 0)
		c.log.Close()
		unix.Chdir("/")
		ready := func() {
			s.hurry()
			fmt.Fprintf(conn, "%d\n", s.sandbox.VM().Info().PID)
			conn.Close()
			fmt.Fprintln(w, "claimed", time.Since(began).Microseconds())
			w.Close()
		}
		if c.request.Pod != "" {
			ready()
			claim := &PodClaim{Dir: c.request.Pod, Listener: c.file, Order: c.request.Order}
			return pods.of(claim)(ctx, places, claim, s)
		}
		first, err := net.FileConn(c.file)
		c.file.Close()
		if err != nil {
			return err
		}
		defer first.Close()
		return own(ctx, places, c.request.ID, task{first: first, standby: s, ready: ready})
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

// newStandby makes a machine that has run a container of no use, or is a copy of one that has.
func newStandby(ctx context.Context, places *place.Places, cfg *container.Config) (_ *Standby, err error) {
	vm, driver, err := Machine(ctx, places, cfg)
	if err != nil {
		return nil, err
	}
	var spare *netns.Spare
	if cfg.Network.Mode == pool.TapMode {
		if spare, err = netns.NewSpare(); err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				spare.Close()
			}
		}()
		vm.NIC = &vmm.NIC{Tap: spare.Tap}
	}
	vm = TemplateOf(vm)
	t, err := Templates(places, driver).Get(ctx, vm, nil)
	if err != nil {
		return nil, err
	}
	if err := Exercise(ctx, places, driver, t, vm, false); err != nil {
		fmt.Fprintf(os.Stderr, "rehearsing in every machine: %v\n", err)
	}
	if err = os.MkdirAll(places.Pool(), 0o700); err != nil {
		t.Close()
		return nil, err
	}
	s, err := cloneStandby(ctx, driver, t, vm, filepath.Join(places.Pool(), place.StandbyDir(os.Getpid())))
	if err != nil {
		pool.Leave(places.Pool())
		return nil, err
	}
	s.pool, s.spare = places.Pool(), spare
	if s.exercised || s.tap && t.Saved() != nil {
		return s, nil // it has answered, and what a rehearsal would still save takes the next machine's time
	}
	if err = s.rehearse(ctx, places, 1); err != nil {
		s.Release()
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
			s.Release()
		}
	}()
	s.dir = dir
	os.RemoveAll(s.dir)
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return nil, err
	}
	vm.RunDir, vm.CodeCache = s.dir, standbyCode
	if s.tap {
		if vm, err = s.share(vm, t.Saved() == nil); err != nil {
			return nil, err
		}
	}
	// What the network will be is known before it is there.
	stack, err := network.New(ctx, network.Config{})
	if err != nil {
		return nil, err
	}
	s.guest = stack.Guest()
	stack.Close()
	s.sandbox, s.exercised, err = startClone(ctx, sandbox.Config{
		Driver: driver, VM: vm, MAC: s.guest.MAC.String(), Hold: !s.tap,
		Setup: &agent.SetupRequest{Network: GuestNetwork(&s.guest)},
	}, t)
	return s, err
}

// Release ends the machine.
func (s *Standby) Release() {
	if s.sandbox != nil {
		s.sandbox.Kill()
	}
	s.template.Close()
	if s.spare != nil {
		s.spare.Close()
	}
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
		s.Release() // before the next machine is given the same network
		fmt.Fprintf(os.Stderr, "cloning a template instead of using the machine that waited: %v\n", err)
		return false
	}
	b.later(s.Release)
	b.sandbox, b.boot = s.sandbox, s.Boot()
	return true
}
