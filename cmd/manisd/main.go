// Command manisd keeps virtual machines waiting, so that containers need not wait for theirs.
// It is optional: without it, or when it dies, containers start from templates.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"manis/cli/declare"
	"manis/place"
	"manis/pool"
	"manis/version"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "manisd:", err)
		os.Exit(1)
	}
}

func run() error {
	var size pool.Size
	flags := pflag.NewFlagSet("manisd", pflag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprintf(os.Stderr, "Usage:  manisd [OPTIONS]\n\nKeep virtual machines waiting for containers\n\n%s", flags.FlagUsages())
	}
	flags.IntVarP(&size.Count, "waiting", "n", 2, "Number of machines that wait")
	flags.StringVar(&size.Container.Accel, "accel", "auto", `How the VMs run ("auto", "kvm", "tcg")`)
	declare.SizeFlags(flags, &size.Container.Resources)
	show := flags.Bool("version", false, "Print the version")
	if err := flags.Parse(os.Args[1:]); err != nil {
		if err == pflag.ErrHelp {
			return nil
		}
		return err
	}
	switch {
	case *show:
		fmt.Println("manisd", version.Version)
		return nil
	case flags.NArg() > 0:
		return fmt.Errorf("%q: there are no arguments (see manisd --help)", flags.Arg(0))
	case size.Count < 1 || size.Count > 1000:
		return fmt.Errorf("%d machines: between 1 and 1000 can wait", size.Count)
	}
	places, err := place.Find("", "")
	if err != nil {
		return err
	}
	if err := places.Make(); err != nil {
		return err
	}
	manis, err := beside("manis")
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	keeper := &pool.Keeper{
		Executable: manis, Dir: places.Pool(), Environ: append(os.Environ(), places.Environ()...), Size: size,
		Log: func(format string, args ...any) { fmt.Fprintf(os.Stderr, "manisd: "+format+"\n", args...) },
	}
	keeper.Run(ctx)
	return nil
}

// beside finds a program in the directory of this one, or in PATH.
func beside(name string) (string, error) {
	self, err := os.Executable()
	if err == nil {
		if path := filepath.Join(filepath.Dir(self), name); unix.Access(path, unix.X_OK) == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("find %s beside manisd or in PATH: %w", name, err)
	}
	return path, nil
}
