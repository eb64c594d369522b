package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/log"
	"github.com/spf13/cobra"

	"manis/place"
	"manis/pod"
)

// app is one invocation.
type app struct {
	in, out, err *os.File
	places       *place.Places
	store        *store

	root, logPath, logFormat, rootless string
	debug, systemdCgroup               bool
}

// exit is an error that only is an exit code.
type exit int

func (e exit) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// coded is an error with an exit code other than 1.
type coded struct {
	code int
	error
}

func (c *coded) Unwrap() error { return c.error }

// Main runs a command line, without the program's name, and returns the exit code.
func Main(ctx context.Context, args []string) int {
	log.L.Logger.SetOutput(io.Discard)
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr}
	root := a.tree()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	var code exit
	if errors.As(err, &code) {
		return int(code)
	}
	a.report(cmd, err)
	var c *coded
	if errors.As(err, &c) {
		return c.code
	}
	return 1
}

// report says what went wrong, on standard error and in the log where there is one.
func (a *app) report(cmd *cobra.Command, err error) {
	message := err.Error()
	if cmd != nil && cmd.HasParent() {
		message = fmt.Sprintf("manis %s failed: %s", cmd.Name(), message)
	}
	a.log("error", message)
	fmt.Fprintln(a.err, message)
}

// log adds a line to the log file. Callers of runc read the last error from it.
func (a *app) log(level, message string) {
	if a.logPath == "" || a.logPath == "/dev/null" {
		return
	}
	f, err := os.OpenFile(a.logPath, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return
	}
	defer f.Close()
	now := time.Now().Format(time.RFC3339)
	if a.logFormat != "json" {
		fmt.Fprintf(f, "time=%q level=%s msg=%q\n", now, level, message)
		return
	}
	// encoding/json would write < and > as escapes, which loses nothing.
	line, _ := json.Marshal(struct {
		Level string `json:"level"`
		Msg   string `json:"msg"`
		Time  string `json:"time"`
	}{level, message, now})
	f.Write(append(line, '\n'))
}

// open finds the directories.
func (a *app) open() error {
	if a.store != nil {
		return nil
	}
	places, err := place.Find("", "")
	if err != nil {
		return err
	}
	a.places = places
	root := a.root
	if root == "" {
		root = defaultRoot(places)
	}
	if root, err = filepath.Abs(root); err != nil {
		return fmt.Errorf("find the directory of containers: %w", err)
	}
	a.store = &store{root}
	return nil
}

// defaultRoot is where containers are remembered without --root.
func defaultRoot(places *place.Places) string { return filepath.Join(places.Run, "oci") }

// load finds a container and its pod.
func (a *app) load(id string) (*state, *pod.Client, error) {
	if err := a.open(); err != nil {
		return nil, nil, err
	}
	st, err := a.store.load(id)
	if err != nil {
		return nil, nil, err
	}
	return st, pod.At(pod.Socket(st.Pod)), nil
}

// status asks what became of a container. Where nobody answers it has stopped.
func status(ctx context.Context, st *state, c *pod.Client) (*pod.Status, error) {
	s, err := c.Status(ctx, st.ID)
	if errors.Is(err, pod.ErrGone) || errors.Is(err, pod.ErrNotFound) {
		return &pod.Status{Status: "stopped"}, nil
	}
	return s, err
}

// tree is the command line.
func (a *app) tree() *cobra.Command {
	root := &cobra.Command{
		Use: "manis", Short: "Run OCI bundles, each pod in a virtual machine of its own",
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.logFormat != "text" && a.logFormat != "json" {
				return fmt.Errorf("unknown log-format %q (text and json are possible)", a.logFormat)
			}
			return nil
		},
	}
	root.SetOut(a.out)
	root.SetErr(a.err)
	flags := root.PersistentFlags()
	flags.StringVar(&a.root, "root", "", "directory of the containers' state")
	flags.StringVar(&a.logPath, "log", "", "file to write the log to (default: standard error)")
	flags.StringVar(&a.logFormat, "log-format", "text", "format of the log: text or json")
	flags.BoolVar(&a.debug, "debug", false, "log more")
	flags.BoolVar(&a.systemdCgroup, "systemd-cgroup", false, "cgroupsPath is slice:prefix:name, for systemd")
	flags.StringVar(&a.rootless, "rootless", "auto", "accepted: whether root is missing is found out")
	flags.String("criu", "", "accepted: checkpoints are not made by CRIU")
	flags.MarkHidden("criu")
	root.AddCommand(
		a.createCommand(), a.runCommand(), a.startCommand(), a.stateCommand(), a.killCommand(), a.deleteCommand(),
		a.execCommand(), a.pauseCommand(), a.resumeCommand(), a.listCommand(), a.psCommand(), a.eventsCommand(),
		a.updateCommand(), a.specCommand(), a.featuresCommand(), a.checkpointCommand(), a.restoreCommand(),
	)
	return root
}

// one is the check of a verb that takes a container's id.
func one(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return fmt.Errorf("%q requires exactly 1 argument: the container's id", cmd.CommandPath())
	case len(args) > 1:
		return fmt.Errorf("%q requires exactly 1 argument, it got %d: %s", cmd.CommandPath(), len(args), strings.Join(args, " "))
	}
	return nil
}
