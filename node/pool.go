package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Pool keeps manisd on the node, of the release that new pods get. Where the node's root is not this process' own, as in a container, manisd is started in
// the node's namespaces, where shims find it, and stays in the container's control group, to which what waits is charged.
type Pool struct {
	Host
	// Args are manisd's.
	Args []string
	// Every is how long it is between two looks at which release that is, and before manisd is started again.
	Every time.Duration
}

// endTime is how long manisd may take to end.
const endTime = 30 * time.Second

// Run returns when ctx has ended, and manisd with it. Pods that have their machines from it go on.
func (p *Pool) Run(ctx context.Context) error {
	root, err := p.open()
	if err != nil {
		return err
	}
	defer root.Close()
	waiting := false
	for ctx.Err() == nil {
		name := p.inUse(root)
		if name == "" {
			if !waiting {
				p.Log("there is no Manis in %s yet", p.Prefix)
			}
			waiting = true
		} else {
			waiting = false
			if err := p.serve(ctx, root, name); err != nil {
				p.Log("%v", err)
			}
		}
		p.pause(ctx)
	}
	return nil
}

func (p *Pool) pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(p.Every):
	}
}

// serve runs manisd of a release until another one is in use, ctx ends, or it ends by itself, which is an error.
func (p *Pool) serve(ctx context.Context, root *os.Root, name string) error {
	program := path.Join("/", p.versions(), name, "bin", "manisd")
	cmd := exec.Command(program, p.Args...)
	cmd.Dir = "/"
	// PATH is the node's: machines are started from it.
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	ended, err := p.there(cmd)
	if err != nil {
		return fmt.Errorf("start %s on the node: %w", program, err)
	}
	p.Log("manisd of %s runs", name)
	for {
		select {
		case <-ended:
			return fmt.Errorf("manisd of %s has ended (%s), and is started again", name, cmd.ProcessState)
		case <-ctx.Done():
		case <-time.After(p.Every):
			if p.inUse(root) == name {
				continue
			}
		}
		cmd.Process.Signal(unix.SIGTERM)
		select {
		case <-ended:
		case <-time.After(endTime):
			cmd.Process.Kill()
			<-ended
		}
		return nil
	}
}

// there starts a command on the node: from a container in the namespaces of the node's first process, all but those of processes and users, which a container that may do so shares.
// The channel gets the command's end. When this process dies, the command is told to end.
func (p *Pool) there(cmd *exec.Cmd) (ended <-chan error, err error) {
	started, end := make(chan error), make(chan error, 1)
	go func() {
		// Namespaces are a thread's. This one is never used for anything else, and ends with the command, which is bound to it.
		runtime.LockOSThread()
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM}
		var err error
		if p.Root != "/" {
			err = enter(p.inside("/proc/1/ns"))
		}
		if err == nil {
			err = cmd.Start()
		}
		started <- err
		if err == nil {
			end <- cmd.Wait()
		}
	}()
	return end, <-started
}

// enter brings the thread into namespaces, that of mounts last.
func enter(dir string) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("have a working directory of its own: %w", err)
	}
	var list []*os.File
	defer func() {
		for _, f := range list {
			f.Close()
		}
	}()
	for _, name := range []string{"cgroup", "ipc", "uts", "net", "mnt"} {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return fmt.Errorf("find the node's namespaces: %w (does the pod have hostPID?)", err)
		}
		list = append(list, f)
	}
	for _, f := range list {
		if err := unix.Setns(int(f.Fd()), 0); err != nil {
			return fmt.Errorf("enter the node's namespace %s: %w (is the container privileged?)", strings.TrimPrefix(f.Name(), dir+"/"), err)
		}
	}
	return nil
}
