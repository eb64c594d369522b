package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	api "manis/api/agent"
	"manis/guest/block"
)

// maxExecs bounds the processes that the host runs in one container at a time,
// and those whose end it has not asked for.
const maxExecs = 512

// container is one container from CreateContainer to RemoveContainer.
type container struct {
	id      string
	dir     string
	request *api.CreateContainerRequest
	cgroup  *cgroup
	verity  *block.Mapped
	// sealer encrypts disks; nil: nobody does. unseal gives its disk back, if there is one.
	sealer Sealer
	unseal func() error

	// thread lives in the container's namespaces until the first process does. The
	// new PID namespace exists only on it: no process has entered it yet.
	thread *thread
	// command is the path of what the first process executes, if it was looked for.
	command string
	// procfs is what the first process still has to mount.
	procfs procfs
	// ending is closed when the container is about to be removed: what holds mu for long
	// ends then.
	ending  chan struct{}
	endOnce sync.Once
	// ownUTS says that the UTS namespace is not shared.
	ownUTS bool
	// mnt keeps the mount namespace for later visitors.
	mnt *os.File
	// volumes are the filesystems in memory that it shares.
	volumes []string
	// disks are the writable ones, to be synced and released.
	disks []usedDisk

	// running is held for reading while a process is being launched and for
	// writing by pause, since nothing can be launched into a frozen cgroup.
	running sync.RWMutex

	mu     sync.Mutex
	first  *process
	reaper *process // of --init, else nil
	pids   *process // one of the PID namespace that is not the container's own, else nil
	// joined are processes whose namespaces of these kinds the container has.
	joined  map[int]*process
	execs   map[string]*process
	paused  bool
	removed bool
}

// usedDisk is a disk with a filesystem mounted for the container.
type usedDisk struct {
	path string
	fd   int // a directory of the filesystem
}

// thread runs functions one after the other on an operating-system thread of
// its own, whose namespaces they may change. The thread ends with it.
type thread struct {
	calls chan func()
	done  chan struct{}
}

func newThread() *thread {
	t := &thread{calls: make(chan func()), done: make(chan struct{})}
	go func() {
		defer close(t.done)
		// Never unlocked, so the runtime ends the thread with this goroutine.
		runtime.LockOSThread()
		for f := range t.calls {
			f()
		}
	}()
	return t
}

// do runs f on the thread; a panic in it becomes an error.
func (t *thread) do(f func() error) error {
	result := make(chan error, 1)
	t.calls <- func() {
		defer func() {
			if r := recover(); r != nil {
				result <- fmt.Errorf("panic: %v", r)
			}
		}()
		result <- f()
	}
	return <-result
}

// end gives the thread's namespaces back and lets it end. What it held of them
// is released when end returns, not at some later time.
func (t *thread) end() {
	t.do(leaveNamespaces)
	close(t.calls)
	<-t.done
}

// leaveNamespaces returns the calling thread to the agent's namespaces.
func leaveNamespaces() error {
	return unix.Setns(ownNamespaces, unix.CLONE_NEWNS|unix.CLONE_NEWUTS|unix.CLONE_NEWIPC|unix.CLONE_NEWCGROUP|unix.CLONE_NEWPID)
}

// CreateContainer builds everything but the process.
func (s *service) CreateContainer(ctx context.Context, r *api.CreateContainerRequest) (*api.CreateContainerResponse, error) {
	if !isName(r.Id) || len(r.Id) > 128 || r.Id[0] == '.' {
		return nil, fail(codes.InvalidArgument, fmt.Errorf("container id %q is not a name", r.Id))
	}
	if r.Process == nil || len(r.Process.Args) == 0 {
		return nil, fail(codes.InvalidArgument, errors.New("no command given"))
	}
	if len(r.StartHooks) > maxHooks {
		return nil, fail(codes.InvalidArgument, fmt.Errorf("more than %d hooks", maxHooks))
	}
	c := &container{id: r.Id, dir: containersDir + "/" + r.Id, request: r, execs: make(map[string]*process), ending: make(chan struct{})}
	c.sealer, _ = s.protector.(Sealer)
	s.mu.Lock()
	switch {
	case !s.isSetUp:
		s.mu.Unlock()
		return nil, errNotSetUp
	case s.containers[r.Id] != nil:
		s.mu.Unlock()
		return nil, fail(codes.AlreadyExists, fmt.Errorf("container %s exists", r.Id))
	case len(s.containers) >= maxContainers:
		s.mu.Unlock()
		return nil, fail(codes.ResourceExhausted, fmt.Errorf("more than %d containers in one sandbox", maxContainers))
	}
	hosts, err := s.hosts(r)
	if err != nil {
		s.mu.Unlock()
		return nil, err
	}
	s.containers[r.Id] = c
	c.mu.Lock()
	s.mu.Unlock()

	var t tracer
	if c.joined, err = firstProcesses(hosts); err == nil {
		err = c.create(&t)
	}
	c.mu.Unlock()
	if err != nil {
		c.remove(context.Background())
		s.discard(r.Process)
		s.mu.Lock()
		delete(s.containers, r.Id)
		s.mu.Unlock()
		return nil, fmt.Errorf("create container: %w", err)
	}
	return &api.CreateContainerResponse{Spans: t.spans}, nil
}

// hosts are the containers whose namespaces of these kinds a request joins; s.mu is held.
func (s *service) hosts(r *api.CreateContainerRequest) (map[int]*container, error) {
	hosts := make(map[int]*container)
	for kind, id := range map[int]string{unix.CLONE_NEWPID: r.JoinPid, unix.CLONE_NEWIPC: r.JoinIpc, unix.CLONE_NEWUTS: r.JoinUts} {
		if id == "" {
			continue
		}
		if hosts[kind] = s.containers[id]; hosts[kind] == nil {
			return nil, fail(codes.NotFound, fmt.Errorf("join the namespaces of container %s: there is none", id))
		}
	}
	return hosts, nil
}

func firstProcesses(hosts map[int]*container) (map[int]*process, error) {
	joined := make(map[int]*process)
	for kind, host := range hosts {
		host.mu.Lock()
		first := host.first
		host.mu.Unlock()
		if first == nil {
			return nil, fail(codes.FailedPrecondition, fmt.Errorf("join the namespaces of container %s: its process does not run yet", host.id))
		}
		joined[kind] = first
	}
	return joined, nil
}

func (c *container) create(t *tracer) error {
	r := c.request
	err := numberDisks(r.Devices)
	if err != nil {
		return err
	}
	if c.cgroup, err = newCgroup(c.id); err != nil {
		return err
	}
	if err := c.limit(r.Resources); err != nil {
		return err
	}
	if err := c.checkUsers(); err != nil {
		return err
	}
	if err := c.delegate(); err != nil {
		return err
	}
	t.mark("cgroup")
	if err := unix.Mkdir(c.dir, 0o700); err != nil {
		return fmt.Errorf("make directory %s: %w", c.dir, err)
	}
	if r.SharePid {
		// Made on an ordinary thread: it shall be the agent's child in the agent's
		// namespaces, not in this container's.
		if c.pids, err = sandboxReaper(); err != nil {
			return err
		}
	}
	if p := c.joined[unix.CLONE_NEWPID]; p != nil {
		c.pids = p
	}
	if err := c.makeVolumes(); err != nil {
		return err
	}
	if err := c.makeProjections(); err != nil {
		return err
	}
	c.thread = newThread()
	return c.thread.do(func() error { return c.build(t) })
}

// limit puts resources and device rules in force.
func (c *container) limit(r *api.Resources) error {
	if err := c.cgroup.apply(r, false); err != nil {
		return err
	}
	return c.cgroup.filterDevices(c.deviceRules(r.GetDeviceRules()))
}

// deviceRules completes the given rules.
func (c *container) deviceRules(rules []*api.DeviceRule) []*api.DeviceRule {
	switch {
	case len(rules) > 0:
	case c.request.Privileged:
		rules = []*api.DeviceRule{{Allow: true, Type: "a", Major: -1, Minor: -1, Access: "rwm"}}
	default:
		rules = defaultDeviceRules()
	}
	for _, d := range c.request.Devices {
		if d.Access != "" && d.Type != "p" {
			rules = append(rules, &api.DeviceRule{Allow: true, Type: d.Type, Major: d.Major, Minor: d.Minor, Access: d.Access})
		}
	}
	// The way to the host is the agent's alone, whatever the rules say.
	if major := portMajor(); major > 0 {
		rules = append(rules, &api.DeviceRule{Type: "c", Major: major, Minor: -1, Access: "rwm"})
	}
	return rules
}

// build makes the container's namespaces on its thread and fills them.
func (c *container) build(t *tracer) error {
	r := c.request
	flags := unix.CLONE_NEWNS
	for _, n := range []struct {
		shared bool
		flag   int
	}{{r.SharePid, unix.CLONE_NEWPID}, {r.ShareIpc, unix.CLONE_NEWIPC}, {r.ShareUts, unix.CLONE_NEWUTS}} {
		if !n.shared && c.joined[n.flag] == nil {
			flags |= n.flag
		}
	}
	c.ownUTS = flags&unix.CLONE_NEWUTS != 0
	if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	if err := makeTime(r.Time); err != nil {
		return err
	}
	if c.pids != nil {
		if err := join(c.pids, unix.CLONE_NEWPID); err != nil {
			return err
		}
	}
	for _, kind := range []int{unix.CLONE_NEWIPC, unix.CLONE_NEWUTS} {
		if p := c.joined[kind]; p != nil {
			if err := join(p, kind); err != nil {
				return err
			}
		}
	}
	if !r.ShareUts && c.joined[unix.CLONE_NEWUTS] == nil {
		if err := setNames(r.Hostname, r.Domainname); err != nil {
			return err
		}
	}
	mnt, err := unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open mount namespace: %w", err)
	}
	c.mnt = os.NewFile(uintptr(mnt), "mnt")
	if err := writeSysctls(procDir, "sys/", r.Sysctls); err != nil {
		return err
	}
	t.mark("namespaces")
	if err := c.buildRoot(r.Rootfs); err != nil {
		return err
	}
	t.mark("rootfs")

	mounts, err := c.detachAll()
	defer func() {
		for _, m := range mounts {
			if m.fd >= 0 {
				unix.Close(m.fd)
			}
		}
	}()
	if err != nil {
		return err
	}
	masks, err := c.newMasks()
	if err != nil {
		return err
	}
	defer masks.close()
	maskedPaths, err := c.procfs.takeMasked(mounts, r.MaskedPaths, masks)
	if err != nil {
		return err
	}
	if err := c.enterRoot(); err != nil {
		return err
	}
	if r.KeepMountOrder {
		c.procfs.follow(mounts)
	}
	for _, m := range mounts {
		if m.fd < 0 {
			if err := c.procfs.expect(m); err != nil {
				return fmt.Errorf("mount %s: %w", m.Destination, err)
			}
			continue
		}
		if err := c.place(m); err != nil {
			return fmt.Errorf("mount %s: %w", m.Destination, err)
		}
	}
	if err := c.makeDevices(); err != nil {
		return err
	}
	if err := masks.hide(maskedPaths); err != nil {
		return err
	}
	if err := protect(c.procfs.takeReadonly(r.ReadonlyPaths)); err != nil {
		return err
	}
	if err := c.finishRoot(); err != nil {
		return err
	}
	if r.FindCommand {
		if c.command, err = findCommand(r.Process); err != nil {
			return err
		}
	}
	t.mark("mounts")
	return nil
}

// finishRoot makes the root as read-only and as shared as asked, after the last
// mount point was made in it.
func (c *container) finishRoot() error {
	if c.request.Rootfs.Readonly {
		// The last chance to make the working directory; that it could not be made
		// is for entering it to say.
		if cwd := c.request.Process.Cwd; path.IsAbs(cwd) {
			makeDirs(path.Clean(cwd), 0o755)
		}
		if err := unix.MountSetattr(unix.AT_FDCWD, "/", 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
			return fmt.Errorf("make root read-only: %w", err)
		}
	}
	if p := c.request.RootPropagation; p != "" && p != "private" && p != "rprivate" {
		known, ok := propagations[p]
		if !ok {
			return fail(codes.InvalidArgument, fmt.Errorf("root propagation %q is not one", p))
		}
		var flags uint
		if known.recursive {
			flags = unix.AT_RECURSIVE
		}
		if err := unix.MountSetattr(unix.AT_FDCWD, "/", flags, &unix.MountAttr{Propagation: known.flag}); err != nil {
			return fmt.Errorf("make root %s: %w", p, err)
		}
	}
	return nil
}

// mountNamespace returns the container's, for visit.
func (c *container) mountNamespace() (*os.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.removed || c.mnt == nil {
		return nil, fail(codes.NotFound, errors.New("the container was removed"))
	}
	return c.mnt, nil
}

// visit runs f on a thread inside a container's mount namespace, whose root is the
// container's: paths mean there what they mean to the container, and nothing more.
// The container's /proc/self is nobody there.
func visit(mnt *os.File, f func() error) error {
	conn, err := mnt.SyscallConn()
	if err != nil {
		return err
	}
	t := newThread()
	defer t.end()
	return t.do(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("leave the agent's root: %w", err)
		}
		var err error
		if e := conn.Control(func(fd uintptr) { err = unix.Setns(int(fd), unix.CLONE_NEWNS) }); e != nil {
			err = e
		}
		if err != nil {
			return fmt.Errorf("enter the container's mount namespace: %w", err)
		}
		return f()
	})
}

// RemoveContainer ends what still runs and releases everything.
func (s *service) RemoveContainer(ctx context.Context, r *api.ContainerRef) (*api.Empty, error) {
	c, err := s.container(r.Id)
	if err != nil {
		return nil, err
	}
	if err := c.remove(ctx); err != nil {
		return nil, fmt.Errorf("remove container: %w", err)
	}
	if c.first == nil {
		s.discard(c.request.Process)
	}
	s.mu.Lock()
	if s.containers[r.Id] == c {
		delete(s.containers, r.Id)
	}
	s.mu.Unlock()
	return &api.Empty{}, nil
}

func (c *container) remove(ctx context.Context) error {
	c.endOnce.Do(func() { close(c.ending) })
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.removed {
		return nil
	}
	c.removed = true
	var errs []error
	note := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	if c.cgroup != nil {
		note(c.cgroup.kill())
		if c.paused {
			note(c.cgroup.write("cgroup.freeze", "0"))
		}
	}
	for _, p := range c.processes() {
		p.abandon()
		<-p.exited
	}
	note(c.syncDisks())
	if c.cgroup != nil {
		note(c.cgroup.await("populated 0", freezeTimeout))
	}
	c.procfs.close()
	if c.thread != nil {
		c.thread.end()
		c.thread = nil
	}
	for _, d := range c.disks {
		unix.Close(d.fd)
	}
	if c.mnt != nil {
		// With the last reference to the namespace its mounts go, and then the
		// devices under them are free.
		c.mnt.Close()
	}
	for _, d := range c.disks {
		note(awaitRelease(d.path))
	}
	c.disks = nil
	note(c.releaseVolumes())
	if c.verity != nil {
		note(c.verity.Remove())
	}
	if c.unseal != nil {
		note(c.unseal())
	}
	if c.cgroup != nil {
		note(c.cgroup.remove())
	}
	for _, dir := range []string{"/parts", "/lower", "/upper", "/root", "/source", ""} {
		if err := unix.Rmdir(c.dir + dir); err != nil && err != unix.ENOENT {
			note(fmt.Errorf("remove directory %s: %w", c.dir+dir, err))
		}
	}
	return errors.Join(errs...)
}

// processes are those that were started; c.mu is held.
func (c *container) processes() []*process {
	var all []*process
	if c.first != nil {
		all = append(all, c.first)
	}
	if c.reaper != nil {
		all = append(all, c.reaper)
	}
	for _, p := range c.execs {
		if p != nil {
			all = append(all, p)
		}
	}
	return all
}

// tracer collects the spans of a request.
type tracer struct {
	spans []*api.Span
	last  int64
}

// start begins the first span.
func (t *tracer) start() { t.last = monotonic() }

// mark ends a span that began where the one before ended.
func (t *tracer) mark(name string) {
	now := monotonic()
	if t.last == 0 {
		t.last = now
	}
	t.spans = append(t.spans, &api.Span{Name: name, StartNs: t.last, EndNs: now})
	t.last = now
}
