package oci

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"manis/pod"
)

func (a *app) startCommand() *cobra.Command {
	return &cobra.Command{
		Use: "start ID", Short: "Execute the process of a created container", Args: one,
		RunE: func(cmd *cobra.Command, args []string) error {
			st, client, err := a.load(args[0])
			if err != nil {
				return err
			}
			return a.start(cmd.Context(), st, client)
		},
	}
}

// start executes a container's process, and runs the hooks that come after it. When one of them
// fails the container is stopped (runtime specification, "Lifecycle").
func (a *app) start(ctx context.Context, st *state, client *pod.Client) error {
	err := client.Start(ctx, st.ID)
	if errors.Is(err, pod.ErrGone) || errors.Is(err, pod.ErrNotFound) {
		return errors.New("cannot start a container that has stopped")
	}
	if err != nil {
		return err
	}
	if st.Hooks != nil {
		if err := runHooks(ctx, "poststart", st.Hooks.Poststart, st.specState(specs.StateRunning), 0); err != nil {
			client.Signal(ctx, &pod.SignalRequest{ID: st.ID, Signal: uint32(unix.SIGKILL)})
			return err
		}
	}
	return nil
}

func (a *app) runCommand() *cobra.Command {
	var o creation
	cmd := &cobra.Command{
		Use: "run [flags] ID", Short: "Make a container from a bundle and execute its process", Args: one,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.launch(cmd.Context(), args[0], &o)
		},
	}
	o.flags(cmd)
	cmd.Flags().BoolVarP(&o.detach, "detach", "d", false, "do not wait for the container")
	cmd.Flags().BoolVar(&o.keep, "keep", false, "do not delete the container when its process has ended")
	cmd.Flags().Bool("no-subreaper", false, "accepted: nobody has to be reaped here")
	return cmd
}

// launch makes a container whose process runs, and waits for it unless that is detached.
func (a *app) launch(ctx context.Context, id string, o *creation) error {
	c, err := a.create(ctx, id, o, !o.detach)
	if err != nil {
		return err
	}
	restore := func() {}
	if c.state.Terminal && !o.detach {
		restore = rawTerminal()
	}
	defer restore()
	if o.image != "" {
		o.restored()
	} else if err := a.start(ctx, c.state, c.pod); err != nil {
		a.delete(ctx, c.state, c.pod, true)
		return err
	}
	if o.detach {
		return c.proxy.Release()
	}
	code := follow(c.proxy)
	if !o.keep {
		a.delete(ctx, c.state, c.pod, true)
	}
	if code != 0 {
		return exit(code)
	}
	return nil
}

// follow passes signals on to a proxy until it ends, and returns its exit code.
func follow(proxy *os.Process) int {
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	defer signal.Stop(signals)
	go func() {
		for s := range signals {
			switch s {
			case unix.SIGCHLD, unix.SIGURG, unix.SIGPIPE:
			default:
				proxy.Signal(s)
			}
		}
	}()
	state, err := proxy.Wait()
	if err != nil {
		return 255
	}
	if ws := state.Sys().(syscall.WaitStatus); ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return state.ExitCode()
}

// rawTerminal lets every byte through to the guest's terminal, and returns what undoes that.
func rawTerminal() func() {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return func() {}
	}
	old, err := term.MakeRaw(int(tty.Fd()))
	return func() {
		if err == nil {
			term.Restore(int(tty.Fd()), old)
		}
		tty.Close()
	}
}
