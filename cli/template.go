package cli

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"manis/cli/declare"
	"manis/cli/present"
	"manis/container"
	"manis/monitor"
	"manis/place"
	"manis/template"
	"manis/vmm"
	"manis/vmm/qemu"
)

func (a *app) templateCommand() *cobra.Command {
	return a.noun("template", "Manage templates of virtual machines",
		a.templateBuildCommand(), a.templateInspectCommand(), a.templateListCommand(), a.templateRemoveCommand())
}

func (a *app) templates() (*template.Store, error) {
	places, err := a.places()
	if err != nil {
		return nil, err
	}
	return monitor.Templates(places, monitor.Driver(places)), nil
}

// announceTemplate tells who waits for a first start what it is waiting for.
func (a *app) announceTemplate(places *place.Places, cfg *container.Config, driver *qemu.Driver, vm vmm.Config) {
	if cfg.Boot != "cold" && !monitor.Templates(places, driver).Has(monitor.TemplateOf(vm)) {
		a.note("building a template for machines with %s and %d CPUs (once; later starts go on from it)", units.BytesSize(float64(vm.MemoryBytes)), vm.VCPUs)
	}
}

func (a *app) templateBuildCommand() *cobra.Command {
	var cfg container.Config
	cmd := &cobra.Command{
		Use:   "build [OPTIONS]",
		Short: "Build the template for containers of a size, if it is not there",
		Args:  needs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			sig, ctx := catch(cmd.Context())
			defer sig.stop()
			places, err := a.places()
			if err != nil {
				return err
			}
			if err := places.Make(); err != nil {
				return err
			}
			vm, driver, err := monitor.Machine(ctx, places, &cfg)
			if err != nil {
				return err
			}
			t, err := monitor.Templates(places, driver).Get(ctx, monitor.TemplateOf(vm), func() {
				a.note("building a template for machines with %s and %d CPUs", units.BytesSize(float64(vm.MemoryBytes)), vm.VCPUs)
			})
			if err != nil {
				return asInterrupted(ctx, err)
			}
			defer t.Close()
			if err := monitor.Exercise(ctx, places, driver, t, monitor.TemplateOf(vm), true); err != nil {
				return asInterrupted(ctx, err)
			}
			fmt.Fprintln(a.out, t.Info.Key[:shortKey])
			return nil
		},
	}
	cmd.Flags().StringVar(&cfg.Accel, "accel", "auto", `How the VM runs ("auto", "kvm", "tcg")`)
	declare.SizeFlags(cmd.Flags(), &cfg.Resources)
	return cmd
}

// templateKeys completes the keys of templates.
func (a *app) templateKeys(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	var keys []string
	if store, err := a.templates(); err == nil {
		all, _ := store.List()
		for _, i := range all {
			keys = append(keys, i.Key[:shortKey])
		}
	}
	return keys, cobra.ShellCompDirectiveNoFileComp
}

// shortKey is how much of a key is shown.
const shortKey = 12

// templateRow is one line of template ls.
type templateRow struct {
	Key, Memory, CPUs, Accel, Created, LastUsed, Size string
}

var templateHeader = templateRow{"TEMPLATE", "MEMORY", "CPUS", "ACCEL", "CREATED", "LAST USED", "SIZE"}

func (a *app) templateListCommand() *cobra.Command {
	var format string
	var quiet bool
	cmd := &cobra.Command{
		Use:     "ls [OPTIONS]",
		Aliases: []string{"list"},
		Short:   "List templates",
		Args:    needs(0, 0),
		RunE: func(*cobra.Command, []string) error {
			store, err := a.templates()
			if err != nil {
				return err
			}
			all, err := store.List()
			if err != nil {
				return err
			}
			var rows []templateRow
			now := time.Now()
			for _, i := range all {
				if quiet {
					fmt.Fprintln(a.out, i.Key[:shortKey])
					continue
				}
				rows = append(rows, templateRow{
					Key: i.Key[:shortKey], Memory: units.BytesSize(float64(i.MemoryBytes)), CPUs: fmt.Sprint(i.VCPUs), Accel: string(i.Accel),
					Created: ago(i.Created, now), LastUsed: ago(store.LastUse(i.Key), now), Size: humanSize(store.Bytes(i.Key)),
				})
			}
			if quiet {
				return nil
			}
			return present.List(a.out, format,
				`{{.Key}}\t{{.Memory}}\t{{.CPUs}}\t{{.Accel}}\t{{.Created}}\t{{.LastUsed}}\t{{.Size}}`, templateHeader, rows)
		},
	}
	cmd.Flags().StringVar(&format, "format", "", formatHelp)
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Only display keys")
	return cmd
}

func (a *app) templateInspectCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:               "inspect [OPTIONS] TEMPLATE [TEMPLATE...]",
		Short:             "Display what templates were made of",
		Args:              needs(1, -1),
		ValidArgsFunction: a.templateKeys,
		RunE: func(_ *cobra.Command, args []string) error {
			store, err := a.templates()
			if err != nil {
				return err
			}
			var found []any
			missing := a.each(args, func(prefix string) error {
				i, err := store.Find(prefix)
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

func (a *app) templateRemoveCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:               "rm [OPTIONS] [TEMPLATE...]",
		Aliases:           []string{"remove"},
		Short:             "Remove templates that no container uses",
		Args:              needs(0, -1),
		ValidArgsFunction: a.templateKeys,
		RunE: func(_ *cobra.Command, args []string) error {
			store, err := a.templates()
			if err != nil {
				return err
			}
			if all == (len(args) > 0) {
				return &usageError{errors.New("name templates, or give --all")}
			}
			if all {
				list, err := store.List()
				if err != nil {
					return err
				}
				for _, i := range list {
					args = append(args, i.Key)
				}
			}
			return a.each(args, func(prefix string) error {
				i, err := store.Find(strings.ToLower(prefix))
				if err == nil {
					err = store.Remove(i.Key)
				}
				if err == nil {
					fmt.Fprintln(a.out, i.Key[:shortKey])
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "Remove all templates that no container uses")
	return cmd
}
