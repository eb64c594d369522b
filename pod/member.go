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
	"manis/snapshot/dump"
	"manis/vmm"
)

// member is one container of a pod.
type member struct {
	pod     *Pod
	id      string
	created time.Time
	bundle  *bundle.Bundle // from the end of its creation on
	ended   func(Exit)
	streams *streams
	mounts  []dump.Mount
	// added are what a running machine was shown for it.
	added []vmm.ShareEntry
	// disks are the serials of the host's block devices that it was given.
	disks []string
	// projected are the volumes that it has a copy of.
	projected []*projection
	done      chan struct{} // closed when it has stopped
	exit      Exit          // how, then
	// alone says that its first process is that of a PID namespace which no other container is in.
	alone bool
	// resolvConf is the path of its resolv.conf on the host; empty: it has none from there.
	resolvConf string

	mu      sync.Mutex
	status  specs.ContainerState
	started time.Time // when its first process was; zero: not yet
	paused  bool
	execs   map[string]*execution
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
	// Some engines set the network up only when the container has been made.
	if err := errors.Join(m.pod.network.follow(ctx), m.pod.resolve(ctx, m.resolvConf)); err != nil {
		m.end(gone(exitGone, Text(err)))
		return err
	}
	r := &agent.StartContainerRequest{Id: m.id}
	if size := m.streams.size(); size != nil {
		r.Rows, r.Columns = uint32(size.Row), uint32(size.Col)
	}
	if _, err := m.pod.sandbox.StartContainer(ctx, r); err != nil {
		m.end(gone(exitCode(err), Text(err)))
		return err
	}
	m.runs()
	go m.wait()
	return nil
}

// runs notes that the first process was executed.
func (m *member) runs() {
	m.mu.Lock()
	m.status, m.started = specs.StateRunning, time.Now()
	m.mu.Unlock()
}

// starting is the state between created and running, which nobody sees.
const starting specs.ContainerState = specs.StateCreated + " (starting)"

// awaited waits for the container's end.
func (m *member) awaited(ctx context.Context) (*Exit, error) {
	select {
	case <-m.done:
		return &m.exit, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// wait waits for the end of the first process.
func (m *member) wait() { m.end(m.await("", m.streams)) }

// await waits for the end of a process (execID "": the first one) and of its output.
func (m *member) await(execID string, s *streams) Exit {
	r, err := m.pod.sandbox.Wait(context.Background(), m.id, execID)
	if err != nil {
		if execID == "" && !errors.Is(err, sandbox.ErrEnded) {
			fmt.Fprintln(os.Stderr, err)
		}
		return gone(exitGone, Text(err))
	}
	// The guest's clock is the host's, but what it says is not to be believed.
	at := time.Now()
	s.drained()
	return Exit{Code: int(r.ExitCode & 0xff), At: at, OOM: r.OomKilled}
}

// end makes the container a stopped one: what is left of it in the guest goes, and with the last one the
// machine, unless that is held. Then its attendant hears of it.
func (m *member) end(e Exit) {
	m.mu.Lock()
	if m.status == specs.StateStopped {
		m.mu.Unlock()
		return
	}
	m.status = specs.StateStopped
	m.mu.Unlock()
	p := m.pod
	p.mu.Lock()
	last := p.live() == 0 && !p.held
	p.finishing = p.finishing || last
	p.mu.Unlock()
	p.keepBundle()
	ctx, cancel := context.WithTimeout(context.Background(), removeTime)
	defer cancel()
	// With its first process every other one of the container has ended, and what they have written to the host's files is
	// there: a machine that ends now has nothing to put in order.
	if !last || !m.alone {
		if err := p.sandbox.RemoveContainer(ctx, m.id); err != nil && !errors.Is(err, sandbox.ErrEnded) {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	if last {
		if err := p.sandbox.Kill(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	m.streams.close()
	m.exit = e
	m.ended(e)
	close(m.done)
	if last {
		p.finish()
	}
}

// removeTime bounds the guest's work at the end of a container.
const removeTime = 10 * time.Second

func (m *member) signal(ctx context.Context, r *SignalRequest) error {
	if r.ExecID == "" && m.is(specs.StateCreated) {
		// There is no process yet that could catch it.
		m.end(Exit{Code: 128 + int(r.Signal), At: time.Now()})
		return nil
	}
	if err := m.need("signal", specs.StateRunning, starting); err != nil {
		return err
	}
	request := &agent.SignalRequest{Id: m.id, ExecId: r.ExecID, Signal: r.Signal, All: r.All}
	if r.Signal != uint32(unix.SIGKILL) {
		return m.pod.sandbox.Signal(ctx, request)
	}
	if r.ExecID != "" {
		ctx, cancel := killing.with(ctx, m.pod.sandbox.VM().Info().PID)
		defer cancel()
		return m.pod.sandbox.Signal(ctx, request)
	}
	taken := make(chan error, 1)
	go m.insist(request, taken)
	select {
	case err := <-taken:
		return err
	case <-ctx.Done():
		return nil // it is killed all the same, or its machine is
	}
}

// killing is how long an agent may take for SIGKILL, and a container to die of it, before the machine ends under it: a
// guest that does not want to is no longer one that the others in it should trust.
var killing = patience{limit: 5 * time.Second, most: time.Minute}

// insist has a container killed, and ends the machine when it does not end. The channel is told when the agent has taken the signal, or the
// machine was ended.
func (m *member) insist(request *agent.SignalRequest, taken chan<- error) {
	pid := m.pod.sandbox.VM().Info().PID
	ctx, cancel := killing.with(context.Background(), pid)
	// That there is no process any more is no error.
	m.pod.sandbox.Signal(ctx, request)
	if ctx.Err() != nil {
		taken <- m.pod.giveUp("its agent has not taken SIGKILL for container " + m.id)
		return
	}
	// A frozen process dies when it thaws.
	m.resume(ctx)
	cancel()
	taken <- nil
	ctx, cancel = killing.with(context.Background(), pid)
	defer cancel()
	select {
	case <-m.done:
	case <-ctx.Done():
		if err := m.pod.giveUp("container " + m.id + " does not end by SIGKILL"); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

// giveUp ends a machine that does not do what it has to.
func (p *Pod) giveUp(why string) error {
	fmt.Fprintf(os.Stderr, "the virtual machine is ended: %s\n", why)
	return p.sandbox.Kill()
}

// fit gives a process the size of the caller's terminal.
func (m *member) fit(ctx context.Context, execID string, s *streams) {
	size := s.size()
	if size == nil {
		return
	}
	m.pod.sandbox.Resize(ctx, &agent.ResizeRequest{Id: m.id, ExecId: execID, Rows: uint32(size.Row), Columns: uint32(size.Col)})
}

// streamsOf finds those of a process.
func (m *member) streamsOf(execID string) (*streams, bool) {
	if execID == "" {
		return m.streams, true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.execs[execID]
	if x == nil {
		return nil, false
	}
	return x.streams, true
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
