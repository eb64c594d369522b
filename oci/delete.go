package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"manis/pod"
)

func (a *app) killCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "kill ID [SIGNAL]", Short: "Send a signal (TERM) to a container's process",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return fmt.Errorf("%q requires a container's id and at most a signal", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			sig := unix.SIGTERM
			if len(args) == 2 {
				var err error
				if sig, err = parseSignal(args[1]); err != nil {
					return err
				}
			}
			st, client, err := a.load(args[0])
			if err != nil {
				return err
			}
			if !st.alive() && !all {
				return errors.New("container not running")
			}
			err = client.Signal(cmd.Context(), &pod.SignalRequest{ID: st.ID, Signal: uint32(sig), All: all})
			if errors.Is(err, pod.ErrGone) || errors.Is(err, pod.ErrNotFound) || errors.Is(err, pod.ErrState) {
				if all {
					return nil // nothing is left that could be signalled
				}
				return errors.New("container not running")
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "signal every process of the container")
	return cmd
}

// parseSignal takes a signal's number or name, with or without SIG.
func parseSignal(s string) (unix.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 0 || n > 64 {
			return 0, fmt.Errorf("unknown signal %q", s)
		}
		return unix.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if n := unix.SignalNum(name); n != 0 {
		return n, nil
	}
	return 0, fmt.Errorf("unknown signal %q", s)
}

func (a *app) deleteCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "delete [--force] ID", Short: "Remove what is left of a container", Args: one,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.open(); err != nil {
				return err
			}
			id := args[0]
			st, err := a.store.load(id)
			if err != nil {
				if checkID(id) != nil {
					return err
				}
				// What a killed creation or a damaged disk has left.
				if force {
					return a.store.remove(id)
				}
				return err
			}
			return a.delete(cmd.Context(), st, pod.At(pod.Socket(st.Pod)), force)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "kill the container if it still runs")
	return cmd
}

// deleteTime is how long a killed container may take to end.
const deleteTime = 15 * time.Second

// delete removes a container: from its pod, its proxy, its directory.
func (a *app) delete(ctx context.Context, st *state, client *pod.Client, force bool) error {
	s, err := status(ctx, st, client)
	if err != nil && !force {
		return err
	}
	lives := err != nil || s.Status != specs.StateStopped
	// Where the proxy was killed the container is a stopped one, though its pod may still be ending it.
	if lives && !force && st.alive() && s.Status != specs.StateCreated {
		return fmt.Errorf("cannot delete container %s that is not stopped: %s", st.ID, s.Status)
	}
	killCtx, cancel := context.WithTimeout(ctx, deleteTime)
	defer cancel()
	if lives {
		client.Signal(killCtx, &pod.SignalRequest{ID: st.ID, Signal: uint32(unix.SIGKILL)})
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := client.Remove(killCtx, st.ID)
		gone := err == nil || errors.Is(err, pod.ErrGone) || errors.Is(err, pod.ErrNotFound)
		if gone && !st.alive() {
			break
		}
		if killCtx.Err() != nil {
			if st.alive() { // else the number may be another's by now
				unix.Kill(st.PID, unix.SIGKILL)
			}
			if !gone {
				return err
			}
			break
		}
		time.Sleep(pause)
	}
	// A pod that was killed could not do it.
	if client.Gone(killCtx) {
		os.RemoveAll(st.Pod)
	}
	removeGroup(st.Group)
	if err := a.store.remove(st.ID); err != nil {
		return err
	}
	if st.Hooks != nil {
		// One that fails hinders neither the others nor the container's end (runtime specification,
		// "Lifecycle").
		for i := range st.Hooks.Poststop {
			if err := runHookOf(ctx, "poststop", st.Hooks.Poststop, i, st.specState(specs.StateStopped), 0); err != nil {
				a.log("warning", err.Error())
				fmt.Fprintln(a.err, "warning:", err)
			}
		}
	}
	return nil
}
