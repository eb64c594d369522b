package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	monitorapi "manis/api/monitor"
	"manis/container"
	"manis/monitor"
)

func (a *app) rmCommand() *cobra.Command {
	var how removal
	cmd := &cobra.Command{
		Use:               "rm [OPTIONS] CONTAINER [CONTAINER...]",
		Aliases:           []string{"remove"},
		Short:             "Remove one or more containers",
		Args:              needs(1, -1),
		ValidArgsFunction: a.containerNames(anyStatus),
		RunE: func(cmd *cobra.Command, args []string) error {
			sig, ctx := catch(cmd.Context())
			defer sig.stop()
			a.sweep(ctx)
			return asInterrupted(ctx, a.each(args, func(name string) error {
				c, err := a.container(name)
				if err == nil {
					err = a.remove(ctx, c, how)
				}
				if errors.Is(err, container.ErrNotFound) {
					if how.force {
						a.note("no such container: %s", name)
						return nil
					}
					return fmt.Errorf("no such container: %s", name)
				}
				if err == nil {
					fmt.Fprintln(a.out, name)
				}
				return err
			}))
		},
	}
	cmd.Flags().BoolVarP(&how.force, "force", "f", false, "Force the removal of a running container (uses SIGKILL)")
	cmd.Flags().BoolVarP(&how.volumes, "volumes", "v", false, "Remove anonymous volumes associated with the container")
	return cmd
}

// removal is how to remove a container.
type removal struct{ force, volumes bool }

// errRemoving: somebody else is at it.
var errRemoving = errors.New("removal is already in progress")

// remove deletes a container, by force also a running one. Of those that remove
// one container at the same time, one does and the others find it gone.
func (a *app) remove(ctx context.Context, c *container.Container, how removal) error {
	places, err := a.places()
	if err != nil {
		return err
	}
	cfg, err := c.Config()
	if err != nil {
		return err
	}
	began, ended := time.Now(), false
	for {
		lock, err := c.Lock()
		switch {
		case err == nil:
			if cfg, err = c.Config(); err != nil {
				lock.Close()
				return err
			}
			return monitor.Remove(places, c, cfg, lock, how.volumes)
		case errors.Is(err, container.ErrNotFound) && ended && cfg.AutoRemove:
			return nil // its monitor removed it when it ended
		case errors.Is(err, container.ErrBusy):
			if time.Since(began) > cleanupTime {
				return err
			}
			if how.force {
				err = a.endCopy(ctx, c)
			} else {
				err = a.outlive(ctx, c)
			}
			if err != nil {
				return err
			}
			continue
		case !errors.Is(err, container.ErrRunning):
			return err
		case time.Since(began) > cleanupTime:
			return fmt.Errorf("container %s: %w", c.ID[:12], errRemoving)
		case how.force:
			if err := a.end(ctx, c); err != nil {
				return err
			}
			ended = true
			continue
		}
		st, err := c.State()
		if err != nil {
			return err
		}
		if st.Status.Live() {
			return fmt.Errorf("cannot remove container %q: container is %s: stop the container before removing or force remove", cfg.Name, st.Status)
		}
		// Its monitor is about to end, or to begin.
		if err := a.outlive(ctx, c); err != nil {
			return err
		}
	}
}

// end kills a container and waits until its monitor is gone.
func (a *app) end(ctx context.Context, c *container.Container) error {
	client, err := monitor.Connect(ctx, c)
	if errors.Is(err, monitor.ErrNotRunning) {
		return a.outlive(ctx, c)
	}
	if err != nil {
		return err
	}
	defer client.Close()
	_, err = client.API().Stop(ctx, &monitorapi.StopRequest{TimeoutSeconds: 0, Signal: uint32(unix.SIGKILL)})
	if err != nil && !lost(client) {
		return err
	}
	client.Close()
	return a.outlive(ctx, c)
}

// endCopy ends a copy and waits until its monitor is gone.
func (a *app) endCopy(ctx context.Context, c *container.Container) error {
	client, err := monitor.ConnectCopy(ctx, c)
	if err == nil {
		client.API().Stop(ctx, &monitorapi.StopRequest{Signal: uint32(unix.SIGKILL)})
		client.Close()
	}
	return a.outlive(ctx, c)
}

// outlive waits until nobody holds the container's lock. Whoever holds it is about
// to let go: a monitor at its end, or another removal.
func (a *app) outlive(ctx context.Context, c *container.Container) error {
	ctx, cancel := context.WithTimeout(ctx, cleanupTime)
	defer cancel()
	err := c.AwaitRelease(ctx)
	if errors.Is(err, context.DeadlineExceeded) && c.BeingCopied() {
		return errCopied(c)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("container %s: %w, or its monitor does not end (manis inspect shows its process id)", c.ID[:12], errRemoving)
	}
	return err
}

// sweep removes what killed processes left behind: half-made directories, and
// containers of --rm whose monitor was killed. It is a courtesy of commands that
// do something else, and fails silently.
func (a *app) sweep(ctx context.Context) {
	store, err := a.containers()
	if err != nil {
		return
	}
	store.Sweep()
	all, err := store.List()
	if err != nil {
		return
	}
	for _, c := range all {
		sweepCopy(c)
		cfg, err := c.Config()
		if err != nil || !cfg.AutoRemove {
			continue
		}
		if orphaned(c) {
			a.remove(ctx, c, removal{volumes: true})
		}
	}
}

// sweepCopy removes what a killed copy has left.
func sweepCopy(c *container.Container) {
	if _, err := os.Stat(c.CopyDir()); err != nil {
		return
	}
	// Whoever copies now has made it anew.
	if lock, err := c.LockForCopy(); err == nil {
		os.RemoveAll(c.CopyDir())
		lock.Close()
	}
}

// orphaned reports whether a container of --rm has had a monitor that was killed
// before it could remove it. One that only waits for its start is none.
func orphaned(c *container.Container) bool {
	// A monitor makes this directory once it holds the lock, and removes it
	// before it lets go: in this order, what is there without a lock is left over.
	_, err := os.Stat(c.RunDir())
	left := err == nil && !c.Held()
	st, err := c.State()
	if err != nil {
		return false
	}
	return left || !c.Held() && (st.Status == container.Dead || st.Status == container.Exited)
}
