// Command validation runs the OCI runtime-tools validation suite and fails when a verdict is not
// that of docs/VALIDATION.md:
//
//	go run ./test/validation/cmd [TEST...]
//	go run ./test/validation/cmd -runtime /usr/sbin/runc -name runc
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"manis/test/validation"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	o := validation.Options{Log: os.Stderr}
	flag.StringVar(&o.Runtime, "runtime", "bin/manis", "`path` of the runtime")
	flag.StringVar(&o.Name, "name", "manis", "the runtime's column of the list")
	flag.StringVar(&o.Keep, "keep", "", "`directory` for what the tests print")
	flag.Parse()
	o.Tests = flag.Args()
	err := run(ctx, o)
	stop()
	switch {
	case errors.Is(err, validation.ErrUnsuitable):
		fmt.Println("validation: skipped:", err)
	case err != nil:
		fmt.Fprintln(os.Stderr, "validation:", err)
		os.Exit(1)
	default:
		fmt.Println("validation: as listed in docs/VALIDATION.md")
	}
}

func run(ctx context.Context, o validation.Options) (err error) {
	if o.Top, err = os.Getwd(); err != nil {
		return err
	}
	if o.Runtime, err = exec.LookPath(o.Runtime); err != nil {
		return err
	}
	if o.Runtime, err = filepath.Abs(o.Runtime); err != nil {
		return err
	}
	if o.Keep != "" {
		if err := os.MkdirAll(o.Keep, 0o755); err != nil {
			return err
		}
	}
	return validation.Run(ctx, o)
}
