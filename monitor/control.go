package monitor

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"manis/api/agent"
	"manis/api/monitor"
	"manis/container"
	"manis/container/spec"
)

// killTime is how long a container may take to die of SIGKILL before its
// machine is ended under it.
const killTime = 5 * time.Second

func (f *front) Kill(ctx context.Context, req *monitor.KillRequest) (*monitor.Empty, error) {
	r, err := f.current()
	if err != nil {
		return nil, err
	}
	sig := unix.Signal(req.Signal)
	if sig == unix.SIGKILL || sig == unix.SIGTERM || sig == unix.SIGINT {
		// As docker: a container that its user killed is not restarted.
		f.mu.Lock()
		if sig == unix.SIGKILL {
			f.wantsStop = true
		}
		f.mu.Unlock()
	}
	if sig == unix.SIGKILL {
		f.kill(ctx, r)
		return &monitor.Empty{}, nil
	}
	if err := r.sandbox.Signal(ctx, &agent.SignalRequest{Id: containerID, Signal: req.Signal}); err != nil {
		return nil, wireError(err)
	}
	return &monitor.Empty{}, nil
}

// kill ends the first process, through the agent if it answers, else with the
// machine. It returns when the process has ended.
func (m *Monitor) kill(ctx context.Context, r *round) {
	callCtx, cancel := context.WithTimeout(ctx, killTime)
	defer cancel()
	go func() {
		r.sandbox.Signal(callCtx, &agent.SignalRequest{Id: containerID, Signal: uint32(unix.SIGKILL)})
		m.thaw(callCtx, r)
	}()
	select {
	case <-r.ended:
	case <-callCtx.Done():
		r.sandbox.Kill()
		<-r.ended
	}
}

func (f *front) Stop(ctx context.Context, req *monitor.StopRequest) (*monitor.Empty, error) {
	f.mu.Lock()
	f.wantsStop, f.again = true, false
	r := f.run
	f.change()
	f.mu.Unlock()
	if f.copying {
		return &monitor.Empty{}, f.leave(ctx, unix.Signal(req.Signal) == unix.SIGKILL)
	}
	if err := f.end(ctx, r, req); err != nil {
		return nil, err
	}
	_, err := f.Wait(ctx, &monitor.WaitRequest{})
	return &monitor.Empty{}, err
}

// end brings a round to its end: by the stop signal, then by force.
func (f *front) end(ctx context.Context, r *round, req *monitor.StopRequest) error {
	if !r.running() {
		r.cancelBoot()
		select {
		case <-r.began:
		case <-r.ended:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	sig := unix.Signal(req.Signal)
	if sig == 0 {
		var err error
		if sig, err = spec.Signal(f.cfg.StopSignal); err != nil {
			sig = unix.SIGTERM
		}
	}
	timeout := time.Duration(req.TimeoutSeconds) * time.Second
	if req.TimeoutSeconds < 0 {
		timeout = f.cfg.StopTimeout
	}
	callCtx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	go func() {
		r.sandbox.Signal(callCtx, &agent.SignalRequest{Id: containerID, Signal: uint32(sig)})
		f.thaw(callCtx, r)
	}()
	select {
	case <-r.ended:
		return nil
	case <-callCtx.Done():
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	f.kill(ctx, r)
	return nil
}

// thaw lets a paused container notice its signals.
func (m *Monitor) thaw(ctx context.Context, r *round) {
	m.mu.Lock()
	paused := m.state.Status == container.Paused
	m.mu.Unlock()
	if !paused {
		return
	}
	if r.sandbox.Resume(ctx, containerID) == nil {
		m.setPaused(false)
	}
}

func (f *front) Restart(ctx context.Context, req *monitor.StopRequest) (*monitor.Empty, error) {
	f.mu.Lock()
	if f.final {
		f.mu.Unlock()
		return nil, status.Errorf(codes.FailedPrecondition, "container %s is not running", f.cfg.ID[:12])
	}
	f.again = true
	old := f.run
	f.change()
	f.mu.Unlock()
	if err := f.end(ctx, old, req); err != nil {
		return nil, err
	}
	// The next round has started, or has failed for good.
	for {
		f.mu.Lock()
		r, changed, final := f.run, f.changed, f.final
		text := f.state.Error
		f.mu.Unlock()
		switch {
		case r != old && r.running():
			return &monitor.Empty{}, nil
		case final:
			return nil, status.Error(codes.Unknown, text)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (f *front) Pause(ctx context.Context, _ *monitor.Empty) (*monitor.Empty, error) {
	r, err := f.current()
	if err != nil {
		return nil, err
	}
	if f.paused() {
		return nil, status.Errorf(codes.FailedPrecondition, "container %s is already paused", f.cfg.ID[:12])
	}
	if err := r.sandbox.Pause(ctx, containerID); err != nil {
		return nil, wireError(err)
	}
	f.setPaused(true)
	return &monitor.Empty{}, nil
}

func (f *front) Resume(ctx context.Context, _ *monitor.Empty) (*monitor.Empty, error) {
	r, err := f.current()
	if err != nil {
		return nil, err
	}
	if !f.paused() {
		return nil, status.Errorf(codes.FailedPrecondition, "container %s is not paused", f.cfg.ID[:12])
	}
	if err := r.sandbox.Resume(ctx, containerID); err != nil {
		return nil, wireError(err)
	}
	f.setPaused(false)
	return &monitor.Empty{}, nil
}

func (m *Monitor) paused() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state.Status == container.Paused
}

func (m *Monitor) setPaused(paused bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.run.running() {
		return
	}
	m.state.Status = container.Running
	if paused {
		m.state.Status = container.Paused
	}
	m.save()
	m.change()
}

func (f *front) Resize(ctx context.Context, req *monitor.ResizeRequest) (*monitor.Empty, error) {
	if req.Rows == 0 || req.Columns == 0 || req.Rows > 0xffff || req.Columns > 0xffff {
		return nil, status.Errorf(codes.InvalidArgument, "resize terminal: %d x %d is no size", req.Columns, req.Rows)
	}
	f.mu.Lock()
	r := f.run
	f.mu.Unlock()
	if req.ExecId == "" {
		return &monitor.Empty{}, wireError(f.size(r, req.Rows, req.Columns))
	}
	r, err := f.current()
	if err != nil {
		return nil, err
	}
	err = r.sandbox.Resize(ctx, &agent.ResizeRequest{Id: containerID, ExecId: req.ExecId, Rows: req.Rows, Columns: req.Columns})
	return &monitor.Empty{}, wireError(err)
}

// size sets the terminal of the first process, now or when it is there.
func (m *Monitor) size(r *round, rows, columns uint32) error {
	if !r.setSize(rows, columns) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), killTime)
	defer cancel()
	return r.sandbox.Resize(ctx, &agent.ResizeRequest{Id: containerID, Rows: rows, Columns: columns})
}
