package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	monitorapi "manis/api/monitor"
	"manis/cli/declare"
	"manis/cli/present"
	"manis/cli/terminal"
	"manis/container"
	"manis/image"
	"manis/monitor"
	"manis/snapshot"
)

func (a *app) snapshots() (*snapshot.Store, error) {
	places, err := a.places()
	if err != nil {
		return nil, err
	}
	return snapshot.Open(places.Snapshots()), nil
}

func (a *app) checkpointCommand() *cobra.Command {
	var name, hook string
	var leave bool
	cmd := &cobra.Command{
		Use:   "checkpoint [OPTIONS] CONTAINER",
		Short: "Save a running container, with its memory and disk, as a snapshot",
		Example: `  manis checkpoint --name warm web
  manis restore --name web1 -p 8081:80 warm
  manis run --rm --from-snapshot warm`,
		Args:              needs(1, 1),
		ValidArgsFunction: a.containerNames(isLive),
		RunE: func(cmd *cobra.Command, args []string) error {
			sig, ctx := catch(cmd.Context())
			defer sig.stop()
			c, err := a.container(args[0])
			if err != nil {
				return err
			}
			cfg, err := c.Config()
			if err != nil {
				return err
			}
			if name == "" {
				name = cfg.Name
			}
			store, err := a.snapshots()
			if err != nil {
				return err
			}
			if err := store.Check(name); err != nil {
				return err
			}
			client, err := monitor.Connect(ctx, c)
			if err != nil {
				return err
			}
			defer client.Close()
			req := &monitorapi.CheckpointRequest{Name: name, LeaveRunning: leave}
			if hook != "" {
				req.Hook = []string{"/bin/sh", "-c", hook}
			}
			if _, err := client.API().Checkpoint(ctx, req); err != nil {
				return asInterrupted(ctx, err)
			}
			fmt.Fprintln(a.out, name)
			return nil
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "Name of the snapshot (default the container's)")
	cmd.Flags().BoolVarP(&leave, "leave-running", "R", false, "Leave the container running after it was saved")
	cmd.Flags().StringVar(&hook, "on-restore", "", "Shell command that is run in each container that goes on from the snapshot, before it can be reached")
	return cmd
}

func (a *app) restoreCommand() *cobra.Command {
	f, o := new(declare.Flags), &runFlags{detach: true, detachKeys: terminal.DefaultDetachKeys}
	cmd := &cobra.Command{
		Use:               "restore [OPTIONS] SNAPSHOT",
		Short:             "Create a container that goes on from a snapshot, in the background",
		Args:              needs(1, 1),
		ValidArgsFunction: a.snapshotNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.snapshot = args[0]
			return a.runSnapshot(cmd.Context(), f, o)
		},
	}
	all := pflag.NewFlagSet("", pflag.ContinueOnError)
	f.Register(all)
	for _, name := range []string{"cidfile", "name", "publish", "rm", "trace"} {
		cmd.Flags().AddFlag(all.Lookup(name))
	}
	return cmd
}

// fitting are the flags of run that mean something for a container that runs already.
var fitting = []string{"cidfile", "detach", "detach-keys", "from-snapshot", "name", "publish", "rm", "sig-proxy", "trace"}

// fitsSnapshot refuses flags that a snapshot cannot heed.
func fitsSnapshot(fs *pflag.FlagSet) error {
	var odd []string
	fs.Visit(func(f *pflag.Flag) {
		if !slices.Contains(fitting, f.Name) && fs.Lookup(f.Name) != nil {
			odd = append(odd, "--"+f.Name)
		}
	})
	if len(odd) > 0 {
		return fmt.Errorf("conflicting options: a container from a snapshot is as it was saved: %s cannot be changed", strings.Join(odd, ", "))
	}
	return nil
}

// runSnapshot runs a container that goes on from a snapshot.
func (a *app) runSnapshot(ctx context.Context, f *declare.Flags, o *runFlags) error {
	store, err := a.snapshots()
	if err != nil {
		return err
	}
	info, err := store.Get(o.snapshot)
	if err != nil {
		return fail(exitFailed, err)
	}
	f.TTY, f.Stdin = info.Config.TTY && !o.detach, info.Config.OpenStdin && !o.detach
	return a.runContainer(ctx, f, o, nil)
}

// createFromSnapshot makes a container that goes on from a snapshot at its first start.
func (a *app) createFromSnapshot(ctx context.Context, name string, f *declare.Flags) (*container.Container, *container.Config, error) {
	store, err := a.snapshots()
	if err != nil {
		return nil, nil, err
	}
	s, err := store.Use(name)
	if err != nil {
		return nil, nil, err
	}
	defer s.Close()
	if err := cidFile(f.CIDFile).free(); err != nil {
		return nil, nil, err
	}
	images, err := a.images()
	if err != nil {
		return nil, nil, err
	}
	cfg := s.Info.Config
	if _, err := images.Resolve(cfg.ImageID); err != nil {
		if errors.Is(err, image.ErrNotFound) {
			return nil, nil, fmt.Errorf("snapshot %s cannot be continued: its image %s has been removed (pull or load it again)", name, cfg.Image)
		}
		return nil, nil, err
	}
	ports, err := f.Published(declare.ThisHost())
	if err != nil {
		return nil, nil, err
	}
	if len(ports) > 0 {
		cfg.Network.Ports = ports
	}
	cfg.ID, cfg.Name, cfg.Snapshot, cfg.AutoRemove, cfg.Created = "", f.Name, name, f.Remove, time.Now().UTC()
	cfg.StdinOnce = f.StdinOnce
	if err := a.permit(ctx, &cfg, false); err != nil {
		return nil, nil, fail(exitFailed, err)
	}
	c, err := a.store(ctx, &cfg, images)
	if err != nil {
		return nil, nil, err
	}
	if err := cidFile(f.CIDFile).write(c); err != nil {
		a.discard(c)
		return nil, nil, err
	}
	return c, &cfg, nil
}

func (a *app) snapshotCommand() *cobra.Command {
	return a.noun("snapshot", "Manage snapshots of running containers",
		a.snapshotInspectCommand(), a.snapshotListCommand(), a.snapshotRemoveCommand())
}

// snapshotSize is what a snapshot takes of the disk.
type snapshotSize struct {
	name  string
	bytes int64
}

func (a *app) snapshotUsage() ([]snapshotSize, error) {
	store, err := a.snapshots()
	if err != nil {
		return nil, err
	}
	all, err := store.List()
	if err != nil {
		return nil, err
	}
	var sizes []snapshotSize
	for _, i := range all {
		sizes = append(sizes, snapshotSize{i.Name, store.Bytes(i.Name)})
	}
	return sizes, nil
}

// snapshotNames completes the names of snapshots.
func (a *app) snapshotNames(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	var names []string
	if store, err := a.snapshots(); err == nil {
		all, _ := store.List()
		for _, i := range all {
			names = append(names, i.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// snapshotRow is one line of snapshot ls.
type snapshotRow struct {
	Name, Image, Command, Created, Size string
}

var snapshotHeader = snapshotRow{"SNAPSHOT", "IMAGE", "COMMAND", "CREATED", "SIZE"}

func (a *app) snapshotListCommand() *cobra.Command {
	var format string
	var quiet bool
	cmd := &cobra.Command{
		Use:     "ls [OPTIONS]",
		Aliases: []string{"list"},
		Short:   "List snapshots",
		Args:    needs(0, 0),
		RunE: func(*cobra.Command, []string) error {
			store, err := a.snapshots()
			if err != nil {
				return err
			}
			all, err := store.List()
			if err != nil {
				return err
			}
			var rows []snapshotRow
			now := time.Now()
			for _, i := range all {
				if quiet {
					fmt.Fprintln(a.out, i.Name)
					continue
				}
				rows = append(rows, snapshotRow{
					Name: i.Name, Image: i.Config.Image, Command: strings.Join(i.Config.Process.Args, " "),
					Created: ago(i.Created, now), Size: humanSize(store.Bytes(i.Name)),
				})
			}
			if quiet {
				return nil
			}
			return present.List(a.out, format, `{{.Name}}\t{{.Image}}\t{{.Command}}\t{{.Created}}\t{{.Size}}`, snapshotHeader, rows)
		},
	}
	cmd.Flags().StringVar(&format, "format", "", formatHelp)
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Only display names")
	return cmd
}

func (a *app) snapshotInspectCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:               "inspect [OPTIONS] SNAPSHOT [SNAPSHOT...]",
		Short:             "Display detailed information on one or more snapshots",
		Args:              needs(1, -1),
		ValidArgsFunction: a.snapshotNames,
		RunE: func(_ *cobra.Command, args []string) error {
			store, err := a.snapshots()
			if err != nil {
				return err
			}
			var found []any
			missing := a.each(args, func(name string) error {
				i, err := store.Get(name)
				if err == nil {
					found = append(found, i)
				}
				return err
			})
			return errors.Join(present.Inspect(a.out, format, found), missing)
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", inspectFormatHelp)
	return cmd
}

func (a *app) snapshotRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "rm SNAPSHOT [SNAPSHOT...]",
		Aliases:           []string{"remove"},
		Short:             "Remove snapshots; containers that went on from them stay",
		Args:              needs(1, -1),
		ValidArgsFunction: a.snapshotNames,
		RunE: func(_ *cobra.Command, args []string) error {
			store, err := a.snapshots()
			if err != nil {
				return err
			}
			return a.each(args, func(name string) error {
				if err := store.Remove(name); err != nil {
					return err
				}
				fmt.Fprintln(a.out, name)
				return nil
			})
		},
	}
}
