package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	api "manis/api/agent"
	"manis/launch"
)

// defaultPath is searched when the process's environment has no PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// process is a process that the host started, from its launch until the host has
// asked for its end.
type process struct {
	pid   int
	pidfd *os.File
	io    *stdio
	// launched is when it was.
	launched time.Time

	// exited is closed when the process was reaped, done when its output has been
	// handed over as well.
	exited, done chan struct{}
	status       unix.WaitStatus
	exitedUnixNS int64
	oomKilled    bool

	abandonOnce sync.Once
	abandoned   chan struct{}
}

// start is a process that is about to be launched.
type start struct {
	*api.Process
	// first is set for the container's first process.
	first bool
	// path is executed; empty: what the first argument names.
	path string
	// of is the pidfd of a process in the container's namespaces; not of the first.
	of int
	io *stdio
}

// program prepares what the child does between clone and execve. It runs on a
// thread inside the container, which it leaves in the process's working directory.
func (c *container) program(ctx context.Context, p start) (*launch.Program, []string, error) {
	id, err := identify(p.Process)
	if err != nil {
		return nil, nil, err
	}
	caps, err := parseCapabilities(p.Capabilities)
	if err != nil {
		return nil, nil, err
	}
	if err := c.enterDir(p.Cwd); err != nil {
		return nil, nil, err
	}
	owner, err := c.machineUID(id.uid)
	if err != nil {
		return nil, nil, err
	}
	if err := p.io.own(owner); err != nil {
		return nil, nil, err
	}
	env := environment(p.Env, id.home)

	b := new(launch.Program)
	if p.first {
		// Its root is the cgroup that the child was cloned into.
		b.Call("make cgroup namespace", unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
		c.procfs.mount(b)
	} else {
		c.enterTime(b, p.of)
	}
	b.Try(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0)
	b.WriteFileAt(procDir, "self/oom_score_adj", strconv.Itoa(int(p.OomScoreAdj)))
	for _, l := range p.Rlimits {
		resource, ok := rlimits[strings.TrimPrefix(l.Type, "RLIMIT_")]
		if !ok {
			b.Release()
			return nil, nil, fail(codes.InvalidArgument, fmt.Errorf("unknown resource limit %q", l.Type))
		}
		b.Rlimit(l.Type, resource, l.Soft, l.Hard)
	}
	if !hasRlimit(p.Rlimits, "NOFILE") {
		// Not the agent's own limit; docker's.
		b.Rlimit("RLIMIT_NOFILE", unix.RLIMIT_NOFILE, 1024, 524288)
	}
	if !hasRlimit(p.Rlimits, "NPROC") {
		// The cgroup limits processes, not the machine's default per user.
		b.Rlimit("RLIMIT_NPROC", unix.RLIMIT_NPROC, unix.RLIM_INFINITY, unix.RLIM_INFINITY)
	}
	schedule(b, p.Process)
	c.enterUsers(b, p.first, p.of)
	if p.first && len(c.request.StartHooks) > 0 {
		b.Meet("run hooks", func(pid int) error { return c.runHooks(ctx, pid) })
	}
	b.Setsid()
	b.Files(p.io.child[:])
	if p.Terminal {
		b.ControllingTerminal(0)
	}
	b.CloseOthers(3)
	umask := uint32(0o22)
	if p.Umask != nil {
		umask = *p.Umask & 0o777
	}
	b.Umask(umask)

	if p.NoNewPrivileges {
		b.NoNewPrivileges()
	}
	b.BoundCapabilities(caps.bounding, lastCapability)
	b.KeepCapabilities()
	b.Groups(id.groups)
	b.User(id.uid, id.gid)
	// A filter that does not come with no_new_privs needs a capability that the
	// process may not keep, so it is installed before the last system calls
	// instead of after them, and has to allow these.
	if len(p.Seccomp) > 0 && !p.NoNewPrivileges {
		all := uint64(1)<<(lastCapability+1) - 1
		b.Capabilities(all, all, caps.inheritable, 0)
		b.Seccomp(p.Seccomp, p.SeccompFlags)
	}
	b.Capabilities(caps.effective, caps.permitted, caps.inheritable, caps.ambient)
	if len(p.Seccomp) > 0 && p.NoNewPrivileges {
		b.Seccomp(p.Seccomp, p.SeccompFlags)
	}
	candidates := []string{p.path}
	if p.path == "" {
		candidates = lookPath(p.Args[0], env)
		if p.first && c.command != "" {
			// Where it was when the container was made; should it be there no more, it is looked for again.
			candidates = append([]string{c.command}, candidates...)
		}
	}
	if len(candidates) == 0 {
		b.Release()
		return nil, nil, notFound(p.Args[0])
	}
	b.Exec(candidates, p.Args, env)
	return b, candidates, nil
}

func hasRlimit(limits []*api.Rlimit, name string) bool {
	for _, l := range limits {
		if strings.TrimPrefix(l.Type, "RLIMIT_") == name {
			return true
		}
	}
	return false
}

// environment adds HOME where it is missing, as docker does.
func environment(env []string, home string) []string {
	if hasHome(env) {
		return env
	}
	return append(env[:len(env):len(env)], "HOME="+home)
}

func hasHome(env []string) bool {
	return slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "HOME=") })
}

// lookPath lists the paths that execvp(3) would try.
func lookPath(file string, env []string) []string {
	if strings.Contains(file, "/") {
		return []string{file}
	}
	if file == "" {
		return nil
	}
	dirs := defaultPath
	for _, e := range env {
		// The last one counts, as for a shell that imports them.
		if p, ok := strings.CutPrefix(e, "PATH="); ok {
			dirs = p
		}
	}
	var list []string
	for dir := range strings.SplitSeq(dirs, ":") {
		if dir == "" {
			dir = "."
		}
		if len(list) < 256 {
			list = append(list, path.Join(dir, file))
		}
	}
	for i, p := range list {
		if !strings.Contains(p, "/") {
			list[i] = "./" + p
		}
	}
	return list
}

// enterDir makes cwd the thread's working directory, which its child inherits.
// It happens on the thread and not in the child because here no descriptor of the
// agent can be reached by a path of the container.
func (c *container) enterDir(cwd string) error {
	if cwd == "" {
		cwd = "/"
	}
	if !path.IsAbs(cwd) {
		return fail(codes.InvalidArgument, fmt.Errorf("working directory %q is not an absolute path", cwd))
	}
	err := unix.Chdir(cwd)
	if err == unix.ENOENT {
		if err = makeDirs(path.Clean(cwd), 0o755); err == nil {
			err = unix.Chdir(cwd)
		}
		if err == nil {
			err = c.giveRoot(unix.AT_FDCWD, ".")
		}
	}
	if err == unix.ENOTDIR {
		return fail(codes.PermissionDenied, fmt.Errorf("working directory %s: not a directory", cwd))
	}
	if err != nil {
		return fmt.Errorf("enter working directory %s: %w", cwd, err)
	}
	return nil
}

// findCommand looks for a process's command on the thread inside the container. It returns where it is, or nothing
// if that is not to be said without the working directory.
func findCommand(p *api.Process) (string, error) {
	name := p.Args[0]
	refused := notFound(name)
	for _, candidate := range lookPath(name, p.Env) {
		found := candidate
		if !path.IsAbs(candidate) {
			found, candidate = "", path.Join("/", p.Cwd, candidate)
		}
		var st unix.Stat_t
		if unix.Stat(candidate, &st) != nil {
			continue
		}
		isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		if !isDir && st.Mode&0o111 != 0 {
			return found, nil
		}
		if isDir && strings.Contains(name, "/") {
			refused = fail(codes.PermissionDenied, fmt.Errorf("exec: %q: is a directory", name))
		} else if !isDir {
			refused = fail(codes.PermissionDenied, fmt.Errorf("exec: %q: permission denied", name))
		}
	}
	return "", refused
}

func notFound(name string) error {
	if strings.Contains(name, "/") {
		return fail(codes.NotFound, fmt.Errorf("exec: %q: no such file or directory", name))
	}
	return fail(codes.NotFound, fmt.Errorf("exec: %q: executable file not found in $PATH", name))
}

// explainStart turns a failed start into docker's words and the codes by which the host
// tells 127 (NotFound) from 126 (PermissionDenied). It runs on the thread inside
// the container.
func explainStart(name string, candidates []string, err error) error {
	if errors.Is(err, unix.EAGAIN) {
		return fail(codes.ResourceExhausted, fmt.Errorf("start %q: the limit of processes is reached", name))
	}
	var step *launch.StepError
	if !errors.As(err, &step) || !step.Exec {
		return fmt.Errorf("start %q: %w", name, err)
	}
	exists, isDir := false, false
	for _, p := range candidates {
		var st unix.Stat_t
		if unix.Stat(p, &st) == nil {
			exists = true
			if isDir = st.Mode&unix.S_IFMT == unix.S_IFDIR; isDir {
				continue
			}
			break
		}
	}
	switch step.Err {
	case unix.ENOENT, unix.ENOTDIR:
		if exists {
			return fail(codes.PermissionDenied, fmt.Errorf("exec: %q: bad interpreter: no such file or directory", name))
		}
		return notFound(name)
	case unix.EACCES:
		if isDir {
			if !strings.Contains(name, "/") {
				return notFound(name)
			}
			return fail(codes.PermissionDenied, fmt.Errorf("exec: %q: is a directory", name))
		}
	}
	return fail(codes.PermissionDenied, fmt.Errorf("exec: %q: %w", name, error(step.Err)))
}

// spawn forks the program from the calling thread and takes care of the child.
func (c *container) spawn(ctx context.Context, p start) (*process, error) {
	program, candidates, err := c.program(ctx, p)
	if err != nil {
		return nil, err
	}
	defer program.Release()
	child, err := launch.Fork(program, launch.Attr{UseCgroup: true, CgroupFD: c.cgroup.fd}, true)
	if errors.Is(err, unix.EBUSY) && !p.first && c.first != nil {
		// The container has made cgroups of its own below its cgroup, which then
		// holds no processes itself: join the first process where it is.
		var fd int
		if fd, err = c.cgroupOf(c.first.pid); err == nil {
			child, err = launch.Fork(program, launch.Attr{UseCgroup: true, CgroupFD: fd}, true)
			unix.Close(fd)
		}
	}
	if err != nil {
		name := p.path
		if name == "" {
			name = p.Args[0]
		}
		return nil, explainStart(name, candidates, err)
	}
	return newProcess(child, p.io), nil
}

// cgroupOf opens the cgroup in which a process of the container is. It runs on a
// thread in the container's cgroup namespace, to which the name is relative.
func (c *container) cgroupOf(pid int) (int, error) {
	b, err := readFileAt(procDir, strconv.Itoa(pid)+"/cgroup", 8192)
	if err != nil {
		return -1, err
	}
	_, name, ok := strings.Cut(trim(b), "0::/")
	if !ok || strings.HasPrefix(name, "..") {
		return -1, errors.New("find the container's cgroup: its first process is elsewhere")
	}
	return unix.Openat(c.cgroup.fd, "./"+name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// StartContainer executes the first process.
func (s *service) StartContainer(ctx context.Context, r *api.StartContainerRequest) (*api.StartResponse, error) {
	c, err := s.container(r.Id)
	if err != nil {
		return nil, err
	}
	var t tracer
	t.start()
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.removed:
		return nil, fail(codes.NotFound, errors.New("the container was removed"))
	case c.first != nil || c.thread == nil:
		return nil, fail(codes.FailedPrecondition, errors.New("the container was started before"))
	}
	p := c.request.Process
	if r.Rows != 0 && r.Columns != 0 {
		p.Rows, p.Columns = r.Rows, r.Columns
	}
	streams, err := s.claim(ctx, p)
	if err != nil {
		return nil, err
	}
	var std *stdio
	err = c.thread.do(func() error {
		var err error
		if c.request.Init && c.pids == nil {
			if c.reaper, err = c.spawnReaper(); err != nil {
				return err
			}
		}
		if std, err = newStdio(p, true); err != nil {
			return err
		}
		t.mark("streams")
		c.first, err = c.spawn(ctx, start{Process: p, first: true, io: std})
		return err
	})
	if std != nil {
		std.closeChild()
	}
	if err != nil {
		std.close()
		streams.close()
		return nil, err
	}
	t.mark("launch")
	c.procfs.close()
	// From here on the first process keeps the namespaces.
	c.thread.end()
	c.thread = nil
	std.run(streams)
	first := c.first
	guard("wait for "+c.id, func() { c.watch(first, true) })
	return &api.StartResponse{Pid: uint32(first.pid), Spans: t.spans}, nil
}

// Exec runs a further process.
func (s *service) Exec(ctx context.Context, r *api.ExecRequest) (*api.StartResponse, error) {
	c, err := s.container(r.Id)
	if err != nil {
		return nil, err
	}
	if r.ExecId == "" || len(r.ExecId) > 128 || r.Process == nil || len(r.Process.Args) == 0 {
		return nil, fail(codes.InvalidArgument, errors.New("exec without an id or a command"))
	}
	c.running.RLock()
	defer c.running.RUnlock()
	first, err := c.reserve(r.ExecId)
	if err != nil {
		s.discard(r.Process)
		return nil, err
	}
	var t tracer
	t.start()
	p, err := s.exec(ctx, c, first, r.Process, &t)
	if err != nil {
		s.discard(r.Process)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		delete(c.execs, r.ExecId)
		return nil, err
	}
	c.execs[r.ExecId] = p
	guard("wait for "+c.id, func() { c.watch(p, false) })
	return &api.StartResponse{Pid: uint32(p.pid), Spans: t.spans}, nil
}

// reserve takes the id for an exec and returns the container's first process.
func (c *container) reserve(id string) (*process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, taken := c.execs[id]
	switch {
	case c.removed || c.first == nil || c.first.hasExited():
		return nil, fail(codes.FailedPrecondition, errors.New("the container is not running"))
	case c.paused:
		return nil, fail(codes.FailedPrecondition, errors.New("the container is paused: unpause it before exec"))
	case taken:
		return nil, fail(codes.AlreadyExists, fmt.Errorf("exec %s exists", id))
	case len(c.execs) >= maxExecs:
		return nil, fail(codes.ResourceExhausted, fmt.Errorf("more than %d processes were started in the container and not waited for", maxExecs))
	}
	c.execs[id] = nil
	return c.first, nil
}

func (s *service) exec(ctx context.Context, c *container, first *process, p *api.Process, t *tracer) (*process, error) {
	streams, err := s.claim(ctx, p)
	if err != nil {
		return nil, err
	}
	var std *stdio
	var started *process
	thread := newThread()
	defer thread.end()
	err = thread.do(func() error {
		err := first.withFD(func(fd int) error {
			if err := joinContainer(fd); err != nil {
				return err
			}
			var err error
			if std, err = newStdio(p, false); err != nil {
				return err
			}
			t.mark("streams")
			started, err = c.spawn(ctx, start{Process: p, of: fd, io: std})
			return err
		})
		if errors.Is(err, os.ErrClosed) {
			return errNotRunning
		}
		return err
	})
	if std != nil {
		std.closeChild()
	}
	if err != nil {
		std.close()
		streams.close()
		return nil, err
	}
	t.mark("launch")
	std.run(streams)
	return started, nil
}

var errNotRunning = fail(codes.FailedPrecondition, errors.New("the container is not running"))

// joinContainer moves the calling thread into the namespaces of a process, by its pidfd,
// that a thread can be in.
func joinContainer(pidfd int) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("leave the agent's root: %w", err)
	}
	err := unix.Setns(pidfd, unix.CLONE_NEWNS|unix.CLONE_NEWUTS|unix.CLONE_NEWIPC|unix.CLONE_NEWPID|unix.CLONE_NEWCGROUP)
	if err == unix.ESRCH {
		return errNotRunning
	}
	if err != nil {
		return fmt.Errorf("join the container's namespaces: %w", err)
	}
	return nil
}

// watch waits for the end of a process and then of its output.
func (c *container) watch(p *process, first bool) {
	defer close(p.done)
	p.reap()
	if events, err := c.cgroup.stat("memory.events"); err == nil {
		p.oomKilled = events["oom_kill"] > 0
	}
	if first {
		// Without its first process a container is over. Its PID namespace kills
		// what is left, but not where that is shared.
		if err := c.cgroup.kill(); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
			complain("kill the rest of container %s: %v", c.id, err)
		}
	}
	p.io.finish(p.abandoned)
	p.pidfd.Close()
}

// reap waits until the process has ended.
func (p *process) reap() {
	defer close(p.exited)
	wait := func(options int) bool {
		for {
			pid, err := unix.Wait4(p.pid, &p.status, options, nil)
			if err == unix.EINTR {
				continue
			}
			return pid == p.pid || err != nil
		}
	}
	conn, err := p.pidfd.SyscallConn()
	if err == nil {
		err = conn.Read(func(uintptr) bool { return wait(unix.WNOHANG) })
	}
	if err != nil {
		// A pidfd that cannot be polled: wait on a thread.
		wait(0)
	}
	p.exitedUnixNS = time.Now().UnixNano()
}

func (p *process) hasExited() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// abandon lets go of the output that nobody will fetch any more.
func (p *process) abandon() {
	if p != nil {
		p.abandonOnce.Do(func() { close(p.abandoned) })
	}
}

// withFD calls f with the pidfd on the same thread; os.ErrClosed when the process is
// over.
func (p *process) withFD(f func(fd int) error) error {
	conn, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	if e := conn.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil {
		return e
	}
	return err
}

// signal sends a signal to the process.
func (p *process) signal(sig syscall.Signal) error {
	err := p.withFD(func(fd int) error { return unix.PidfdSendSignal(fd, sig, nil, 0) })
	if errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrClosed) {
		return fail(codes.NotFound, errors.New("the process has ended"))
	}
	return err
}

// process returns the first process or an exec by id.
func (c *container) process(exec string) (*process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if exec == "" {
		if c.first == nil {
			return nil, fail(codes.FailedPrecondition, errors.New("the container is not started"))
		}
		return c.first, nil
	}
	p := c.execs[exec]
	if p == nil {
		return nil, fail(codes.NotFound, fmt.Errorf("no such exec: %s", exec))
	}
	return p, nil
}

// Wait waits for a process and its output.
func (s *service) Wait(ctx context.Context, r *api.WaitRequest) (*api.WaitResponse, error) {
	c, err := s.container(r.Id)
	if err != nil {
		return nil, err
	}
	p, err := c.process(r.ExecId)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	reply := &api.WaitResponse{ExitedUnixNs: p.exitedUnixNS, OomKilled: p.oomKilled}
	if p.status.Signaled() {
		reply.Signal = uint32(p.status.Signal())
		reply.ExitCode = 128 + reply.Signal
	} else {
		reply.ExitCode = uint32(p.status.ExitStatus()) & 0xff
	}
	if r.ExecId != "" {
		c.mu.Lock()
		delete(c.execs, r.ExecId)
		c.mu.Unlock()
		return reply, nil
	}
	if !c.request.Ephemeral && c.sync() == nil {
		reply.Synced = true
	}
	return reply, nil
}

// sync writes the container's disks back.
func (c *container) sync() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.syncDisks()
}

// syncDisks is sync with c.mu held.
func (c *container) syncDisks() error {
	for _, d := range c.disks {
		if _, _, errno := unix.Syscall(unix.SYS_SYNCFS, uintptr(d.fd), 0, 0); errno != 0 {
			return fmt.Errorf("sync disk %s: %w", d.path, errno)
		}
	}
	return nil
}
