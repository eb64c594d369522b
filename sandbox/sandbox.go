// Package sandbox is the heart of Manis: one sandbox is one virtual machine with
// an agent in it and containers under the agent. It boots the machine, connects
// to the agent, makes the machine unique and gives the containers' requests
// a typed way through; when the machine ends, for whatever reason, every
// waiting call learns why.
//
// It knows nothing of front ends (the CLI, containerd) and nothing of a particular
// VMM: a driver is handed in.
package sandbox

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"manis/api/agent"
	"manis/api/wire"
	"manis/trace"
	"manis/vmm"
)

// Config is what a sandbox is made from.
type Config struct {
	Driver vmm.Driver
	// VM is the machine. Its NIC's connection is made here, see Attach, if it has no NIC of its own.
	VM vmm.Config
	// Setup is the first request; version, entropy and clock are filled in.
	Setup *agent.SetupRequest
	// Attach serves the guest's network card: frames as QEMU's stream netdev
	// sends them. It returns when the connection ends. Nil: no card.
	Attach func(ctx context.Context, conn net.Conn) error
	// MAC is the card's hardware address.
	MAC string
	// Hold makes a card that is served when Claim says by whom.
	Hold bool
	// Measured: the machine takes neither clock nor entropy from the host.
	Measured bool
	// BootTimeout bounds one attempt to get the agent's first answer, Attempts
	// is how often to try: a guest without KVM may hang in the calibration
	// of its timers when the host is busy. Zero means 30 s and 2.
	BootTimeout time.Duration
	Attempts    int
}

// Sandbox is a running machine whose agent has answered.
type Sandbox struct {
	vm       vmm.VM
	current  atomic.Pointer[session] // nil before the machine has started
	detached atomic.Bool             // between two sessions
	guest    *agent.SetupResponse
	// guestStart is the host's time at which the guest's monotonic clock began.
	guestStart time.Time

	life     context.Context // until Kill
	cancel   context.CancelFunc
	measured bool
	network  sync.WaitGroup
	card     net.Conn // of Hold, until Claim
	slots    []vmm.Disk
}

// ErrEnded is wrapped by the error of a call whose machine ended before it
// could be answered.
var ErrEnded = errors.New("the virtual machine ended")

// Start boots a machine and returns when its agent has carried out the setup.
// ctx bounds the start only. The caller ends the sandbox with Stop or Kill.
func Start(ctx context.Context, cfg Config) (*Sandbox, error) {
	timeout, attempts := cfg.BootTimeout, cfg.Attempts
	if timeout == 0 {
		timeout = 30 * time.Second
	}
	if attempts == 0 {
		attempts = 2
	}
	var err error
	for range attempts {
		var s *Sandbox
		if s, err = boot(ctx, cfg, timeout); err == nil {
			return s, nil
		}
		if ctx.Err() != nil || !errors.Is(err, errHung) {
			break
		}
		timeout *= 2
	}
	return nil, err
}

// errHung marks a machine that is alive but whose agent did not answer in time.
var errHung = errors.New("the guest does not answer")

func boot(ctx context.Context, cfg Config, timeout time.Duration) (_ *Sandbox, err error) {
	life, cancel := context.WithCancel(context.Background())
	s := &Sandbox{life: life, cancel: cancel, slots: cfg.VM.Disks, measured: cfg.Measured}
	defer func() {
		if err != nil {
			s.Kill()
		}
	}()

	vmConfig := cfg.VM
	cloned := vmConfig.Frozen != nil || vmConfig.Saved != nil
	if cfg.Attach == nil && !cfg.Hold && cloned && (vmConfig.NIC == nil || vmConfig.NIC.Tap == nil) {
		vmConfig.NIC = &vmm.NIC{MAC: cfg.MAC} // a clone has what its template has
	}
	if cfg.Attach != nil || cfg.Hold {
		ours, theirs, err := socketpair()
		if err != nil {
			return nil, fmt.Errorf("connect the network card: %w", err)
		}
		defer theirs.Close()
		vmConfig.NIC = &vmm.NIC{MAC: cfg.MAC, Conn: theirs}
		if s.card = ours; cfg.Attach != nil {
			s.attach(cfg.Attach)
		}
	}

	_, span := trace.Start(ctx, "spawn")
	s.vm, err = cfg.Driver.Start(ctx, vmConfig)
	span.End()
	if err != nil {
		return nil, err
	}
	if err := s.converse(); err != nil {
		return nil, err
	}

	bootCtx, span := trace.Start(ctx, "boot")
	callCtx, stop := context.WithTimeout(bootCtx, timeout)
	defer stop()
	err = s.setUp(callCtx, cfg.Setup)
	span.End()
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return nil, fmt.Errorf("boot the virtual machine: %w", ctx.Err())
	case callCtx.Err() != nil && !errors.Is(err, ErrEnded):
		return nil, fmt.Errorf("boot the virtual machine: %w after %v%s", errHung, timeout, s.consoleHint())
	default:
		return nil, fmt.Errorf("set up the virtual machine: %w", err)
	}
	if s.guest.Version != wire.Version {
		return nil, fmt.Errorf("set up the virtual machine: its agent speaks protocol %d, this manis %d (rebuild the guest image: make build)", s.guest.Version, wire.Version)
	}
	if !cloned {
		s.record(bootCtx, []*agent.Span{{Name: "kernel", EndNs: s.guest.ReadyNs}})
	}
	s.record(bootCtx, []*agent.Span{{Name: "agent", StartNs: s.guest.ReceivedNs, EndNs: s.guest.DoneNs}})
	return s, nil
}

// attach has the card served until the end.
func (s *Sandbox) attach(serve func(ctx context.Context, conn net.Conn) error) {
	card := s.card
	s.card = nil
	s.network.Go(func() {
		defer card.Close()
		stop := context.AfterFunc(s.life, func() { card.Close() })
		defer stop()
		serve(s.life, card)
	})
}

// Claim turns a sandbox that was started with Hold, and has no container, into one of
// this configuration: its disks are put into the machine's slots, its network behind the
// card, and the setup is repeated with new entropy.
func (s *Sandbox) Claim(ctx context.Context, cfg Config) error {
	for _, d := range cfg.VM.Disks {
		if err := s.vm.Insert(ctx, d); err != nil {
			return err
		}
	}
	if cfg.Attach != nil && s.card != nil {
		s.attach(cfg.Attach)
	}
	if err := s.setUp(ctx, cfg.Setup); err != nil {
		return fmt.Errorf("set up the virtual machine: %w", err)
	}
	return nil
}

// setUp makes the machine unique, or unique again.
func (s *Sandbox) setUp(ctx context.Context, setup *agent.SetupRequest) (err error) {
	setup.Version = wire.Version
	if !s.measured {
		setup.Entropy = make([]byte, 64)
		rand.Read(setup.Entropy)
		setup.ClockUnixNs = time.Now().UnixNano()
	}
	s.guest, err = call(ctx, s, setup, s.client().Setup)
	// The guest's own clock tells the kernel's work from the agent's.
	if err == nil {
		s.guestStart = time.Now().Add(-time.Duration(s.guest.DoneNs))
	}
	return err
}

// maxUptime is how long after its beginning a guest can have had a span of a start.
const maxUptime = 10 * 365 * 24 * time.Hour

// record adds spans of the guest's monotonic time to the trace. They are as
// trustworthy as the guest: good for a waterfall, for nothing else.
func (s *Sandbox) record(ctx context.Context, spans []*agent.Span) {
	for _, span := range spans {
		if span.StartNs < 0 || span.EndNs < span.StartNs || time.Duration(span.EndNs) > maxUptime {
			continue
		}
		trace.Record(ctx, span.Name, s.guestStart.Add(time.Duration(span.StartNs)), s.guestStart.Add(time.Duration(span.EndNs)))
	}
}

// socketpair returns a connection and the file that a child inherits.
func socketpair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	file := os.NewFile(uintptr(fds[0]), "network")
	conn, err := net.FileConn(file)
	file.Close()
	if err != nil {
		unix.Close(fds[1])
		return nil, nil, err
	}
	return conn, os.NewFile(uintptr(fds[1]), "network"), nil
}

// call makes one request; when the machine ended meanwhile, the error says why.
func call[Req, Resp any](ctx context.Context, s *Sandbox, req Req, method func(context.Context, Req) (Resp, error)) (Resp, error) {
	resp, err := method(ctx, req)
	if err != nil && ctx.Err() == nil && s.linkLost() {
		return resp, s.ended()
	}
	return resp, err
}

// reapTime is how long after its connection a machine may still be ending.
const reapTime = time.Second

func (s *Sandbox) linkLost() bool {
	select {
	case <-s.current.Load().link.Done():
		select {
		case <-s.vm.Done():
		case <-time.After(reapTime):
		}
		return true
	case <-s.vm.Done():
		return true
	default:
		return false
	}
}

func (s *Sandbox) ended() error {
	select {
	case <-s.vm.Done():
		exit := s.vm.Exit()
		detail := exit.Detail
		if detail == "" {
			detail = string(exit.Reason)
		}
		return fmt.Errorf("%w: %s%s", ErrEnded, detail, s.consoleHint())
	default:
		if err := s.current.Load().link.Err(); err != nil {
			return fmt.Errorf("%w: its agent was given up: %w", ErrEnded, err)
		}
		return fmt.Errorf("%w: the connection to its agent was lost", ErrEnded)
	}
}

// consoleHint is the last line of the guest's console, for an error message.
func (s *Sandbox) consoleHint() string {
	if line := lastLine(s.vm.Console()); line != "" {
		return fmt.Sprintf(" (the guest's last words: %s)", line)
	}
	return ""
}

// Agent is the typed client of the agent. Its errors are those of the wire; Call
// gives better ones.
func (s *Sandbox) Agent() agent.AgentService { return s.client() }

// Guest is the agent's answer to the setup.
func (s *Sandbox) Guest() *agent.SetupResponse { return s.guest }

// VM is the machine under the sandbox.
func (s *Sandbox) VM() vmm.VM { return s.vm }

// Stream opens a byte stream to the agent; see wire.Client.Stream. Its error wraps ErrEnded, as that of a
// request does, when the machine ended.
func (s *Sandbox) Stream() (net.Conn, uint64, error) {
	conn, token, err := s.current.Load().link.Stream()
	if err != nil && s.linkLost() {
		err = s.ended()
	}
	return conn, token, err
}

// Done is closed when the machine has ended.
func (s *Sandbox) Done() <-chan struct{} { return s.vm.Done() }

// stopTimeout is how long a guest may take to sync its disks and power off.
const stopTimeout = 10 * time.Second

// Stop lets the agent sync and power the machine off, and kills it when that
// takes too long. It returns when the machine is gone.
func (s *Sandbox) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	go s.client().Shutdown(ctx, &agent.Empty{})
	select {
	case <-s.vm.Done():
	case <-ctx.Done():
	}
	return s.Kill()
}

// Kill ends the machine at once and waits until nothing of it is left. It may
// be called again.
func (s *Sandbox) Kill() error {
	var err error
	if s.vm != nil {
		err = s.vm.Kill()
	}
	if c := s.current.Load(); c != nil {
		c.link.Close()
	}
	s.cancel()
	if s.card != nil {
		s.card.Close()
		s.card = nil
	}
	s.network.Wait()
	return err
}
