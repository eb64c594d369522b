package agent

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"manis/launch"
)

// ReaperName is the name under which the agent's program is process 1 of a
// container that asks for an init, or of the sandbox's PID namespace.
const ReaperName = "manis-init"

// reaperChild is the process that signals are passed on to: the first one that the
// agent starts after the reaper.
const reaperChild = 2

// Reap is the life of such a process: it adopts and reaps orphans and passes
// signals on. The container's command is not its child, so that its end is the agent's
// to see; the agent ends the namespace then.
func Reap() {
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	for {
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if err == unix.EINTR {
				continue
			}
			if pid <= 0 {
				break
			}
		}
		switch s := <-signals; s {
		case unix.SIGCHLD, unix.SIGURG, unix.SIGPIPE:
			// SIGURG is how the Go runtime interrupts its own threads.
		default:
			unix.Kill(reaperChild, s.(syscall.Signal))
		}
	}
}

// agentFile is the agent's program, which no container's filesystem has.
var agentFile = sync.OnceValues(func() (int, error) {
	return unix.Open("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
})

// spawnReaper starts a reaper as process 1 of the container's PID namespace, as
// the container's user. It runs on the container's thread.
func (c *container) spawnReaper() (*process, error) {
	p := c.request.Process
	id, err := identify(p)
	if err != nil {
		return nil, err
	}
	b := new(launch.Program)
	defer b.Release()
	b.Call("make cgroup namespace", unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
	b.WriteFileAt(procDir, "self/oom_score_adj", strconv.Itoa(int(p.OomScoreAdj)))
	b.Setsid()
	b.Groups(nil)
	b.User(id.uid, id.gid)
	b.NoNewPrivileges()
	b.Capabilities(0, 0, 0, 0)
	return spawnReaper(b, launch.Attr{UseCgroup: true, CgroupFD: c.cgroup.fd})
}

// spawnReaper completes the program and starts it from the calling thread.
func spawnReaper(b *launch.Program, attr launch.Attr) (*process, error) {
	exe, err := agentFile()
	if err != nil {
		return nil, fmt.Errorf("open the agent's program: %w", err)
	}
	b.ExecFile(exe, []string{ReaperName}, []string{"GOMAXPROCS=1", "GOGC=off"})
	child, err := launch.Fork(b, attr, true)
	if err != nil {
		return nil, fmt.Errorf("start init: %w", err)
	}
	unix.SetNonblock(child.FD, true)
	r := &process{
		pid:       child.PID,
		pidfd:     os.NewFile(uintptr(child.FD), "pidfd"),
		exited:    make(chan struct{}),
		done:      make(chan struct{}),
		abandoned: make(chan struct{}),
	}
	guard("wait for init", func() {
		defer close(r.done)
		r.reap()
		r.pidfd.Close()
	})
	return r, nil
}

// sandboxReaper is process 1 of the PID namespace that containers share on
// request. It lives as long as the machine, in an empty root of its own: those
// containers see it, and through it they must not see the agent's.
var sandboxReaper = sync.OnceValues(func() (*process, error) {
	g, err := newCgroup(".sandbox")
	if err != nil {
		return nil, err
	}
	var p *process
	t := newThread()
	defer t.end()
	err = t.do(func() error {
		b := new(launch.Program)
		defer b.Release()
		b.Call("make cgroup namespace", unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
		b.Mount("tmpfs", runDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RDONLY, "mode=0755,size=4k,nr_inodes=2")
		b.PivotRoot(runDir)
		b.Setsid()
		b.Groups(nil)
		b.User(65534, 65534)
		b.NoNewPrivileges()
		b.BoundCapabilities(0, lastCapability)
		b.Capabilities(0, 0, 0, 0)
		var err error
		p, err = spawnReaper(b, launch.Attr{Namespaces: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS, UseCgroup: true, CgroupFD: g.fd})
		return err
	})
	return p, err
})

// joinSandboxPids makes the sandbox's PID namespace that of the calling thread's
// children.
func joinSandboxPids() error {
	p, err := sandboxReaper()
	if err == nil {
		err = p.withFD(func(fd int) error { return unix.Setns(fd, unix.CLONE_NEWPID) })
	}
	if err != nil {
		return fmt.Errorf("join the sandbox's PID namespace: %w", err)
	}
	return nil
}
