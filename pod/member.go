package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"manis/api/agent"
	"manis/bundle"
	"manis/sandbox"
)

// member is one container of a pod.
type member struct {
	pod     *Pod
	id      string
	bundle  *bundle.Bundle
	proxy   *os.File
	streams *streams
	done    chan struct{} // closed when it has stopped

	mu     sync.Mutex
	status specs.ContainerState
	paused bool
	execs  map[string]*execution
}

func (m *member) set(s specs.ContainerState) {
	m.mu.Lock()
	m.status = s
	m.mu.Unlock()
}

func (m *member) is(s specs.ContainerState) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.status == s
}

func (m *member) isPaused() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.status == specs.StateRunning && m.paused
}

// need fails when the container is in none of these states.
func (m *member) need(what string, states ...specs.ContainerState) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range states {
		if m.status == s {
			return nil
		}
	}
	return fmt.Errorf("%w: cannot %s a container that is %s", ErrState, what, m.status)
}

// attach gives a process its streams.
func attach(process *agent.Process, s *streams, sandbox *sandbox.Sandbox) error {
	tokens, err := s.connect(sandbox.Stream)
	if err != nil {
		return err
	}
	if s.terminal {
		process.Stdin, process.Stdout = tokens[0], tokens[0]
	} else {
		process.Stdin, process.Stdout, process.Stderr = tokens[0], tokens[1], tokens[2]
	}
	return nil
}

// start executes the first process.
func (m *member) start(ctx context.Context) error {
	m.mu.Lock()
	if m.status != specs.StateCreated {
		defer m.mu.Unlock()
		if m.status == specs.StateRunning {
			return fmt.Errorf("%w: cannot start an already running container", ErrState)
		}
		return fmt.Errorf("%w: cannot start a container that has %s", ErrState, m.status)
	}
	m.status = starting
	m.mu.Unlock()
	r := &agent.StartContainerRequest{Id: m.id}
	if size := m.streams.size(); size != nil {
		r.Rows, r.Columns = uint32(size.Row), uint32(size.Col)
	}
	if _, err := m.pod.sandbox.StartContainer(ctx, r); err != nil {
		m.end(exitCode(err))
		return err
	}
	m.mu.Lock()
	m.status = specs.StateRunning
	m.mu.Unlock()
	go m.wait()
	return nil
}

// starting is the state between created and running, which nobody sees.
const starting specs.ContainerState = specs.StateCreated + " (starting)"

// wait waits for the end of the first process.
func (m *member) wait() {
	exit, err := m.pod.sandbox.Wait(context.Background(), m.id, "")
	code := exitGone
	if err == nil {
		m.streams.drained()
		code = int(exit.ExitCode)
	} else if !errors.Is(err, sandbox.ErrEnded) {
		fmt.Fprintln(os.Stderr, err)
	}
	m.end(code)
}

// end makes the container a stopped one: what is left of it in the guest goes, and the machine
// with the last one. Then its proxy hears the exit code.
func (m *member) end(code int) {
	m.mu.Lock()
	if m.status == specs.StateStopped {
		m.mu.Unlock()
		return
	}
	m.status = specs.StateStopped
	m.mu.Unlock()
	p := m.pod
	p.mu.Lock()
	last := p.live() == 0
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), removeTime)
	defer cancel()
	if err := p.sandbox.RemoveContainer(ctx, m.id); err != nil && !errors.Is(err, sandbox.ErrEnded) {
		fmt.Fprintln(os.Stderr, err)
	}
	if last {
		if err := p.sandbox.Kill(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	m.streams.close()
	unix.Write(int(m.proxy.Fd()), []byte{byte(code)})
	m.proxy.Close()
	close(m.done)
	if last {
		p.mu.Lock()
		p.finish()
		p.mu.Unlock()
	}
}

// removeTime bounds the guest's work at the end of a container.
const removeTime = 10 * time.Second

// obey carries out what the proxy of a process (execID "": the first one) is told by signals, until the
// process has ended. The proxy's death is the process's.
func (m *member) obey(proxy *os.File, done <-chan struct{}, execID string, s *streams) {
	follow(proxy, done, func(signal uint32) {
		if signal == uint32(unix.SIGWINCH) && s.terminal {
			m.resize(execID, s)
			return
		}
		m.signal(context.Background(), &SignalRequest{ID: m.id, ExecID: execID, Signal: signal})
	}, func() {
		s.abandon()
		m.signal(context.Background(), &SignalRequest{ID: m.id, ExecID: execID, Signal: uint32(unix.SIGKILL)})
	})
}

// follow reads the signals of a proxy until done, and calls gone when it dies before.
func follow(proxy *os.File, done <-chan struct{}, signal func(uint32), gone func()) {
	var b [1]byte
	for {
		n, err := proxy.Read(b[:])
		select {
		case <-done:
			return
		default:
		}
		if err != nil || n == 0 {
			gone()
			return
		}
		signal(uint32(b[0]))
	}
}

func (m *member) signal(ctx context.Context, r *SignalRequest) error {
	if r.ExecID == "" && m.is(specs.StateCreated) {
		// There is no process yet that could catch it.
		m.end(128 + int(r.Signal))
		return nil
	}
	if err := m.need("signal", specs.StateRunning, starting); err != nil {
		return err
	}
	request := &agent.SignalRequest{Id: m.id, ExecId: r.ExecID, Signal: r.Signal, All: r.All}
	if r.Signal != uint32(unix.SIGKILL) {
		return m.pod.sandbox.Signal(ctx, request)
	}
	ctx, cancel := context.WithTimeout(ctx, killTime)
	defer cancel()
	err := m.pod.sandbox.Signal(ctx, request)
	if r.ExecID != "" {
		return err
	}
	// A frozen process dies when it thaws.
	m.resume(ctx)
	go m.insist()
	return nil
}

// killTime is how long a container may take to die of SIGKILL before its machine ends under it: a
// guest that does not want to is no longer one that the others in it should trust.
const killTime = 5 * time.Second

// insist ends the machine when the container does not end.
func (m *member) insist() {
	select {
	case <-m.done:
	case <-time.After(killTime):
		if err := m.pod.sandbox.Kill(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

func (m *member) resize(execID string, s *streams) {
	size := s.size()
	if size == nil {
		return
	}
	m.pod.sandbox.Resize(context.Background(), &agent.ResizeRequest{Id: m.id, ExecId: execID, Rows: uint32(size.Row), Columns: uint32(size.Col)})
}

func (m *member) pause(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.status != specs.StateRunning {
		return fmt.Errorf("%w: cannot pause a container that is %s", ErrState, m.status)
	}
	if m.paused {
		return fmt.Errorf("%w: the container is paused already", ErrState)
	}
	if err := m.pod.sandbox.Pause(ctx, m.id); err != nil {
		return err
	}
	m.paused = true
	return nil
}

func (m *member) resume(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.paused || m.status != specs.StateRunning {
		return fmt.Errorf("%w: the container is not paused", ErrState)
	}
	if err := m.pod.sandbox.Resume(ctx, m.id); err != nil {
		return err
	}
	m.paused = false
	return nil
}

// report is what front ends are told.
func (m *member) report() *Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &Status{Status: m.status}
	for _, x := range m.execs {
		s.ExecPIDs = append(s.ExecPIDs, x.pid)
	}
	slices.Sort(s.ExecPIDs)
	switch {
	case m.status == starting:
		s.Status = specs.StateCreated
	case m.status == specs.StateRunning && m.paused:
		s.Status = "paused"
	}
	return s
}

// update changes the limits in the guest.
func (m *member) update(ctx context.Context, r *UpdateRequest) error {
	if err := m.need("update", specs.StateRunning, specs.StateCreated); err != nil {
		return err
	}
	resources, err := m.bundle.Resources(r.Resources)
	if err != nil {
		return err
	}
	_, err = m.pod.sandbox.Agent().Update(ctx, &agent.UpdateRequest{Id: m.id, Resources: resources})
	return err
}
