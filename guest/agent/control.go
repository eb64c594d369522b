package agent

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	api "manis/api/agent"
)

// Signal sends a signal to a process or to all of a container's.
func (s *service) Signal(ctx context.Context, r *api.SignalRequest) (*api.Empty, error) {
	c, err := s.container(r.Id)
	if err != nil {
		return nil, err
	}
	if r.Signal == 0 || r.Signal > 64 {
		return nil, fail(codes.InvalidArgument, fmt.Errorf("signal %d does not exist", r.Signal))
	}
	sig := syscall.Signal(r.Signal)
	if r.All {
		return &api.Empty{}, c.signalAll(sig)
	}
	p, err := c.process(r.ExecId)
	if err != nil {
		return nil, err
	}
	if err := p.deliver(sig); err != nil {
		return nil, err
	}
	return &api.Empty{}, nil
}

// signalAll sends a signal to every process of the container.
func (c *container) signalAll(sig syscall.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.removed {
		return nil
	}
	if sig == unix.SIGKILL {
		return c.cgroup.kill()
	}
	b, err := c.cgroup.read("cgroup.procs")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && pid > 1 {
			if err := unix.Kill(pid, sig); err != nil && err != unix.ESRCH {
				return fmt.Errorf("signal process %d: %w", pid, err)
			}
		}
	}
	return nil
}

// Resize sets a terminal's size.
func (s *service) Resize(ctx context.Context, r *api.ResizeRequest) (*api.Empty, error) {
	c, err := s.container(r.Id)
	if err != nil {
		return nil, err
	}
	p, err := c.process(r.ExecId)
	if err != nil {
		return nil, err
	}
	if p.io.tty == nil {
		return nil, fail(codes.FailedPrecondition, errors.New("the process has no terminal"))
	}
	conn, err := p.io.tty.SyscallConn()
	if err != nil {
		return nil, err
	}
	var e error
	if err := conn.Control(func(fd uintptr) { e = setSize(int(fd), r.Rows, r.Columns) }); err != nil {
		return nil, fail(codes.NotFound, errors.New("the process has ended"))
	}
	if e != nil {
		return nil, e
	}
	return &api.Empty{}, nil
}

// Pause freezes a container.
func (s *service) Pause(ctx context.Context, r *api.ContainerRef) (*api.Empty, error) {
	return s.freeze(r.Id, true)
}

// Resume thaws it.
func (s *service) Resume(ctx context.Context, r *api.ContainerRef) (*api.Empty, error) {
	return s.freeze(r.Id, false)
}

func (s *service) freeze(id string, frozen bool) (*api.Empty, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, err
	}
	c.running.Lock()
	defer c.running.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.removed || c.first == nil || c.first.hasExited():
		return nil, fail(codes.FailedPrecondition, errors.New("the container is not running"))
	case c.paused == frozen && frozen:
		return nil, fail(codes.FailedPrecondition, errors.New("the container is already paused"))
	case c.paused == frozen:
		return nil, fail(codes.FailedPrecondition, errors.New("the container is not paused"))
	}
	if err := c.cgroup.freeze(frozen); err != nil {
		if frozen {
			c.cgroup.write("cgroup.freeze", "0")
		}
		return nil, fmt.Errorf("pause container: %w", err)
	}
	c.paused = frozen
	return &api.Empty{}, nil
}

// Update changes a container's limits.
func (s *service) Update(ctx context.Context, r *api.UpdateRequest) (*api.Empty, error) {
	c, err := s.container(r.Id)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.removed {
		return nil, fail(codes.NotFound, errors.New("the container was removed"))
	}
	if err := c.cgroup.apply(r.Resources, true); err != nil {
		return nil, err
	}
	if rules := r.Resources.GetDeviceRules(); len(rules) > 0 {
		if err := c.cgroup.filterDevices(c.deviceRules(rules)); err != nil {
			return nil, err
		}
	}
	return &api.Empty{}, nil
}
