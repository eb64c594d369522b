package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	monitorapi "manis/api/monitor"
	"manis/container"
	"manis/container/spec"
	"manis/monitor"
)

// stopFlags are those of stop and restart.
type stopFlags struct {
	timeout int
	given   func() bool
	signal  string
}

func (f *stopFlags) register(fs *pflag.FlagSet) {
	fs.IntVarP(&f.timeout, "timeout", "t", 0, "Seconds to wait before killing the container (default: the container's own)")
	fs.IntVar(&f.timeout, "time", 0, "Seconds to wait before killing the container")
	fs.MarkHidden("time")
	fs.StringVarP(&f.signal, "signal", "s", "", "Signal to send to the container")
	f.given = func() bool { return fs.Changed("timeout") || fs.Changed("time") }
}

func (f *stopFlags) request() (*monitorapi.StopRequest, error) {
	req := &monitorapi.StopRequest{TimeoutSeconds: -1}
	if f.given() {
		req.TimeoutSeconds = int32(min(f.timeout, math.MaxInt32))
		if f.timeout < 0 {
			req.TimeoutSeconds = math.MaxInt32 // docker's "as long as it takes"
		}
	}
	if f.signal != "" {
		sig, err := spec.Signal(f.signal)
		if err != nil {
			return nil, err
		}
		req.Signal = uint32(sig)
	}
	return req, nil
}

func (a *app) stopCommand() *cobra.Command {
	var f stopFlags
	cmd := &cobra.Command{
		Use:               "stop [OPTIONS] CONTAINER [CONTAINER...]",
		Short:             "Stop one or more running containers",
		Args:              needs(1, -1),
		ValidArgsFunction: a.containerNames(isLive),
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := f.request()
			if err != nil {
				return err
			}
			return a.eachAtOnce(cmd.Context(), args, func(ctx context.Context, name string) error {
				return a.stop(ctx, name, req)
			})
		},
	}
	f.register(cmd.Flags())
	return cmd
}

// stop ends a container; one that does not run is left alone.
func (a *app) stop(ctx context.Context, name string, req *monitorapi.StopRequest) error {
	c, err := a.container(name)
	if err != nil {
		return err
	}
	client, err := monitor.Connect(ctx, c)
	if errors.Is(err, monitor.ErrNotRunning) {
		return nil
	}
	if err != nil {
		return err
	}
	defer client.Close()
	if _, err = client.API().Stop(ctx, req); err != nil && !lost(client) {
		return fmt.Errorf("cannot stop container %s: %s", name, text(err))
	}
	return nil
}

func (a *app) restartCommand() *cobra.Command {
	var f stopFlags
	cmd := &cobra.Command{
		Use:               "restart [OPTIONS] CONTAINER [CONTAINER...]",
		Short:             "Restart one or more containers",
		Args:              needs(1, -1),
		ValidArgsFunction: a.containerNames(anyStatus),
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := f.request()
			if err != nil {
				return err
			}
			return a.eachAtOnce(cmd.Context(), args, func(ctx context.Context, name string) error {
				c, err := a.container(name)
				if err != nil {
					return err
				}
				client, err := monitor.Connect(ctx, c)
				if errors.Is(err, monitor.ErrNotRunning) {
					return a.startDetached(ctx, name)
				}
				if err != nil {
					return err
				}
				defer client.Close()
				if _, err = client.API().Restart(ctx, req); err != nil {
					return fmt.Errorf("cannot restart container %s: %s", name, text(err))
				}
				return nil
			})
		},
	}
	f.register(cmd.Flags())
	return cmd
}

func (a *app) killCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:               "kill [OPTIONS] CONTAINER [CONTAINER...]",
		Short:             "Kill one or more running containers",
		Args:              needs(1, -1),
		ValidArgsFunction: a.containerNames(isLive),
		RunE: func(cmd *cobra.Command, args []string) error {
			sig, err := spec.Signal(name)
			if err != nil {
				return err
			}
			return a.eachAtOnce(cmd.Context(), args, func(ctx context.Context, name string) error {
				return a.ask(ctx, name, "kill", func(ctx context.Context, api monitorapi.MonitorService) error {
					_, err := api.Kill(ctx, &monitorapi.KillRequest{Signal: uint32(sig)})
					if err != nil || sig != unix.SIGKILL {
						return err
					}
					// What is listed next must not say that it still runs.
					ctx, cancel := context.WithTimeout(ctx, cleanupTime)
					defer cancel()
					api.Wait(ctx, &monitorapi.WaitRequest{Condition: monitorapi.WaitRequest_NOT_RUNNING})
					return nil
				})
			})
		},
	}
	cmd.Flags().StringVarP(&name, "signal", "s", "KILL", "Signal to send to the container")
	return cmd
}

func (a *app) pauseCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "pause CONTAINER [CONTAINER...]",
		Short:             "Pause all processes within one or more containers",
		Args:              needs(1, -1),
		ValidArgsFunction: a.containerNames(isRunning),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.eachAtOnce(cmd.Context(), args, func(ctx context.Context, name string) error {
				return a.ask(ctx, name, "pause", func(ctx context.Context, api monitorapi.MonitorService) error {
					_, err := api.Pause(ctx, &monitorapi.Empty{})
					return err
				})
			})
		},
	}
}

func (a *app) unpauseCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "unpause CONTAINER [CONTAINER...]",
		Short:             "Unpause all processes within one or more containers",
		Args:              needs(1, -1),
		ValidArgsFunction: a.containerNames(isPaused),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.eachAtOnce(cmd.Context(), args, func(ctx context.Context, name string) error {
				return a.ask(ctx, name, "unpause", func(ctx context.Context, api monitorapi.MonitorService) error {
					_, err := api.Resume(ctx, &monitorapi.Empty{})
					return err
				})
			})
		},
	}
}

// ask sends one request to a running container's monitor.
func (a *app) ask(ctx context.Context, name, what string, request func(context.Context, monitorapi.MonitorService) error) error {
	client, err := a.connect(ctx, name)
	if err != nil {
		return fmt.Errorf("cannot %s container %s: %w", what, name, err)
	}
	defer client.Close()
	if err := request(ctx, client.API()); err != nil {
		return fmt.Errorf("cannot %s container %s: %s", what, name, text(explained(client, err)))
	}
	return nil
}

// connect reaches the monitor of a running container.
func (a *app) connect(ctx context.Context, name string) (*monitor.Client, error) {
	c, err := a.container(name)
	if err != nil {
		return nil, err
	}
	client, err := monitor.Connect(ctx, c)
	if errors.Is(err, monitor.ErrNotRunning) {
		return nil, notRunning(c, err)
	}
	return client, err
}

// notRunning says more than "not running" when there is more to say.
func notRunning(c *container.Container, err error) error {
	st, stateErr := c.State()
	if stateErr != nil {
		return stateErr
	}
	if st.Status == container.Restarting {
		return fmt.Errorf("container %s is restarting, wait until the container is running", c.ID[:12])
	}
	return err
}

// eachAtOnce is each for requests that take time: they are carried out together,
// and what they say is printed in the order of the names.
func (a *app) eachAtOnce(ctx context.Context, names []string, do func(context.Context, string) error) error {
	sig, ctx := catch(ctx)
	defer sig.stop()
	const atOnce = 16
	results := make([]chan error, len(names))
	slots := make(chan struct{}, atOnce)
	for i, name := range names {
		results[i] = make(chan error, 1)
		go func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			results[i] <- do(ctx, name)
		}()
	}
	i := -1
	return asInterrupted(ctx, a.each(names, func(name string) error {
		i++
		if err := <-results[i]; err != nil {
			return err
		}
		fmt.Fprintln(a.out, name)
		return nil
	}))
}

func (a *app) waitCommand() *cobra.Command {
	var condition string
	cmd := &cobra.Command{
		Use:               "wait CONTAINER [CONTAINER...]",
		Short:             "Block until one or more containers stop, then print their exit codes",
		Args:              needs(1, -1),
		ValidArgsFunction: a.containerNames(isLive),
		RunE: func(cmd *cobra.Command, args []string) error {
			conditions := map[string]monitorapi.WaitRequest_Condition{
				"not-running": monitorapi.WaitRequest_NOT_RUNNING,
				"next-exit":   monitorapi.WaitRequest_NEXT_EXIT,
				"healthy":     monitorapi.WaitRequest_HEALTHY,
			}
			until, ok := conditions[condition]
			if !ok {
				return fmt.Errorf("invalid --condition %q: must be not-running, next-exit or healthy", condition)
			}
			sig, ctx := catch(cmd.Context())
			defer sig.stop()
			return asInterrupted(ctx, a.each(args, func(name string) error {
				code, err := a.wait(ctx, name, until)
				if err != nil {
					return err
				}
				fmt.Fprintln(a.out, code)
				return nil
			}))
		},
	}
	cmd.Flags().StringVar(&condition, "condition", "not-running", `What to wait for ("not-running", "next-exit", "healthy")`)
	return cmd
}

// wait blocks until a container's end and returns its exit code.
func (a *app) wait(ctx context.Context, name string, until monitorapi.WaitRequest_Condition) (int, error) {
	c, err := a.container(name)
	if err != nil {
		return 0, err
	}
	client, err := monitor.Connect(ctx, c)
	if err == nil {
		defer client.Close()
		resp, err := client.API().Wait(ctx, &monitorapi.WaitRequest{Condition: until})
		if err == nil {
			return int(resp.ExitCode), nil
		}
		if !lost(client) || ctx.Err() != nil {
			return 0, err
		}
		// Its monitor was killed; the state says how that counts.
		if err := a.outlive(ctx, c); err != nil {
			return 0, err
		}
	} else if !errors.Is(err, monitor.ErrNotRunning) {
		return 0, err
	}
	st, err := c.State()
	if err != nil {
		return 0, err
	}
	return st.ExitCode, nil
}

// requestTime bounds requests whose answer is near.
const requestTime = 30 * time.Second
