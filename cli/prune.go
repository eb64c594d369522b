package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"manis/cli/declare"
	"manis/cli/filter"
	"manis/container"
	"manis/image"
)

var pruneFilters = []string{"label", "label!", "until"}

type pruneFlags struct {
	all, force, volumes bool
	filters             []string
}

func (f *pruneFlags) register(fs *pflag.FlagSet, all string) {
	fs.Var((*declare.List)(&f.filters), "filter", `Provide filter values (e.g. "until=24h", "label=KEY=VALUE")`)
	fs.BoolVarP(&f.force, "force", "f", false, "Do not prompt for confirmation")
	if all != "" {
		fs.BoolVarP(&f.all, "all", "a", false, all)
	}
}

func (a *app) pruneCommand() *cobra.Command {
	cmd := a.systemPruneCommand()
	cmd.Short = "Remove unused containers, images and, if asked, volumes"
	return cmd
}

func (a *app) containerPruneCommand() *cobra.Command {
	var f pruneFlags
	cmd := &cobra.Command{
		Use:   "prune [OPTIONS]",
		Short: "Remove all stopped containers",
		Args:  needs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.prune(cmd.Context(), f, []string{"all stopped containers"}, a.pruneContainers)
		},
	}
	f.register(cmd.Flags(), "")
	return cmd
}

func (a *app) imagePruneCommand() *cobra.Command {
	var f pruneFlags
	cmd := &cobra.Command{
		Use:   "prune [OPTIONS]",
		Short: "Remove unused images",
		Args:  needs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.prune(cmd.Context(), f, []string{imagePruneText(f)}, a.pruneImages)
		},
	}
	f.register(cmd.Flags(), "Remove all unused images, not just dangling ones")
	return cmd
}

func imagePruneText(f pruneFlags) string {
	if f.all {
		return "all images without at least one container associated to them"
	}
	return "all dangling images"
}

func (a *app) systemPruneCommand() *cobra.Command {
	var f pruneFlags
	cmd := &cobra.Command{
		Use:   "prune [OPTIONS]",
		Short: "Remove unused data",
		Args:  needs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			what := []string{"all stopped containers"}
			steps := []func(context.Context, pruneFlags) (int64, error){a.pruneContainers}
			if f.volumes {
				what = append(what, "all anonymous volumes not used by at least one container")
				steps = append(steps, func(ctx context.Context, f pruneFlags) (int64, error) {
					f.all = false
					return a.pruneVolumes(ctx, f)
				})
			}
			what = append(what, imagePruneText(f), "what interrupted downloads and killed processes left")
			return a.prune(cmd.Context(), f, what, append(steps, a.pruneImages)...)
		},
	}
	f.register(cmd.Flags(), "Remove all unused images, not just dangling ones")
	cmd.Flags().BoolVar(&f.volumes, "volumes", false, "Prune anonymous volumes")
	return cmd
}

// prune asks for consent, removes, and says how much was reclaimed.
func (a *app) prune(ctx context.Context, f pruneFlags, what []string, steps ...func(context.Context, pruneFlags) (int64, error)) error {
	if !f.force {
		warning := "WARNING! This will remove " + what[0] + "."
		if len(what) > 1 {
			warning = "WARNING! This will remove:\n  - " + strings.Join(what, "\n  - ") + "\n"
		}
		if !a.consents(warning) {
			return nil
		}
	}
	sig, ctx := catch(ctx)
	defer sig.stop()
	var reclaimed int64
	for _, step := range steps {
		n, err := step(ctx, f)
		reclaimed += n
		if err != nil {
			return asInterrupted(ctx, err)
		}
	}
	fmt.Fprintf(a.out, "Total reclaimed space: %s\n", humanSize(reclaimed))
	return nil
}

// consents asks the user. No answer is a no.
func (a *app) consents(warning string) bool {
	fmt.Fprintf(a.out, "%s\nAre you sure you want to continue? [y/N] ", warning)
	line, _ := bufio.NewReader(a.in).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return true
	}
	fmt.Fprintln(a.out)
	return false
}

// deleted lists what a prune has removed.
func (a *app) deleted(what string, names []string) {
	if len(names) == 0 {
		return
	}
	fmt.Fprintf(a.out, "Deleted %s:\n%s\n\n", what, strings.Join(names, "\n"))
}

func (a *app) pruneContainers(ctx context.Context, f pruneFlags) (int64, error) {
	set, err := filter.Parse(f.filters, pruneFilters...)
	if err != nil {
		return 0, err
	}
	var until time.Time
	for _, s := range set["until"] {
		if until, err = filter.Time(s, time.Now()); err != nil {
			return 0, err
		}
	}
	a.sweep(ctx)
	all, err := a.list()
	if err != nil {
		return 0, err
	}
	var ids []string
	var reclaimed int64
	for _, l := range all {
		if l.st.Status.Live() || !until.IsZero() && !l.cfg.Created.Before(until) ||
			!set.Labels("label", l.cfg.Labels) || !set.NoLabels("label!", l.cfg.Labels) {
			continue
		}
		// The monitor of a container that has ended is about to go; that of one which
		// has not been started yet is about to boot.
		if l.c.BeingCopied() || l.c.Monitored() && (l.st.Status != container.Exited || a.outlive(ctx, l.c) != nil) {
			continue
		}
		size := writtenBytes(l.c)
		err := a.remove(ctx, l.c, removal{})
		if errors.Is(err, container.ErrNotFound) || errors.Is(err, container.ErrRunning) || errors.Is(err, container.ErrBusy) {
			continue
		}
		if err != nil {
			return reclaimed, err
		}
		ids = append(ids, l.c.ID)
		reclaimed += size
	}
	a.deleted("Containers", ids)
	return reclaimed, nil
}

// removedText is a step of a removal as docker's prune prints it.
func removedText(r image.Removed) string {
	if r.Untagged != "" {
		return "untagged: " + r.Untagged
	}
	return "deleted: " + r.Deleted
}

func (a *app) pruneImages(ctx context.Context, f pruneFlags) (int64, error) {
	set, err := filter.Parse(f.filters, pruneFilters...)
	if err != nil {
		return 0, err
	}
	images, err := a.images()
	if err != nil {
		return 0, err
	}
	a.dropUsers(ctx)
	if len(set) == 0 {
		pruned, err := images.Prune(f.all)
		var steps []string
		for _, s := range pruned.Removed {
			steps = append(steps, removedText(s))
		}
		a.deleted("Images", steps)
		return pruned.Reclaimed, err
	}
	match, err := imageFilter(images, set, time.Now())
	if err != nil {
		return 0, err
	}
	all, err := a.readable(images.List())
	if err != nil {
		return 0, err
	}
	before, err := images.Usage()
	if err != nil {
		return 0, err
	}
	var steps []string
	for _, img := range all {
		if len(img.Users) > 0 || len(img.Names) > 0 && !f.all || !match(img) {
			continue
		}
		removed, err := images.Remove(img.ID, true)
		for _, s := range removed {
			steps = append(steps, removedText(s))
		}
		if err != nil {
			a.note("%s", text(err))
		}
	}
	a.deleted("Images", steps)
	after, err := images.Usage()
	return max(before.Total-after.Total, 0), err
}
