package pod

import (
	"context"
	"fmt"

	"manis/api/agent"
	"manis/vmm"
)

// What follows is for those who have the pod in their own process; others ask it by a Client.

// Start executes a container's first process.
func (p *Pod) Start(ctx context.Context, id string) error {
	m, err := p.member(id)
	if err != nil {
		return err
	}
	return m.start(ctx)
}

// Exec runs a further process. It owns the attendant's streams.
func (p *Pod) Exec(ctx context.Context, r *ExecRequest, a Attendant) error {
	m, err := p.member(r.ID)
	if err != nil {
		closeAll(a.Streams.files())
		return err
	}
	return m.exec(ctx, r, a)
}

// Signal sends a signal. A container that does not die of SIGKILL in time ends with its machine.
func (p *Pod) Signal(ctx context.Context, r *SignalRequest) error {
	m, err := p.member(r.ID)
	if err != nil {
		return err
	}
	return m.signal(ctx, r)
}

// Resize sets the size of a process's terminal.
func (p *Pod) Resize(ctx context.Context, id, execID string, rows, columns uint32) error {
	if _, err := p.member(id); err != nil {
		return err
	}
	return p.sandbox.Resize(ctx, &agent.ResizeRequest{Id: id, ExecId: execID, Rows: rows, Columns: columns})
}

// Pause freezes a container's processes.
func (p *Pod) Pause(ctx context.Context, id string) error {
	m, err := p.member(id)
	if err != nil {
		return err
	}
	return m.pause(ctx)
}

// Resume thaws them.
func (p *Pod) Resume(ctx context.Context, id string) error {
	m, err := p.member(id)
	if err != nil {
		return err
	}
	return m.resume(ctx)
}

// Update changes a container's limits in the guest.
func (p *Pod) Update(ctx context.Context, r *UpdateRequest) error {
	m, err := p.member(r.ID)
	if err != nil {
		return err
	}
	return m.update(ctx, r)
}

// Status says what becomes of a container.
func (p *Pod) Status(id string) (*Status, error) {
	m, err := p.member(id)
	if err != nil {
		return nil, err
	}
	return m.report(), nil
}

// Stats reads a container's counters.
func (p *Pod) Stats(ctx context.Context, id string) (*agent.StatsResponse, error) {
	if _, err := p.member(id); err != nil {
		return nil, err
	}
	return p.sandbox.Stats(ctx, id)
}

// Processes lists a container's processes.
func (p *Pod) Processes(ctx context.Context, id string) (*agent.ProcessesResponse, error) {
	if _, err := p.member(id); err != nil {
		return nil, err
	}
	return p.sandbox.Processes(ctx, id)
}

// Remove forgets a container whose process has ended, or never ran.
func (p *Pod) Remove(id string) error {
	m, err := p.member(id)
	if err != nil {
		return err
	}
	return p.remove(m)
}

// Info describes the machine; nil: there is none yet.
func (p *Pod) Info() *vmm.Info {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sandbox == nil {
		return nil
	}
	info := p.sandbox.VM().Info()
	return &info
}

// Gone is closed when the machine has ended. There has to be one.
func (p *Pod) Gone() <-chan struct{} { return p.sandbox.Done() }

// Why says why the machine has ended, in words for people.
func (p *Pod) Why() string {
	e := p.sandbox.VM().Exit()
	if e.Detail == "" {
		return string(e.Reason)
	}
	return fmt.Sprintf("%s (%s)", e.Reason, e.Detail)
}

// Kill ends the machine, if there is one, and with it every container.
func (p *Pod) Kill() error {
	p.mu.Lock()
	s := p.sandbox
	p.mu.Unlock()
	if s == nil {
		return nil
	}
	return s.Kill()
}

// End ends the machine and gives back what it had of the host. Nothing may be asked of the pod afterwards.
func (p *Pod) End() {
	p.mu.Lock()
	p.finishing = true
	p.mu.Unlock()
	p.finish()
}

// fit gives a process the size of its caller's terminal, and reports whether it has one.
func (p *Pod) fit(ctx context.Context, id, execID string) bool {
	m, err := p.member(id)
	if err != nil {
		return false
	}
	s, ok := m.streamsOf(execID)
	if !ok || !s.terminal {
		return false
	}
	m.fit(ctx, execID, s)
	return true
}

// abandonStreams gives up what was to be handed to a caller that has gone.
func (p *Pod) abandonStreams(id, execID string) {
	if m, err := p.member(id); err == nil {
		if s, ok := m.streamsOf(execID); ok {
			s.abandon()
		}
	}
}
