package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"manis/cli/declare"
	"manis/cli/filter"
	"manis/cli/present"
	"manis/container"
	"manis/image"
	"manis/storage"
)

var (
	volumeFilters      = []string{"dangling", "driver", "label", "label!", "name"}
	volumePruneFilters = []string{"all", "label", "label!"}
)

func (a *app) volumeCommand() *cobra.Command {
	return a.noun("volume", "Manage volumes",
		a.volumeCreateCommand(), a.volumeInspectCommand(), a.volumeListCommand(), a.volumePruneCommand(), a.volumeRemoveCommand())
}

func (a *app) volumes(ctx context.Context) (*storage.Volumes, error) {
	p, err := a.places()
	if err != nil {
		return nil, err
	}
	return storage.OpenVolumes(ctx, p.Volumes())
}

// claimVolumes makes the volumes of a new container that are not there, and notes
// that it uses them.
func (a *app) claimVolumes(ctx context.Context, cfg *container.Config) error {
	var store *storage.Volumes
	for _, m := range cfg.Mounts {
		if m.Type != string(storage.Volume) {
			continue
		}
		if store == nil {
			var err error
			if store, err = a.volumes(ctx); err != nil {
				return err
			}
		}
		for attempt := 0; ; attempt++ {
			var err error
			if m.Anonymous {
				_, err = store.Create(ctx, m.Source, map[string]string{storage.AnonymousLabel: ""})
			} else {
				_, err = store.Ensure(ctx, m.Source)
			}
			if err == nil {
				err = store.AddUser(ctx, m.Source, cfg.ID)
			}
			if err == nil {
				break
			}
			// Removed by somebody between the two steps: once more.
			if !errors.Is(err, storage.ErrNoVolume) || attempt >= 3 {
				return err
			}
		}
	}
	return nil
}

// dropUsers takes back the claims of containers that are gone: a process that was
// killed in the middle of a removal could not.
func (a *app) dropUsers(ctx context.Context) {
	store, err := a.containers()
	if err != nil {
		return
	}
	alive := func(id string) bool {
		c, err := store.Get(id)
		return err == nil && c.ID == id
	}
	if volumes, err := a.volumes(ctx); err == nil {
		volumes.DropUsers(ctx, alive)
	}
	images, err := a.images()
	if err != nil {
		return
	}
	drop := func(imageID string, users []string) {
		for _, id := range users {
			if !alive(id) {
				images.RemoveUser(imageID, id)
			}
		}
	}
	all, err := images.List()
	for _, img := range all {
		drop(img.ID, img.Users)
	}
	var damaged *image.DamagedError
	if errors.As(err, &damaged) {
		for _, d := range damaged.Images {
			drop(d.ID, d.Users)
		}
	}
}

func (a *app) volumeCreateCommand() *cobra.Command {
	var driver, name string
	var labels, opts []string
	cmd := &cobra.Command{
		Use:   "create [OPTIONS] [VOLUME]",
		Short: "Create a volume",
		Args:  needs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				if name != "" {
					return &usageError{errors.New("conflicting options: cannot specify a volume-name through both --name and as a positional arg")}
				}
				name = args[0]
			}
			if driver != "local" {
				return fmt.Errorf("volume driver %q not found: there is local", driver)
			}
			if len(opts) > 0 {
				return fmt.Errorf("invalid option %q: volumes have none", opts[0])
			}
			parsed, err := parseLabels(labels)
			if err != nil {
				return err
			}
			store, err := a.volumes(cmd.Context())
			if err != nil {
				return err
			}
			info, err := store.Create(cmd.Context(), name, parsed)
			if err != nil && !errors.Is(err, storage.ErrVolumeExists) {
				return err
			}
			fmt.Fprintln(a.out, info.Name)
			return nil
		},
	}
	cmd.Flags().StringVarP(&driver, "driver", "d", "local", "Specify volume driver name")
	cmd.Flags().Var((*declare.List)(&labels), "label", "Set metadata for a volume")
	cmd.Flags().StringVar(&name, "name", "", "Specify volume name")
	cmd.Flags().MarkHidden("name")
	cmd.Flags().VarP((*declare.List)(&opts), "opt", "o", "Set driver specific options")
	cmd.Flags().MarkHidden("opt")
	return cmd
}

func parseLabels(list []string) (map[string]string, error) {
	labels := make(map[string]string)
	for _, l := range list {
		key, value, _ := strings.Cut(l, "=")
		if key == "" {
			return nil, fmt.Errorf("invalid label %q: empty name", l)
		}
		labels[key] = value
	}
	return labels, nil
}

// volumeRow is one line of volume ls. Field names are docker's.
type volumeRow struct {
	Driver     string
	Labels     string
	Links      string
	Mountpoint string
	Name       string
	Scope      string
	Size       string
	labels     map[string]string
}

var volumeHeader = volumeRow{
	Driver: "DRIVER", Labels: "LABELS", Links: "LINKS", Mountpoint: "MOUNTPOINT", Name: "VOLUME NAME", Scope: "SCOPE", Size: "SIZE",
}

// Label is the value of one label; in the header, its name.
func (r volumeRow) Label(name string) string {
	if r.Name == volumeHeader.Name {
		return labelTitle(name)
	}
	return r.labels[name]
}

func (a *app) volumeListCommand() *cobra.Command {
	var filters []string
	var format string
	var quiet bool
	cmd := &cobra.Command{
		Use:     "ls [OPTIONS]",
		Aliases: []string{"list"},
		Short:   "List volumes",
		Args:    needs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			set, err := filter.Parse(filters, volumeFilters...)
			if err != nil {
				return err
			}
			store, err := a.volumes(cmd.Context())
			if err != nil {
				return err
			}
			all, err := store.List()
			if err != nil {
				return err
			}
			match, err := volumeFilter(store, set)
			if err != nil {
				return err
			}
			withSize := strings.Contains(format, ".Size")
			var rows []volumeRow
			for _, v := range all {
				if !match(v) {
					continue
				}
				if quiet {
					fmt.Fprintln(a.out, v.Name)
					continue
				}
				r := volumeRow{
					Driver: v.Driver, Labels: labelList(v.Labels), Links: "N/A", Mountpoint: v.Mountpoint,
					Name: v.Name, Scope: v.Scope, Size: "N/A", labels: v.Labels,
				}
				if withSize {
					if n, err := store.Usage(v.Name); err == nil {
						r.Size = humanSize(n)
					}
				}
				rows = append(rows, r)
			}
			if quiet {
				return nil
			}
			return present.List(a.out, format, `{{.Driver}}\t{{.Name}}`, volumeHeader, rows)
		},
	}
	cmd.Flags().VarP((*declare.List)(&filters), "filter", "f", `Provide filter values (e.g. "dangling=true")`)
	cmd.Flags().StringVar(&format, "format", "", formatHelp)
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Only display volume names")
	return cmd
}

func volumeFilter(store *storage.Volumes, set filter.Set) (func(storage.VolumeInfo) bool, error) {
	dangling, asked, err := set.Bool("dangling")
	if err != nil {
		return nil, err
	}
	return func(v storage.VolumeInfo) bool {
		if asked {
			users, err := store.Users(v.Name)
			if err != nil || dangling != (len(users) == 0) {
				return false
			}
		}
		return set.Match("name", v.Name) && set.Exact("driver", v.Driver) &&
			set.Labels("label", v.Labels) && set.NoLabels("label!", v.Labels)
	}, nil
}

func (a *app) volumeInspectCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:               "inspect [OPTIONS] VOLUME [VOLUME...]",
		Short:             "Display detailed information on one or more volumes",
		Args:              needs(1, -1),
		ValidArgsFunction: a.volumeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.inspect(cmd.Context(), args, inspectFlags{format: format, kind: "volume"})
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", inspectFormatHelp)
	return cmd
}

func (a *app) volumeRemoveCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "rm [OPTIONS] VOLUME [VOLUME...]",
		Aliases:           []string{"remove"},
		Short:             "Remove one or more volumes",
		Args:              needs(1, -1),
		ValidArgsFunction: a.volumeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := a.volumes(cmd.Context())
			if err != nil {
				return err
			}
			a.dropUsers(cmd.Context())
			return a.each(args, func(name string) error {
				err := store.Remove(cmd.Context(), name)
				if err != nil && !(force && errors.Is(err, storage.ErrNoVolume)) {
					return err
				}
				fmt.Fprintln(a.out, name)
				return nil
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Do not fail for volumes that are not there")
	return cmd
}

func (a *app) volumePruneCommand() *cobra.Command {
	var f pruneFlags
	cmd := &cobra.Command{
		Use:   "prune [OPTIONS]",
		Short: "Remove unused local volumes",
		Args:  needs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			what := "anonymous local volumes not used by at least one container"
			if f.all {
				what = "local volumes not used by at least one container"
			}
			return a.prune(cmd.Context(), f, []string{what}, a.pruneVolumes)
		},
	}
	f.register(cmd.Flags(), "Remove all unused volumes, not just anonymous ones")
	return cmd
}

func (a *app) pruneVolumes(ctx context.Context, f pruneFlags) (int64, error) {
	set, err := filter.Parse(f.filters, append(volumePruneFilters, "until")...)
	if err != nil {
		return 0, err
	}
	if set.Has("until") {
		return 0, errors.New("invalid filter \"until\": volumes are not pruned by age")
	}
	all, _, err := set.Bool("all")
	if err != nil {
		return 0, err
	}
	store, err := a.volumes(ctx)
	if err != nil {
		return 0, err
	}
	a.dropUsers(ctx)
	pruned, err := store.Prune(ctx, f.all || all, func(v storage.VolumeInfo) bool {
		return !set.Labels("label", v.Labels) || !set.NoLabels("label!", v.Labels)
	})
	slices.Sort(pruned.Names)
	a.deleted("Volumes", pruned.Names)
	return pruned.Bytes, err
}
