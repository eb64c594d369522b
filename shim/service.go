package shim

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	event "github.com/containerd/containerd/api/events"
	sandbox "github.com/containerd/containerd/api/runtime/sandbox/v1"
	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	containerd "github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"manis/api/agent"
	"manis/bundle"
	"manis/cgroup"
	"manis/monitor"
	"manis/pod"
	"manis/pool"
)

// service is the Task API for the containers of one pod.
type service struct {
	namespace string
	events    *events
	shutdown  shutdown.Service

	// making is held while a container is made or the pod is ended.
	making sync.Mutex
	// resizing is held while the limits of a container, and with them the size of the machine, change.
	resizing sync.Mutex
	// idle ends a shim that has no container.
	idle *time.Timer
	// notes is nil when the end has begun.
	notes *notebook
	// waited is the machine that was claimed for the pod; nil: there is none, or it has become the ground's.
	waited *monitor.Standby

	mu     sync.Mutex
	ground *ground // nil before the first container
	box    *box    // nil: the sandbox, if there is one, is a container
	// sandbox is the id of the pod's in CRI; empty: it is one container.
	sandbox    string
	containers map[string]*container
}

func newService(ctx context.Context, publisher containerd.Publisher, end shutdown.Service) (*service, error) {
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	s := &service{
		namespace: namespace, events: newEvents(context.WithoutCancel(ctx), publisher), shutdown: end, containers: make(map[string]*container),
	}
	end.RegisterCallback(func(context.Context) error {
		defer s.events.flush()
		return s.end()
	})
	return s, nil
}

// RegisterTTRPC offers both versions of the Task API, whose messages are the same, and the Sandbox API.
func (s *service) RegisterTTRPC(server *ttrpc.Server) error {
	api.RegisterTTRPCTaskService(server, s)
	sandbox.RegisterTTRPCSandboxService(server, s)
	registerV2(server, s)
	return nil
}

// end ends the machine with all that is in it, and takes away what the pod has on the host.
func (s *service) end() error {
	s.making.Lock()
	defer s.making.Unlock()
	s.mu.Lock()
	g := s.ground
	s.ground = nil
	var list []*container
	for _, c := range s.containers {
		list = append(list, c)
	}
	s.mu.Unlock()
	if s.waited != nil {
		s.waited.Release()
		s.waited = nil
	}
	var err error
	if g != nil {
		err = g.end()
	}
	for _, c := range list {
		c.unmountRoot()
	}
	if s.notes != nil {
		s.notes.tear()
		s.notes = nil
	}
	return err
}

// endUnused ends a shim that has no container: whoever has started it does not want it any more.
func (s *service) endUnused() {
	s.making.Lock()
	defer s.making.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ground == nil {
		s.shutdown.Shutdown()
	}
}

// find finds a container and the pod's ground.
func (s *service) find(id string) (*container, *ground, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[id]
	if c == nil || s.ground == nil {
		return nil, nil, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	}
	return c, s.ground, nil
}

// process returns a process of a container: with an empty execID the first one.
func (s *service) process(id, execID string) (*container, *ground, *process, error) {
	c, g, err := s.find(id)
	if err != nil {
		return nil, nil, nil, err
	}
	p, err := c.process(execID)
	return c, g, p, err
}

// Create makes a container, and with the pod's first one the machine.
func (s *service) Create(ctx context.Context, r *api.CreateTaskRequest) (*api.CreateTaskResponse, error) {
	s.making.Lock()
	defer s.making.Unlock()
	c, err := s.create(ctx, r)
	if err != nil {
		s.idle.Reset(goneTime) // if containerd does not end it, it is gone itself
		return nil, refuse(err)
	}
	s.events.send(&event.TaskCreate{
		ContainerID: c.id, Bundle: c.bundle, Rootfs: r.Rootfs, Pid: c.init.pid,
		IO: &event.TaskIO{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
	})
	return &api.CreateTaskResponse{Pid: c.init.pid}, nil
}

func (s *service) create(ctx context.Context, r *api.CreateTaskRequest) (_ *container, err error) {
	if r.Checkpoint != "" {
		return nil, fmt.Errorf("restore from a checkpoint: %w", errdefs.ErrNotImplemented)
	}
	if _, _, err := s.find(r.ID); err == nil {
		return nil, fmt.Errorf("container %s: %w", r.ID, errdefs.ErrAlreadyExists)
	}
	b, err := bundle.Load(r.Bundle)
	if err != nil {
		return nil, err
	}
	role := roleOf(b.Spec.Annotations)
	what := pool.ContainerStart
	if role.pause {
		what = pool.PodStart
	}
	begin := time.Now()
	defer func() { tellStart(what, begin, err) }()
	switch manifest := b.Spec.Annotations[manifestAnnotation]; {
	case manifest == "" && wantsConfidential(r.Options):
		return nil, errNoManifest
	case manifest != "" && role.sandbox == "":
		return nil, fmt.Errorf("the class confidential is for pods, and manis run: %w", errdefs.ErrInvalidArgument)
	}
	c := &container{id: r.ID, bundle: b.Dir, pause: role.pause, execs: make(map[string]*process)}
	if b.Spec.Linux != nil && !role.pause {
		c.share = shareOf(b.Spec.Linux.Resources, share{})
	}
	c.init = &process{
		task: c, io: stdio{r.Stdin, r.Stdout, r.Stderr, r.Terminal}, events: s.events, done: make(chan struct{}), status: task.Status_CREATED,
	}
	s.mu.Lock()
	g, sandboxID := s.ground, s.sandbox
	s.mu.Unlock()
	fresh := g == nil
	switch {
	case s.notes == nil:
		return nil, fmt.Errorf("the shim of container %s ends: %w", r.ID, errdefs.ErrFailedPrecondition)
	case fresh && role.sandbox != "" && !role.pause:
		return nil, fmt.Errorf("the sandbox %s of container %s does not run any more: %w", role.sandbox, r.ID, errdefs.ErrFailedPrecondition)
	case !fresh && (role.pause || role.sandbox != sandboxID):
		return nil, fmt.Errorf("container %s does not belong to the pod of this shim: %w", r.ID, errdefs.ErrInvalidArgument)
	case fresh:
		waited := s.waited
		s.waited = nil
		if g, err = newGround(s.namespace, r.ID, b, s.notes, waited); err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				g.end()
			}
		}()
	}
	err = within(ctx, createTime, func(ctx context.Context) error {
		if role.pause {
			return g.boot(ctx, b)
		}
		return s.fill(ctx, g, c, b, r)
	})
	if err != nil {
		return nil, err
	}
	c.init.pid = g.pid()
	if role.sandbox != "" && !role.pause {
		c.thread = newThread()
		c.init.pid = c.thread.id
	}
	s.mu.Lock()
	s.ground, s.sandbox = g, role.sandbox
	s.containers[c.id] = c
	s.mu.Unlock()
	if role.pause {
		go func() {
			<-g.pod.Gone()
			c.init.end(goneWithMachine("", g))
		}()
	}
	return c, nil
}

// goneWithMachine is the end of what stands for a pod whose machine has ended. With the id of a sandbox it is told.
func goneWithMachine(id string, g *ground) pod.Exit {
	e := pod.Exit{Code: 128 + int(unix.SIGKILL), At: time.Now(), Reason: "the virtual machine of the pod ended: " + g.pod.Why()}
	if id != "" {
		fmt.Fprintf(os.Stderr, "sandbox %s: %s\n", id, e.Reason)
	}
	return e
}

// fill makes a container in the pod's machine.
func (s *service) fill(ctx context.Context, g *ground, c *container, b *bundle.Bundle, r *api.CreateTaskRequest) (err error) {
	if g.pod.Sealed() {
		return s.fillSealed(ctx, g, c, b)
	}
	mounts := mount.FromProto(r.Rootfs)
	image := c.layersOf(g, mounts)
	if image != nil {
		c.layer = image.Layer
	} else if err := c.mountRoot(mounts, b); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			c.unmountRoot()
		}
	}()
	s.mu.Lock()
	x := s.box
	s.mu.Unlock()
	if x != nil {
		mountFiles(b.Spec, x.files)
	}
	request := &pod.CreateRequest{ID: c.id, Bundle: b.Dir, Layers: image, Accel: b.Spec.Annotations["manis.accel"], Boot: b.Spec.Annotations["manis.boot"], Disks: true, Maps: true, Projections: true}
	if request.Config, err = json.Marshal(b.Spec); err != nil {
		return err
	}
	inPod := roleOf(b.Spec.Annotations).sandbox != ""
	plan, err := b.Plan(bundle.Environment{Joins: inPod, Disks: true, Maps: true})
	if err != nil {
		return err
	}
	defer plan.Close()
	for _, w := range plan.Warnings {
		fmt.Fprintf(os.Stderr, "container %s: %s\n", c.id, w)
	}
	if plan.BlockIO != nil {
		return errBlockIO
	}
	if request.Allowed, err = permit(g, b, plan, c.id); err != nil {
		return err
	}
	if inPod {
		if err := checkPropagation(b.Spec.Mounts); err != nil {
			return err
		}
	} else {
		if err := checkNetwork(plan); err != nil {
			return err
		}
		request.Netns = plan.Net.Path
	}
	if b.Spec.Linux != nil {
		if err := g.joins(b.Spec.Linux.Namespaces, s.others(), request); err != nil {
			return err
		}
	}
	if inPod {
		// One that comes back with larger limits, or that has some where another has none.
		s.resizing.Lock()
		err := s.makeRoom(ctx, g, c, share{}, c.share)
		s.resizing.Unlock()
		if err != nil {
			return err
		}
	}
	streams, keeper, err := c.init.io.open(s.namespace, c.id)
	if err != nil {
		return err
	}
	c.init.keep(keeper)
	if err := g.pod.Create(ctx, request, pod.Attendant{Streams: streams, Ended: c.init.end}); err != nil {
		c.init.mu.Lock()
		c.init.closeInput()
		c.init.mu.Unlock()
		return err
	}
	return nil
}

// others are the containers whose processes run, and what stands for them on the host.
func (s *service) others() map[string]uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	pids := make(map[string]uint32)
	for _, c := range s.containers {
		if status, _ := c.init.state(); c.thread != nil && status == task.Status_RUNNING {
			pids[c.id] = c.init.pid
		}
	}
	return pids
}

// Start executes a process.
func (s *service) Start(ctx context.Context, r *api.StartRequest) (*api.StartResponse, error) {
	c, g, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, refuse(err)
	}
	if status, _ := p.state(); status != task.Status_CREATED {
		return nil, refuse(fmt.Errorf("start a process that was started already: %w", errdefs.ErrFailedPrecondition))
	}
	switch {
	case r.ExecID != "":
		err = s.startExec(ctx, g, p)
	case !c.pause:
		err = within(ctx, startTime, func(ctx context.Context) error { return g.pod.Start(ctx, c.id) })
	}
	if err != nil {
		return nil, refuse(err)
	}
	if r.ExecID != "" {
		p.started(&event.TaskExecStarted{ContainerID: c.id, ExecID: r.ExecID, Pid: p.pid})
	} else {
		p.started(&event.TaskStart{ContainerID: c.id, Pid: p.pid})
	}
	p.mu.Lock()
	rows, columns := p.rows, p.columns
	p.mu.Unlock()
	if rows != 0 {
		within(ctx, answerTime, func(ctx context.Context) error { return g.pod.Resize(ctx, c.id, r.ExecID, rows, columns) })
	}
	return &api.StartResponse{Pid: p.pid}, nil
}

func (s *service) startExec(ctx context.Context, g *ground, p *process) error {
	streams, keeper, err := p.io.open(s.namespace, p.task.id)
	if err != nil {
		return err
	}
	p.keep(keeper)
	p.mu.Lock()
	request := &pod.ExecRequest{ID: p.task.id, ExecID: p.execID, Process: p.spec, Rows: p.rows, Columns: p.columns}
	p.mu.Unlock()
	err = within(ctx, startTime, func(ctx context.Context) error {
		return g.pod.Exec(ctx, request, pod.Attendant{Streams: streams, Ended: p.end})
	})
	if err != nil {
		p.mu.Lock()
		p.closeInput()
		p.mu.Unlock()
	}
	return err
}

// Exec notes a further process; Start runs it.
func (s *service) Exec(ctx context.Context, r *api.ExecProcessRequest) (*emptypb.Empty, error) {
	c, g, err := s.find(r.ID)
	if err != nil {
		return nil, refuse(err)
	}
	if c.pause {
		return nil, refuse(fmt.Errorf("container %s has no process in the virtual machine, it only stands for the pod: %w", c.id, errdefs.ErrFailedPrecondition))
	}
	p := &process{
		task: c, execID: r.ExecID, io: stdio{r.Stdin, r.Stdout, r.Stderr, r.Terminal}, events: s.events,
		done: make(chan struct{}), status: task.Status_CREATED, pid: uint32(os.Getpid()), spec: new(specs.Process),
	}
	if r.ExecID == "" || r.Spec == nil {
		return nil, refuse(fmt.Errorf("exec: the request has no process: %w", errdefs.ErrInvalidArgument))
	}
	if err := json.Unmarshal(r.Spec.GetValue(), p.spec); err != nil {
		return nil, refuse(fmt.Errorf("exec: read the process: %w: %w", err, errdefs.ErrInvalidArgument))
	}
	if err := permitExec(g.places, p.spec); err != nil {
		return nil, refuse(err)
	}
	p.spec.Terminal = r.Terminal
	if err := c.add(p); err != nil {
		return nil, refuse(err)
	}
	s.events.send(&event.TaskExecAdded{ContainerID: c.id, ExecID: r.ExecID})
	return new(emptypb.Empty), nil
}

// Delete forgets a process that has ended, or was never started, and with the first one the container.
func (s *service) Delete(ctx context.Context, r *api.DeleteRequest) (*api.DeleteResponse, error) {
	c, g, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, refuse(err)
	}
	if status, _ := p.state(); status != task.Status_STOPPED && status != task.Status_CREATED {
		return nil, refuse(fmt.Errorf("delete a process that runs: %w", errdefs.ErrFailedPrecondition))
	}
	switch {
	case r.ExecID != "":
		c.remove(p)
	case c.pause:
		g.pod.End()
	default:
		if err := g.pod.Remove(c.id); err != nil {
			return nil, refuse(err)
		}
		if err := c.unmountRoot(); err != nil {
			return nil, refuse(err)
		}
	}
	code, at := p.exitStatus()
	if at == nil {
		at = timestamppb.New(time.Now())
	}
	if r.ExecID == "" && s.forget(c) {
		s.events.send(&event.TaskDelete{ContainerID: c.id, Pid: p.pid, ExitStatus: code, ExitedAt: at})
	}
	return &api.DeleteResponse{Pid: p.pid, ExitStatus: code, ExitedAt: at}, nil
}

// forget reports whether the container was there.
func (s *service) forget(c *container) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.containers[c.id] != c {
		return false
	}
	delete(s.containers, c.id)
	c.thread.release()
	return true
}

// Kill sends a signal.
func (s *service) Kill(ctx context.Context, r *api.KillRequest) (*emptypb.Empty, error) {
	c, g, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, refuse(err)
	}
	switch status, _ := p.state(); {
	case status == task.Status_STOPPED:
		return nil, refuse(fmt.Errorf("the process has ended: %w", errdefs.ErrNotFound))
	case status == task.Status_CREATED && r.ExecID != "":
		return nil, refuse(fmt.Errorf("the process was not started: %w", errdefs.ErrFailedPrecondition))
	case c.pause:
		endPause(g, p, unix.Signal(r.Signal))
		return new(emptypb.Empty), nil
	}
	err = within(ctx, answerTime, func(ctx context.Context) error {
		return g.pod.Signal(ctx, &pod.SignalRequest{ID: c.id, ExecID: r.ExecID, Signal: r.Signal, All: r.All})
	})
	if status, _ := p.state(); err != nil && status == task.Status_STOPPED || errors.Is(err, pod.ErrState) {
		// Also when its end has not been told yet. containerd takes this for success.
		err = fmt.Errorf("the process has ended: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, refuse(err)
	}
	return new(emptypb.Empty), nil
}

// endPause does with a signal what the program does that otherwise keeps a pod's namespaces: it ends orderly at
// SIGTERM and SIGINT. The pod's machine ends with it.
func endPause(g *ground, p *process, signal unix.Signal) {
	code := 0
	switch signal {
	case unix.SIGTERM, unix.SIGINT:
	case unix.SIGKILL:
		code = 128 + int(signal)
	default:
		return
	}
	// While its end is held back, so that no other reason is given, and before it is told: then the pod's network
	// namespace is taken down.
	p.mu.Lock()
	defer p.mu.Unlock()
	g.pod.End()
	p.finish(pod.Exit{Code: code, At: time.Now()})
}

// Wait waits for the end of a process.
func (s *service) Wait(ctx context.Context, r *api.WaitRequest) (*api.WaitResponse, error) {
	_, _, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, refuse(err)
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return nil, refuse(ctx.Err())
	}
	code, at := p.exitStatus()
	return &api.WaitResponse{ExitStatus: code, ExitedAt: at}, nil
}

// State says what becomes of a process.
func (s *service) State(ctx context.Context, r *api.StateRequest) (*api.StateResponse, error) {
	c, _, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, refuse(err)
	}
	status, _ := p.state()
	code, at := p.exitStatus()
	id := r.ExecID
	if id == "" {
		id = c.id
	}
	return &api.StateResponse{
		ID: id, Bundle: c.bundle, Pid: p.pid, Status: status, Stdin: p.io.stdin, Stdout: p.io.stdout, Stderr: p.io.stderr,
		Terminal: p.io.terminal, ExitStatus: code, ExitedAt: at, ExecID: r.ExecID,
	}, nil
}

// Pause freezes a container's processes.
func (s *service) Pause(ctx context.Context, r *api.PauseRequest) (*emptypb.Empty, error) {
	c, g, err := s.inGuest(r.ID)
	if err == nil {
		err = within(ctx, answerTime, func(ctx context.Context) error { return g.pod.Pause(ctx, c.id) })
	}
	if err != nil {
		return nil, refuse(err)
	}
	c.init.set(task.Status_PAUSED)
	s.events.send(&event.TaskPaused{ContainerID: c.id})
	return new(emptypb.Empty), nil
}

// Resume thaws them.
func (s *service) Resume(ctx context.Context, r *api.ResumeRequest) (*emptypb.Empty, error) {
	c, g, err := s.inGuest(r.ID)
	if err == nil {
		err = within(ctx, answerTime, func(ctx context.Context) error { return g.pod.Resume(ctx, c.id) })
	}
	if err != nil {
		return nil, refuse(err)
	}
	c.init.set(task.Status_RUNNING)
	s.events.send(&event.TaskResumed{ContainerID: c.id})
	return new(emptypb.Empty), nil
}

// inGuest finds a container that is in the machine.
func (s *service) inGuest(id string) (*container, *ground, error) {
	c, g, err := s.find(id)
	if err == nil && c.pause {
		err = fmt.Errorf("container %s only stands for the pod: %w", id, errdefs.ErrNotImplemented)
	}
	return c, g, err
}

// Pids names the process that stands for the container on the host: its own have ids of the guest.
func (s *service) Pids(ctx context.Context, r *api.PidsRequest) (*api.PidsResponse, error) {
	c, _, err := s.find(r.ID)
	if err != nil {
		return nil, refuse(err)
	}
	return &api.PidsResponse{Processes: []*task.ProcessInfo{{Pid: c.init.pid}}}, nil
}

// ResizePty sets the size of a process's terminal, also before it is started.
func (s *service) ResizePty(ctx context.Context, r *api.ResizePtyRequest) (*emptypb.Empty, error) {
	c, g, err := s.inGuest(r.ID)
	if err != nil {
		return nil, refuse(err)
	}
	p, err := c.process(r.ExecID)
	if err != nil {
		return nil, refuse(err)
	}
	p.mu.Lock()
	p.rows, p.columns = r.Height, r.Width
	status := p.status
	p.mu.Unlock()
	if !p.io.terminal || status == task.Status_CREATED || status == task.Status_STOPPED {
		return new(emptypb.Empty), nil
	}
	err = within(ctx, answerTime, func(ctx context.Context) error { return g.pod.Resize(ctx, c.id, r.ExecID, r.Height, r.Width) })
	if err != nil {
		return nil, refuse(err)
	}
	return new(emptypb.Empty), nil
}

// CloseIO lets a process see the end of its input.
func (s *service) CloseIO(ctx context.Context, r *api.CloseIORequest) (*emptypb.Empty, error) {
	_, _, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, refuse(err)
	}
	if r.Stdin {
		p.mu.Lock()
		p.closeInput()
		p.mu.Unlock()
	}
	return new(emptypb.Empty), nil
}

// Checkpoint is not there.
func (s *service) Checkpoint(ctx context.Context, r *api.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return nil, refuse(fmt.Errorf("checkpoint: %w", errdefs.ErrNotImplemented))
}

// Update changes limits. Those of the container that stands for a pod are nobody's.
func (s *service) Update(ctx context.Context, r *api.UpdateTaskRequest) (*emptypb.Empty, error) {
	c, g, err := s.find(r.ID)
	if err != nil {
		return nil, refuse(err)
	}
	if c.pause {
		return new(emptypb.Empty), nil
	}
	if g.pod.Sealed() {
		return nil, refuse(errSealedSize)
	}
	limits := new(specs.LinuxResources)
	if err := json.Unmarshal(r.Resources.GetValue(), limits); err != nil {
		return nil, refuse(fmt.Errorf("update: read the limits: %w: %w", err, errdefs.ErrInvalidArgument))
	}
	if io, err := bundle.BlockIO(limits.BlockIO); err != nil || io != nil {
		return nil, refuse(fmt.Errorf("update: %w", cmp.Or(err, errBlockIO)))
	}
	s.resizing.Lock()
	defer s.resizing.Unlock()
	s.mu.Lock()
	before := c.share
	s.mu.Unlock()
	now := shareOf(limits, before)
	if err := s.makeRoom(ctx, g, c, before, now); err != nil {
		return nil, refuse(err)
	}
	err = within(ctx, answerTime, func(ctx context.Context) error {
		return g.pod.Update(ctx, &pod.UpdateRequest{ID: c.id, Resources: limits})
	})
	if err != nil {
		s.giveRoom(ctx, g, c, before)
		return nil, refuse(err)
	}
	s.mu.Lock()
	c.share = now
	s.mu.Unlock()
	s.giveRoom(ctx, g, c, now)
	return new(emptypb.Empty), nil
}

// Stats are a container's counters. Those of the one that stands for the pod are the whole pod's.
func (s *service) Stats(ctx context.Context, r *api.StatsRequest) (*api.StatsResponse, error) {
	c, g, err := s.find(r.ID)
	if err != nil {
		return nil, refuse(err)
	}
	var counters *agent.StatsResponse
	var message *anypb.Any
	if c.pause {
		message, err = s.podMetrics(ctx, g)
	} else {
		err = within(ctx, answerTime, func(ctx context.Context) error {
			counters, err = sealedStats(ctx, g, c.id)
			return err
		})
		if err == nil {
			message, err = typeurl.MarshalAnyToProto(metrics(counters, cgroup.Unified()))
		}
	}
	if err != nil {
		return nil, refuse(err)
	}
	return &api.StatsResponse{Stats: message}, nil
}

// Connect says which processes these are.
func (s *service) Connect(ctx context.Context, r *api.ConnectRequest) (*api.ConnectResponse, error) {
	answer := &api.ConnectResponse{ShimPid: uint32(os.Getpid())}
	if c, _, err := s.find(r.ID); err == nil {
		answer.TaskPid = c.init.pid
	}
	return answer, nil
}

// Shutdown ends the shim when it has no container any more.
func (s *service) Shutdown(ctx context.Context, r *api.ShutdownRequest) (*emptypb.Empty, error) {
	s.making.Lock()
	s.mu.Lock()
	left := len(s.containers)
	if s.box != nil {
		left++ // it ends with its sandbox
	}
	s.mu.Unlock()
	s.making.Unlock()
	if left > 0 {
		return new(emptypb.Empty), nil
	}
	// Before the answer: what is still there afterwards containerd takes for that of a shim that hangs.
	err := s.end()
	s.shutdown.Shutdown()
	if err != nil {
		return nil, refuse(err)
	}
	return new(emptypb.Empty), nil
}
