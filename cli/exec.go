package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	monitorapi "manis/api/monitor"
	"manis/cli/declare"
	"manis/cli/terminal"
	"manis/container"
	"manis/container/spec"
	"manis/monitor"
)

type execFlags struct {
	detach, in, tty, privileged bool
	user, workdir, detachKeys   string
	env, envFiles               []string
}

func (a *app) execCommand() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use:               "exec [OPTIONS] CONTAINER COMMAND [ARG...]",
		Short:             "Execute a command in a running container",
		Args:              needs(2, -1),
		ValidArgsFunction: a.containerNames(isRunning),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.exec(cmd.Context(), args[0], args[1:], f)
		},
	}
	fs := cmd.Flags()
	fs.SetInterspersed(false)
	fs.BoolVarP(&f.detach, "detach", "d", false, "Detached mode: run command in the background")
	fs.StringVar(&f.detachKeys, "detach-keys", terminal.DefaultDetachKeys, "Override the key sequence for detaching a container")
	fs.VarP((*declare.List)(&f.env), "env", "e", "Set environment variables")
	fs.Var((*declare.List)(&f.envFiles), "env-file", "Read in a file of environment variables")
	fs.BoolVarP(&f.in, "interactive", "i", false, "Keep STDIN open even if not attached")
	fs.BoolVar(&f.privileged, "privileged", false, "Give extended privileges to the command")
	fs.BoolVarP(&f.tty, "tty", "t", false, "Allocate a pseudo-TTY")
	fs.StringVarP(&f.user, "user", "u", "", "Username or UID (format: <name|uid>[:<group|gid>])")
	fs.StringVarP(&f.workdir, "workdir", "w", "", "Working directory inside the container")
	return cmd
}

func (a *app) exec(ctx context.Context, name string, args []string, f execFlags) error {
	keys, err := terminal.ParseKeys(f.detachKeys)
	if err != nil {
		return err
	}
	env, err := declare.ExecEnv(f.envFiles, f.env, os.LookupEnv)
	if err != nil {
		return err
	}
	if f.workdir != "" && !path.IsAbs(f.workdir) {
		return fmt.Errorf("the working directory %q is invalid, it needs to be an absolute path", f.workdir)
	}
	if !f.detach && f.tty && f.in && !terminal.Is(a.in) {
		return errors.New("cannot attach stdin to a TTY-enabled container because stdin is not a terminal (leave -t out)")
	}
	client, err := a.connectRunning(ctx, name)
	if e, err := a.orEngines(ctx, name, err); err != nil {
		return err
	} else if e != nil {
		return a.execInEngine(ctx, e, args, env, f)
	}
	defer client.Close()
	if err := a.permitExec(name, &f); err != nil {
		return fail(exitFailed, err)
	}
	req := &monitorapi.ExecRequest{
		Args: args, Env: env, Dir: f.workdir, User: f.user, Terminal: f.tty, Privileged: f.privileged,
	}
	if f.detach {
		if _, err := client.API().Exec(ctx, req); err != nil {
			return fail(execCode(err, exitError), err)
		}
		return nil
	}
	s, err := a.open(client, attachment{in: f.in, out: true, err: true, tty: f.tty, keys: keys})
	if err != nil {
		return err
	}
	req.Streams = s.tokens
	req.Rows, req.Columns = s.size()
	started, err := client.API().Exec(ctx, req)
	if err != nil {
		s.close()
		err = explained(client, err)
		return fail(execCode(err, exitError), err)
	}
	s.execID = started.ExecId
	// The process gets the signals that would otherwise only end its front end.
	sig, ctx := catch(ctx)
	defer sig.stop()
	endings := 0
	sig.to(func(n unix.Signal) {
		if isEnding(n) {
			if endings++; endings >= 3 {
				sig.to(nil) // the next one is meant for us
			}
		}
		callCtx, cancel := context.WithTimeout(context.Background(), cleanupTime)
		defer cancel()
		client.API().ExecSignal(callCtx, &monitorapi.ExecSignalRequest{ExecId: started.ExecId, Signal: uint32(n)})
	})
	err = s.run(ctx)
	switch {
	case errors.Is(err, terminal.ErrDetached):
		fmt.Fprintln(a.err, "read escape sequence")
		return nil
	case errors.Is(err, errReaderGone):
		return &status{exitSignal + int(unix.SIGPIPE), nil}
	case err != nil:
		return asInterrupted(ctx, err)
	}
	end, err := client.API().ExecWait(ctx, &monitorapi.ExecWaitRequest{ExecId: started.ExecId})
	if err != nil {
		if lost(client) {
			// The container ended, and the process with it.
			return &status{exitSignal + int(unix.SIGKILL), nil}
		}
		return err
	}
	if end.ExitCode != 0 {
		return &status{int(end.ExitCode), nil}
	}
	return nil
}

// connectRunning reaches a container in which a process can be started.
func (a *app) connectRunning(ctx context.Context, name string) (*monitor.Client, error) {
	c, err := a.container(name)
	if err != nil {
		return nil, err
	}
	st, err := c.State()
	if err != nil {
		return nil, err
	}
	if st.Status == container.Paused {
		return nil, fmt.Errorf("container %s is paused, unpause the container before exec", name)
	}
	if st.Status != container.Running {
		return nil, notRunning(c, fmt.Errorf("container %s is not running", name))
	}
	return a.connect(ctx, name)
}

// permitExec refuses a process with more rights than the operator's policy allows. Without flags that give it other
// rights than the container's it has what that was allowed.
func (a *app) permitExec(name string, f *execFlags) error {
	p, err := a.operator()
	if p == nil || err != nil || !f.privileged && f.user == "" {
		return err
	}
	c, err := a.container(name)
	if err != nil {
		return err
	}
	cfg, err := c.Config()
	if err != nil {
		return err
	}
	return p.Check(spec.RequestExec(cfg, f.user, f.privileged))
}
