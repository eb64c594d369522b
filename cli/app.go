// Package cli is the command manis: docker's commands, flags, output and exit codes,
// carried out by the stores of containers, images and volumes and by the monitors of
// running containers. It holds no state: any number of commands may run at
// once, and each finds the truth on disk or asks for it. One file per command; what
// commands share and what knows nothing of containers lives in the packages below.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/log"
	"github.com/spf13/cobra"

	"manis/container"
	"manis/image"
	"manis/monitor"
	"manis/place"
	"manis/pod"
)

// Exit codes, as docker's.
const (
	exitError   = 1
	exitFailed  = 125 // manis itself failed, before the container's command ran
	exitNotExec = 126
	exitNoFile  = 127
	exitSignal  = 128 // plus the signal
)

// app is one invocation: its files, and the stores, opened when first needed.
type app struct {
	in, out, err *os.File

	root, runRoot string // flags
	// host is the name in $MANIS_HOST-like settings; unused flags of docker's
	// are not here on purpose.
	found *place.Places
	// accelAsked is set when the user named an accelerator.
	accelAsked bool
	permission permission
	// evidence is nil in programs that leave deciding on it to another one.
	evidence *Evidence
}

// Main runs a command line, without the program's name, and returns the exit code.
func Main(args []string) int {
	ctx := context.Background()
	// The monitor is started for every container: it takes no way through
	// the command tree.
	if len(args) >= 2 && args[0] == "monitor" {
		return monitor.Main(ctx, args[1:])
	}
	if len(args) == 2 && args[0] == "standby" {
		return standby(ctx, args[1])
	}
	if len(args) == 2 && args[0] == monitor.RehearseAction {
		return rehearse(ctx, args[1])
	}
	// The wire's library logs what nobody can help, like an answer that came when nobody
	// waited any more. Errors that matter are returned.
	log.L.Logger.SetOutput(io.Discard)
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr}
	return a.run(ctx, args)
}

// TrustMain is Main of a program that has what deciding on evidence needs.
func TrustMain(args []string, e *Evidence) int {
	log.L.Logger.SetOutput(io.Discard)
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr, evidence: e}
	return a.run(context.Background(), args)
}

func (a *app) run(ctx context.Context, args []string) int {
	root := a.tree(args)
	root.SetArgs(args)
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	cmd, err := root.ExecuteContextC(ctx)
	return a.report(cmd, err)
}

// standby is the body of `manis standby SIZE`, which manisd starts.
func standby(ctx context.Context, size string) int {
	if err := monitor.StandbyMain(ctx, size, monitor.PodOwners{Pod: pod.Adopt}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// rehearse is the body of `manis rehearse SIZE`, which monitors start: SIZE is JSON.
func rehearse(ctx context.Context, size string) int {
	var cfg container.Config
	err := json.Unmarshal([]byte(size), &cfg)
	if err == nil {
		err = monitor.RehearseMain(ctx, &cfg)
	}
	if err != nil {
		return 1
	}
	return 0
}

// status is an error with an exit code. A nil err prints nothing.
type status struct {
	code int
	err  error
}

func (s *status) Error() string {
	if s.err == nil {
		return fmt.Sprintf("exit status %d", s.code)
	}
	return s.err.Error()
}

func (s *status) Unwrap() error { return s.err }

// fail gives err an exit code, unless it has one.
func fail(code int, err error) error {
	var s *status
	if err == nil || errors.As(err, &s) {
		return err
	}
	return &status{code, err}
}

// usageError is a mistake in the command line.
type usageError struct{ err error }

func (u *usageError) Error() string { return u.err.Error() }
func (u *usageError) Unwrap() error { return u.err }

// report prints what went wrong and returns the exit code.
func (a *app) report(cmd *cobra.Command, err error) int {
	if err == nil {
		return 0
	}
	code := exitError
	var s *status
	if errors.As(err, &s) {
		code = s.code
		if s.err == nil {
			return code
		}
		err = s.err
	}
	fmt.Fprintf(a.err, "manis: %s\n", text(err))
	var usage *usageError
	if errors.As(err, &usage) && cmd != nil {
		if cmd.Runnable() {
			fmt.Fprintf(a.err, "\nUsage:  %s\n", cmd.UseLine())
		}
		fmt.Fprintf(a.err, "\nRun '%s --help' for more information\n", cmd.CommandPath())
	} else if code == exitFailed && cmd != nil {
		fmt.Fprintf(a.err, "\nRun '%s --help' for more information\n", cmd.CommandPath())
	}
	return code
}

// each calls do for every name, prints what it returns, and goes on after an
// error: the exit code says in the end that there was one.
func (a *app) each(names []string, do func(name string) error) error {
	failed := false
	for _, name := range names {
		if err := do(name); err != nil {
			fmt.Fprintf(a.err, "manis: %s\n", text(err))
			failed = true
		}
	}
	if failed {
		return &status{exitError, nil}
	}
	return nil
}

// places finds the directories, and makes them.
func (a *app) places() (*place.Places, error) {
	if a.found != nil {
		return a.found, nil
	}
	p, err := place.Find(a.root, a.runRoot)
	if err != nil {
		return nil, err
	}
	if err := p.Make(); err != nil {
		return nil, err
	}
	a.found = p
	return p, nil
}

func (a *app) containers() (*container.Store, error) {
	p, err := a.places()
	if err != nil {
		return nil, err
	}
	return container.Open(p.Containers(), p.Run)
}

func (a *app) images() (*image.Store, error) {
	p, err := a.places()
	if err != nil {
		return nil, err
	}
	return image.Open(p.Images())
}

// container finds one container by name or id.
func (a *app) container(ref string) (*container.Container, error) {
	store, err := a.containers()
	if err != nil {
		return nil, err
	}
	return store.Get(ref)
}

// note tells the user something that is no error.
func (a *app) note(format string, args ...any) {
	fmt.Fprintf(a.err, "manis: "+strings.TrimSuffix(format, "\n")+"\n", args...)
}
