package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	goruntime "runtime"
	"strings"
	"sync"
	"time"

	api "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/timestamppb"

	"manis/bundle"
	"manis/pod"
	"manis/pool"
)

// box is a pod's sandbox that containerd has asked for by the Sandbox API: no container stands for it.
type box struct {
	id      string
	bundle  *bundle.Bundle // what the machine is to be like, as a container's configuration
	files   []bundleFile   // which containers find in /etc
	created time.Time
	done    chan struct{} // closed when the machine has ended

	mu      sync.Mutex
	running bool
	exit    *pod.Exit
}

// end makes it an ended one, once.
func (x *box) end(e pod.Exit) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.exit == nil {
		x.exit, x.running = &e, false
		close(x.done)
	}
}

func (x *box) state() (running bool, exit *pod.Exit) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.running, x.exit
}

// The states that containerd's CRI plugin knows.
const (
	sandboxReady    = "SANDBOX_READY"
	sandboxNotReady = "SANDBOX_NOTREADY"
)

// findBox finds the sandbox of this shim.
func (s *service) findBox(id string) (*box, *ground, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.box == nil || s.box.id != id || s.ground == nil {
		return nil, nil, fmt.Errorf("sandbox %s: %w", id, errdefs.ErrNotFound)
	}
	return s.box, s.ground, nil
}

// CreateSandbox prepares what the pod has on the host.
func (s *service) CreateSandbox(ctx context.Context, r *api.CreateSandboxRequest) (*api.CreateSandboxResponse, error) {
	s.making.Lock()
	defer s.making.Unlock()
	if err := s.createSandbox(r); err != nil {
		s.idle.Reset(goneTime)
		return nil, refuse(err)
	}
	return new(api.CreateSandboxResponse), nil
}

func (s *service) createSandbox(r *api.CreateSandboxRequest) error {
	s.mu.Lock()
	taken := s.ground != nil
	s.mu.Unlock()
	switch {
	case s.notes == nil:
		return fmt.Errorf("the shim of sandbox %s ends: %w", r.SandboxID, errdefs.ErrFailedPrecondition)
	case taken:
		return fmt.Errorf("sandbox %s: %w", r.SandboxID, errdefs.ErrAlreadyExists)
	}
	asked, err := readSandbox(r.Options)
	if err != nil {
		return err
	}
	config, err := json.Marshal(asked.spec(r.SandboxID, r.NetnsPath))
	if err != nil {
		return err
	}
	b, err := bundle.Parse(r.BundlePath, config)
	if err != nil {
		return err
	}
	g, err := newGround(s.namespace, r.SandboxID, b, s.notes, s.waited)
	s.waited = nil
	if err != nil {
		return err
	}
	files, err := asked.files(g.dir)
	if err != nil {
		return errors.Join(err, g.end())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ground, s.sandbox = g, r.SandboxID
	s.box = &box{id: r.SandboxID, bundle: b, files: files, done: make(chan struct{})}
	return nil
}

// StartSandbox makes the machine.
func (s *service) StartSandbox(ctx context.Context, r *api.StartSandboxRequest) (*api.StartSandboxResponse, error) {
	s.making.Lock()
	defer s.making.Unlock()
	x, g, err := s.findBox(r.SandboxID)
	if err == nil && !x.created.IsZero() {
		err = fmt.Errorf("sandbox %s was started already: %w", x.id, errdefs.ErrFailedPrecondition)
	}
	if err == nil {
		begin := time.Now()
		err = within(ctx, createTime, func(ctx context.Context) error { return g.boot(ctx, x.bundle) })
		tellStart(pool.PodStart, begin, err)
	}
	if err != nil {
		return nil, refuse(err)
	}
	x.mu.Lock()
	x.created, x.running = time.Now(), true
	x.mu.Unlock()
	go func() {
		<-g.pod.Gone()
		if _, exit := x.state(); exit == nil {
			x.end(goneWithMachine(x.id, g))
		}
	}()
	return &api.StartSandboxResponse{Pid: g.pid(), CreatedAt: timestamppb.New(x.created)}, nil
}

// Platform is the guest's.
func (s *service) Platform(context.Context, *api.PlatformRequest) (*api.PlatformResponse, error) {
	return &api.PlatformResponse{Platform: &types.Platform{OS: "linux", Architecture: goruntime.GOARCH}}, nil
}

// StopSandbox ends the machine, whose containers containerd has stopped before.
func (s *service) StopSandbox(ctx context.Context, r *api.StopSandboxRequest) (*api.StopSandboxResponse, error) {
	x, g, err := s.findBox(r.SandboxID)
	if err != nil {
		return nil, refuse(err)
	}
	// Before its end would be given as the reason.
	x.end(pod.Exit{At: time.Now()})
	g.pod.End()
	return new(api.StopSandboxResponse), nil
}

// WaitSandbox waits for the machine's end.
func (s *service) WaitSandbox(ctx context.Context, r *api.WaitSandboxRequest) (*api.WaitSandboxResponse, error) {
	x, _, err := s.findBox(r.SandboxID)
	if err != nil {
		return nil, refuse(err)
	}
	select {
	case <-x.done:
	case <-ctx.Done():
		return nil, refuse(ctx.Err())
	}
	_, exit := x.state()
	return &api.WaitSandboxResponse{ExitStatus: uint32(exit.Code), ExitedAt: timestamppb.New(exit.At)}, nil
}

// SandboxStatus says what becomes of it.
func (s *service) SandboxStatus(ctx context.Context, r *api.SandboxStatusRequest) (*api.SandboxStatusResponse, error) {
	x, g, err := s.findBox(r.SandboxID)
	if err != nil {
		return nil, refuse(err)
	}
	x.mu.Lock()
	running, exit, created := x.running, x.exit, x.created
	x.mu.Unlock()
	status := &api.SandboxStatusResponse{SandboxID: x.id, State: sandboxNotReady, Pid: g.pid(), CreatedAt: timestamppb.New(created)}
	if running {
		status.State = sandboxReady
	}
	if exit != nil {
		status.ExitedAt = timestamppb.New(exit.At)
	}
	if r.Verbose {
		status.Info = map[string]string{"machine": fmt.Sprintf("process %d", status.Pid)}
		if exit != nil && exit.Reason != "" {
			status.Info["reason"] = exit.Reason
		}
	}
	return status, nil
}

// PingSandbox fails when the machine has ended.
func (s *service) PingSandbox(ctx context.Context, r *api.PingRequest) (*api.PingResponse, error) {
	x, _, err := s.findBox(r.SandboxID)
	if err != nil {
		return nil, refuse(err)
	}
	if running, _ := x.state(); !running {
		return nil, refuse(fmt.Errorf("sandbox %s does not run: %w", x.id, errdefs.ErrFailedPrecondition))
	}
	return new(api.PingResponse), nil
}

// replyTime is how long the answer to the last request may be on its way: containerd takes a lost one for a failure, and the library
// does not say when it is written.
const replyTime = 200 * time.Millisecond

// ShutdownSandbox ends the shim with all that it has.
func (s *service) ShutdownSandbox(ctx context.Context, r *api.ShutdownSandboxRequest) (*api.ShutdownSandboxResponse, error) {
	s.mu.Lock()
	x := s.box
	s.mu.Unlock()
	if x != nil && x.id != r.SandboxID {
		return nil, refuse(fmt.Errorf("sandbox %s: %w", r.SandboxID, errdefs.ErrNotFound))
	}
	if x != nil {
		x.end(pod.Exit{At: time.Now()})
	}
	err := s.end()
	time.AfterFunc(replyTime, s.shutdown.Shutdown)
	if err != nil {
		return nil, refuse(err)
	}
	return new(api.ShutdownSandboxResponse), nil
}

// SandboxMetrics are the whole pod's.
func (s *service) SandboxMetrics(ctx context.Context, r *api.SandboxMetricsRequest) (*api.SandboxMetricsResponse, error) {
	x, g, err := s.findBox(r.SandboxID)
	if err != nil {
		return nil, refuse(err)
	}
	data, err := s.podMetrics(ctx, g)
	if err != nil {
		return nil, refuse(err)
	}
	return &api.SandboxMetricsResponse{Metrics: &types.Metric{Timestamp: timestamppb.Now(), ID: x.id, Data: data}}, nil
}

// UpdateSandbox is not there: a machine keeps its size.
func (s *service) UpdateSandbox(ctx context.Context, r *api.UpdateSandboxRequest) (*api.UpdateSandboxResponse, error) {
	return nil, refuse(fmt.Errorf("update a sandbox: %w", errdefs.ErrNotImplemented))
}

// isSandboxConfig recognises the type of what CRI hands over.
func isSandboxConfig(url string) bool {
	return url[strings.LastIndexAny(url, "./")+1:] == "PodSandboxConfig"
}
