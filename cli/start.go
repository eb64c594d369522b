package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"manis/cli/terminal"
	"manis/container"
)

func (a *app) startCommand() *cobra.Command {
	var attach, interactive bool
	var detachKeys string
	var proxy bool
	cmd := &cobra.Command{
		Use:               "start [OPTIONS] CONTAINER [CONTAINER...]",
		Short:             "Start one or more stopped containers",
		Args:              needs(1, -1),
		ValidArgsFunction: a.containerNames(notLive),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if attach || interactive {
				if len(args) > 1 {
					return errors.New("you cannot start and attach multiple containers at once")
				}
				keys, err := terminal.ParseKeys(detachKeys)
				if err != nil {
					return err
				}
				return a.startAttached(ctx, args[0], interactive, proxy, keys)
			}
			sig, ctx := catch(ctx)
			defer sig.stop()
			return asInterrupted(ctx, a.each(args, func(name string) error {
				if err := a.startDetached(ctx, name); err != nil {
					return err
				}
				fmt.Fprintln(a.out, name)
				return nil
			}))
		},
	}
	cmd.Flags().BoolVarP(&attach, "attach", "a", false, "Attach STDOUT/STDERR and forward signals")
	cmd.Flags().BoolVarP(&interactive, "interactive", "i", false, "Attach container's STDIN")
	cmd.Flags().BoolVar(&proxy, "sig-proxy", true, "Proxy received signals to the process")
	cmd.Flags().StringVar(&detachKeys, "detach-keys", terminal.DefaultDetachKeys, "Override the key sequence for detaching a container")
	return cmd
}

// toStart finds a container that is not running. started is true for one that is.
func (a *app) toStart(name string) (c *container.Container, cfg *container.Config, started bool, err error) {
	if c, err = a.container(name); err != nil {
		return nil, nil, false, err
	}
	if cfg, err = c.Config(); err != nil {
		return nil, nil, false, err
	}
	st, err := c.State()
	if err != nil {
		return nil, nil, false, err
	}
	if st.Status == container.Paused {
		return nil, nil, false, fmt.Errorf("cannot start a paused container, try unpause instead: %s", name)
	}
	return c, cfg, st.Status.Live(), nil
}

func (a *app) startDetached(ctx context.Context, name string) error {
	c, cfg, started, err := a.toStart(name)
	if err != nil || started {
		return err
	}
	client, err := a.spawn(ctx, c)
	if err != nil {
		return err
	}
	defer client.Close()
	r := &running{a: a, c: c, cfg: cfg, client: client, keep: true}
	return r.start(ctx, nil)
}

func (a *app) startAttached(ctx context.Context, name string, in, proxy bool, keys []byte) error {
	sig, ctx := catch(ctx)
	defer sig.stop()
	c, cfg, started, err := a.toStart(name)
	if err != nil {
		return err
	}
	what := attachment{in: in && cfg.OpenStdin, out: true, err: true, tty: cfg.TTY, keys: keys}
	if what.tty && what.in && !terminal.Is(a.in) {
		return errors.New("cannot attach stdin to a TTY-enabled container because stdin is not a terminal")
	}
	if started {
		return a.attachTo(ctx, c, cfg, sig, proxy, what)
	}
	client, err := a.spawn(ctx, c)
	if err != nil {
		return asInterrupted(ctx, err)
	}
	defer client.Close()
	r := &running{a: a, c: c, cfg: cfg, client: client, signals: sig, sigProxy: proxy, keep: true}
	code, err := r.foreground(ctx, what)
	if err != nil {
		return err
	}
	if code != 0 {
		return &status{code, nil}
	}
	return nil
}
