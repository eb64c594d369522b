// Command debimage builds one of the images of test/debimage:
//
//	go run ./test/debimage/cmd busybox build/busybox           an OCI layout
//	go run ./test/debimage/cmd -archive web.tar nginx          a `docker save` archive
//	go run ./test/debimage/cmd -include git,make debian DIR    more packages
//	go run ./test/debimage/cmd -push localhost:5000/db redis   a registry
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"

	"manis/test/debimage"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "debimage:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("debimage", flag.ExitOnError)
	archive := flags.String("archive", "", "write a docker-save `file`")
	push := flags.String("push", "", "push to this `reference`")
	tag := flags.String("tag", "", "`name` to note in the layout or archive (default NAME:latest)")
	include := flags.String("include", "", "further Debian `packages`, by comma")
	quiet := flags.Bool("q", false, "do not show what debootstrap and apt print")
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: debimage [flags] NAME [LAYOUT-DIRECTORY]\n\nimages:")
		table := tabwriter.NewWriter(flags.Output(), 0, 0, 3, ' ', 0)
		for _, r := range debimage.Recipes() {
			fmt.Fprintf(table, "  %s\t%s\n", r.Name, r.About)
		}
		table.Flush()
		fmt.Fprintln(flags.Output(), "\nflags:")
		flags.PrintDefaults()
	}
	flags.Parse(args)
	if flags.NArg() < 1 || flags.NArg() > 2 {
		flags.Usage()
		os.Exit(2)
	}
	recipe, err := debimage.Find(flags.Arg(0))
	if err != nil {
		return err
	}
	if *include != "" {
		recipe = recipe.Including(strings.Split(*include, ",")...)
	}
	if *tag == "" {
		*tag = recipe.Name + ":latest"
	}
	builder, err := debimage.New(os.Stderr)
	if err != nil {
		return err
	}
	if *quiet {
		builder.Log = nil
	}
	img, err := builder.Build(ctx, recipe)
	if err != nil {
		return err
	}
	if dir := flags.Arg(1); dir != "" {
		if err := debimage.WriteLayout(dir, img, *tag); err != nil {
			return err
		}
	}
	if *archive != "" {
		if err := debimage.WriteArchive(*archive, img, *tag); err != nil {
			return err
		}
	}
	if *push != "" {
		return debimage.Push(ctx, *push, img)
	}
	return nil
}
