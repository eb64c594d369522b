package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	monitorapi "manis/api/monitor"
	"manis/cli/terminal"
	"manis/container"
	"manis/monitor"
)

func (a *app) attachCommand() *cobra.Command {
	var noStdin, proxy bool
	var detachKeys string
	cmd := &cobra.Command{
		Use:               "attach [OPTIONS] CONTAINER",
		Short:             "Attach local standard input, output, and error streams to a running container",
		Args:              needs(1, 1),
		ValidArgsFunction: a.containerNames(isRunning),
		RunE: func(cmd *cobra.Command, args []string) error {
			keys, err := terminal.ParseKeys(detachKeys)
			if err != nil {
				return err
			}
			c, err := a.container(args[0])
			if err != nil {
				return err
			}
			cfg, err := c.Config()
			if err != nil {
				return err
			}
			st, err := c.State()
			if err != nil {
				return err
			}
			switch {
			case st.Status == container.Paused:
				return errors.New("you cannot attach to a paused container, unpause it first")
			case st.Status == container.Restarting:
				return errors.New("you cannot attach to a restarting container, wait until it is running")
			case st.Status != container.Running:
				return errors.New("you cannot attach to a stopped container, start it first")
			}
			what := attachment{in: !noStdin && cfg.OpenStdin, out: true, err: true, tty: cfg.TTY, keys: keys}
			if what.tty && what.in && !terminal.Is(a.in) {
				return errors.New("cannot attach stdin to a TTY-enabled container because stdin is not a terminal")
			}
			sig, ctx := catch(cmd.Context())
			defer sig.stop()
			return a.attachTo(ctx, c, cfg, sig, proxy, what)
		},
	}
	cmd.Flags().BoolVar(&noStdin, "no-stdin", false, "Do not attach STDIN")
	cmd.Flags().BoolVar(&proxy, "sig-proxy", true, "Proxy all received signals to the process")
	cmd.Flags().StringVar(&detachKeys, "detach-keys", terminal.DefaultDetachKeys, "Override the key sequence for detaching a container")
	return cmd
}

// attachTo joins a container that runs, and returns with its exit code.
func (a *app) attachTo(ctx context.Context, c *container.Container, cfg *container.Config, sig *signals, proxy bool, what attachment) error {
	client, err := monitor.Connect(ctx, c)
	if err != nil {
		return err
	}
	defer client.Close()
	r := &running{a: a, c: c, cfg: cfg, client: client, signals: sig, sigProxy: proxy, keep: true}
	s, err := a.open(client, what)
	if err != nil {
		return err
	}
	waitCtx, stopWaiting := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWaiting()
	finished := r.wait(waitCtx)
	rows, columns := s.size()
	_, err = client.API().Attach(ctx, &monitorapi.AttachRequest{Streams: s.tokens, Rows: rows, Columns: columns})
	if err != nil {
		s.close()
		return err
	}
	if proxy && !what.tty {
		sig.to(r.forward)
	}
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
	select {
	case end := <-finished:
		if end.err != nil {
			return end.err
		}
		if end.ExitCode != 0 {
			return &status{int(end.ExitCode), nil}
		}
		return nil
	case <-ctx.Done():
		return asInterrupted(ctx, ctx.Err())
	}
}
