package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"manis/cli/present"
	"manis/container"
	"manis/image"
	"manis/storage"
)

type inspectFlags struct {
	format, kind string
	size         bool
}

const inspectFormatHelp = `Format output: "json" or a Go template`

func (a *app) inspectCommand() *cobra.Command {
	var f inspectFlags
	cmd := &cobra.Command{
		Use:   "inspect [OPTIONS] NAME|ID [NAME|ID...]",
		Short: "Return low-level information on containers, images and volumes",
		Args:  needs(1, -1),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
			var all []string
			for kind, complete := range map[string]completer{"container": a.containerNames(anyStatus), "image": a.imageNames, "volume": a.volumeNames} {
				if f.kind == "" || f.kind == kind {
					names, _ := complete(cmd, args, start)
					all = append(all, names...)
				}
			}
			slices.Sort(all)
			return slices.Compact(all), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error { return a.inspect(cmd.Context(), args, f) },
	}
	cmd.Flags().StringVarP(&f.format, "format", "f", "", inspectFormatHelp)
	cmd.Flags().BoolVarP(&f.size, "size", "s", false, "Display total file sizes if the type is container")
	cmd.Flags().StringVar(&f.kind, "type", "", `Only inspect objects of the given type ("container", "image", "volume")`)
	return cmd
}

// inspectOne makes the inspect command of one kind of things.
func (a *app) inspectOne(kind, short string, complete completer) *cobra.Command {
	f := inspectFlags{kind: kind}
	cmd := &cobra.Command{
		Use:               fmt.Sprintf("inspect [OPTIONS] %[1]s [%[1]s...]", map[string]string{"container": "CONTAINER", "image": "IMAGE"}[kind]),
		Short:             short,
		Args:              needs(1, -1),
		ValidArgsFunction: complete,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.inspect(cmd.Context(), args, f) },
	}
	cmd.Flags().StringVarP(&f.format, "format", "f", "", inspectFormatHelp)
	if kind == "container" {
		cmd.Flags().BoolVarP(&f.size, "size", "s", false, "Display total file sizes")
	}
	return cmd
}

// errNoObject is what docker says when a name is of nothing.
var errNoObject = errors.New("no such object")

// inspect prints what is found, and then fails if something was not.
func (a *app) inspect(ctx context.Context, names []string, f inspectFlags) error {
	kinds := []string{"container", "image", "volume"}
	if f.kind != "" {
		if !slices.Contains(kinds, f.kind) {
			return fmt.Errorf("unknown type: %q (there are container, image and volume)", f.kind)
		}
		kinds = []string{f.kind}
	}
	var objects []any
	missing := a.each(names, func(name string) error {
		for _, kind := range kinds {
			o, err := a.object(ctx, kind, name, f.size)
			if err == nil {
				objects = append(objects, o)
				return nil
			}
			if !absent(err) {
				return err
			}
			if len(kinds) == 1 && kind != "container" {
				return fmt.Errorf("no such %s: %s", kind, name)
			}
		}
		if slices.Contains(kinds, "container") {
			e, err := a.inEngines(ctx, name)
			if err != nil && !absent(err) {
				return err
			}
			if err == nil {
				objects = append(objects, engineShapeOf(e))
				return nil
			}
		}
		if len(kinds) == 1 {
			return fmt.Errorf("no such %s: %s", kinds[0], name)
		}
		return fmt.Errorf("%w: %s", errNoObject, name)
	})
	if err := present.Inspect(a.out, f.format, objects); err != nil {
		return err
	}
	return missing
}

// absent reports whether err only says that there is no such thing, or that a
// name could not even be one.
func absent(err error) bool {
	for _, target := range []error{container.ErrNotFound, image.ErrNotFound, image.ErrInvalid, storage.ErrNoVolume} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

func (a *app) object(ctx context.Context, kind, name string, size bool) (any, error) {
	switch kind {
	case "container":
		c, err := a.container(name)
		if err != nil {
			return nil, err
		}
		return a.inspectContainer(c, size)
	case "image":
		images, err := a.images()
		if err != nil {
			return nil, err
		}
		img, err := images.Resolve(name)
		if err != nil {
			return nil, err
		}
		return inspectImage(img)
	}
	store, err := a.volumes(ctx)
	if err != nil {
		return nil, err
	}
	info, err := store.Get(name)
	if err != nil {
		return nil, err
	}
	return info, nil
}
