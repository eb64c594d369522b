package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"manis/bundle"
	"manis/cli/terminal"
	"manis/container/spec"
	"manis/pod"
)

// execInEngine is exec in a container of an engine's. The process has this one's own streams.
func (a *app) execInEngine(ctx context.Context, e *engineContainer, args, env []string, f execFlags) error {
	if err := e.inside(); err != nil {
		return err
	}
	switch {
	case f.privileged:
		return errors.New("--privileged: a process in a container of an engine's has no more rights than the container")
	case e.state() == "paused":
		return fmt.Errorf("container %s is paused: its engine can resume it", e.id())
	case e.state() != "running":
		return fmt.Errorf("container %s is not running", e.id())
	}
	sig, ctx := catch(ctx)
	defer sig.stop()
	request := &pod.ExecRequest{ID: e.c.ID, ExecID: "operator-" + rand.Text(), User: f.user}
	var err error
	if request.Process, err = a.engineProcess(ctx, e); err != nil {
		return err
	}
	p := request.Process
	p.Args, p.Terminal, p.ConsoleSize = args, f.tty, nil
	p.Env = append(p.Env, env...)
	if f.workdir != "" {
		p.Cwd = f.workdir
	}
	policy, err := a.operator()
	if err == nil && policy != nil {
		asked := bundle.RequestExec(p)
		if f.user != "" {
			asked.Process.User = spec.RequestUser(f.user)
		}
		err = policy.Check(asked)
	}
	if err != nil {
		return fail(exitFailed, err)
	}
	if f.tty {
		request.Rows, request.Columns = a.terminalSize()
	}
	files, err := a.engineStreams(f)
	if err != nil {
		return err
	}
	defer func() {
		for _, file := range files {
			if file != a.in && file != a.out && file != a.err {
				file.Close()
			}
		}
	}()
	if f.detach {
		return a.execDetached(ctx, e, request, files)
	}
	if f.tty && f.in {
		restore, err := terminal.Raw(a.in)
		if err != nil {
			return err
		}
		defer restore()
	}
	session, err := e.pod.Attend(ctx, request, files...)
	if err != nil {
		return asInterrupted(ctx, notExecuted(e, err))
	}
	defer session.Close()
	sig.to(func(n unix.Signal) { session.Signal(n) })
	if len(files) == 1 {
		resizing, stop := context.WithCancel(context.WithoutCancel(ctx))
		done := make(chan struct{})
		go func() {
			defer close(done)
			terminal.Resizes(resizing, files[0], func(uint32, uint32) { session.Signal(unix.SIGWINCH) })
		}()
		defer func() { stop(); <-done }()
	}
	code, err := session.Wait()
	switch {
	case errors.Is(err, pod.ErrGone):
		// The machine ended, and the process with it.
		return &status{exitSignal + int(unix.SIGKILL), nil}
	case err != nil:
		return err
	case code != 0:
		return &status{code, nil}
	}
	return nil
}

// engineStreams are standard input, output and error of a process in a container of an engine's, or a terminal.
func (a *app) engineStreams(f execFlags) ([]*os.File, error) {
	if f.tty && f.in && !f.detach && terminal.Is(a.in) && terminal.Is(a.out) {
		// Another description than the shell's, whose mode stays.
		tty, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			return nil, fmt.Errorf("open the terminal: %w (leave -t out)", err)
		}
		return []*os.File{tty}, nil
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	switch {
	case f.detach:
		return []*os.File{null, null, null}, nil
	case f.in:
		return []*os.File{a.in, a.out, a.err}, nil
	}
	return []*os.File{null, a.out, a.err}, nil
}

// execDetached leaves a process to itself: a proxy on the host stands for it.
func (a *app) execDetached(ctx context.Context, e *engineContainer, r *pod.ExecRequest, files []*os.File) error {
	proxy, err := pod.StartProxy(pod.ProxyConfig{Args: r.Process.Args})
	if err != nil {
		return err
	}
	defer proxy.Socket.Close()
	r.ProxyPID = proxy.Process.Pid
	if err := e.pod.Exec(ctx, r, append([]*os.File{proxy.Socket}, files...)...); err != nil {
		proxy.Process.Kill()
		proxy.Process.Wait()
		return notExecuted(e, err)
	}
	return proxy.Process.Release()
}

// notExecuted is why a command was not executed, with docker's exit code for it.
func notExecuted(e *engineContainer, err error) error {
	return fail(pod.ExitCode(err), engineFailed("run a command in", e, err))
}

// engineFailed is an error of a pod's.
func engineFailed(what string, e *engineContainer, err error) error {
	switch {
	case errors.Is(err, pod.ErrGone), errors.Is(err, pod.ErrNotFound):
		err = errors.New("it has ended")
	case errors.Is(err, context.DeadlineExceeded):
		err = pod.ErrSilent
	}
	return fmt.Errorf("cannot %s container %s: %w", what, e.id(), err)
}
