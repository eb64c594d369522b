package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	grpcstatus "google.golang.org/grpc/status"
	monitorapi "manis/api/monitor"

	"manis/cli/declare"
	"manis/cli/terminal"
	"manis/container"
	"manis/monitor"
	"manis/trace"
)

// runFlags are those of run that are not about the container.
type runFlags struct {
	detach     bool
	sigProxy   bool
	detachKeys string
	snapshot   string
}

func (a *app) runCommand() *cobra.Command {
	f, o := new(declare.Flags), new(runFlags)
	cmd := &cobra.Command{
		Use:   "run [OPTIONS] IMAGE [COMMAND] [ARG...]",
		Short: "Create and run a new container from an image",
		Example: `  manis run --rm -it docker.io/library/alpine sh
  manis run -d --name web -p 8080:80 -v ./site:/usr/share/nginx/html:ro -m 256m --cpus 2 nginx`,
		Args: func(cmd *cobra.Command, args []string) error {
			if o.snapshot != "" {
				return fail(exitFailed, needs(0, 0)(cmd, args))
			}
			return fail(exitFailed, needs(1, -1)(cmd, args))
		},
		ValidArgsFunction: a.firstImage,
		RunE: func(cmd *cobra.Command, args []string) error {
			a.accelAsked = cmd.Flags().Changed("accel")
			if o.snapshot == "" {
				return a.runContainer(cmd.Context(), f, o, args)
			}
			if err := fitsSnapshot(cmd.Flags()); err != nil {
				return fail(exitFailed, err)
			}
			return a.runSnapshot(cmd.Context(), f, o)
		},
	}
	fs := cmd.Flags()
	fs.SetInterspersed(false)
	f.Register(fs)
	fs.BoolVarP(&o.detach, "detach", "d", false, "Run container in background and print container ID")
	fs.BoolVar(&o.sigProxy, "sig-proxy", true, "Proxy received signals to the process")
	fs.StringVar(&o.detachKeys, "detach-keys", terminal.DefaultDetachKeys, "Override the key sequence for detaching a container")
	fs.StringVar(&o.snapshot, "from-snapshot", "", "Go on from a snapshot instead of starting an image's program")
	a.completeDeclaration(cmd)
	return cmd
}

func (a *app) runContainer(ctx context.Context, f *declare.Flags, o *runFlags, args []string) error {
	what, err := a.runAttachment(f, o)
	if err != nil {
		return fail(exitFailed, err)
	}
	sig, ctx := catch(ctx)
	defer sig.stop()

	var spans *trace.Recorder
	if f.Trace != "" || trace.ExportWanted() {
		spans = trace.NewRecorder()
		ctx = trace.With(ctx, spans)
	}
	ctx, whole := trace.Start(ctx, "run")
	var c *container.Container
	var cfg *container.Config
	if o.snapshot != "" {
		whole.Set("snapshot", o.snapshot)
		c, cfg, err = a.createFromSnapshot(ctx, o.snapshot, f)
	} else {
		whole.Set("image", args[0])
		c, cfg, err = a.create(ctx, f, args)
	}
	if err != nil {
		return asInterrupted(ctx, fail(exitFailed, err))
	}
	var run *running
	if f.CIDFile != "" {
		defer func() {
			// A file about a container that never ran and is gone would be in the way
			// of the next attempt.
			if _, gone := c.Config(); (run == nil || !run.started) && errors.Is(gone, container.ErrNotFound) {
				os.Remove(f.CIDFile)
			}
		}()
	}
	client, err := a.spawn(ctx, c)
	if err != nil {
		a.discardUnstarted(cfg, c, ctx)
		return asInterrupted(ctx, fail(exitFailed, err))
	}
	defer client.Close()
	run = &running{a: a, c: c, cfg: cfg, client: client, signals: sig, sigProxy: o.sigProxy, spans: spans, whole: whole, showTrace: f.Trace}
	if o.detach {
		if err := run.start(ctx, nil); err != nil {
			return err
		}
		fmt.Fprintln(a.out, c.ID)
		run.report()
		return nil
	}
	code, err := run.foreground(ctx, what)
	if err != nil {
		return err
	}
	if code != 0 {
		return &status{code, nil}
	}
	return nil
}

// runAttachment decides which streams a run joins.
func (a *app) runAttachment(f *declare.Flags, o *runFlags) (attachment, error) {
	what := attachment{tty: f.TTY}
	keys, err := terminal.ParseKeys(o.detachKeys)
	if err != nil {
		return what, err
	}
	what.keys = keys
	if o.detach {
		if len(f.Attach) > 0 {
			return what, errors.New("conflicting options: cannot specify both --attach and --detach")
		}
		return what, nil
	}
	if len(f.Attach) == 0 {
		what.in, what.out, what.err = f.Stdin, true, true
	}
	for _, s := range f.Attach {
		switch strings.ToLower(s) {
		case "stdin":
			what.in = true
			f.Stdin = true
		case "stdout":
			what.out = true
		case "stderr":
			what.err = true
		default:
			return what, fmt.Errorf("invalid argument %q for \"-a, --attach\" flag: valid streams are STDIN, STDOUT and STDERR", s)
		}
	}
	if what.tty && what.in && !terminal.Is(a.in) {
		return what, errors.New("cannot attach stdin to a TTY-enabled container because stdin is not a terminal (leave -t out)")
	}
	f.StdinOnce = f.Stdin && what.in
	return what, nil
}

// running is a container that this process has begun to start.
type running struct {
	a         *app
	c         *container.Container
	cfg       *container.Config
	client    *monitor.Client
	signals   *signals
	sigProxy  bool
	spans     *trace.Recorder
	whole     *trace.Active
	showTrace declare.TraceForm
	// keep leaves the container where it is whatever happens: it was there
	// before this command.
	keep bool
	// started is set once the first process runs.
	started bool
}

// ended is what a monitor says of a container's end.
type ended struct {
	*monitorapi.WaitResponse
	err error
}

// start lets the first process run, with a session's streams if there is one. On an
// error nothing of a --rm container is left.
func (r *running) start(ctx context.Context, s *session) error {
	req := new(monitorapi.StartRequest)
	if s != nil {
		rows, columns := s.size()
		req.Attach = &monitorapi.AttachRequest{Streams: s.tokens, Rows: rows, Columns: columns}
	}
	startCtx, span := trace.Start(ctx, "start")
	resp, err := r.client.API().Start(startCtx, req)
	span.End()
	if err == nil {
		r.started = true
		if r.spans != nil {
			if err := trace.Join(startCtx, resp.Trace); err != nil {
				r.a.note("the monitor's part of the trace: %s", err)
			}
		}
		if s == nil {
			r.whole.End()
		}
		return nil
	}
	err = explained(r.client, err)
	code := execCode(err, exitFailed)
	if ctx.Err() != nil {
		// Interrupted while the machine boots: the monitor gives up when this
		// connection ends, but the container must be gone when we are.
		r.client.Close()
		if !r.keep {
			r.a.discard(r.c)
		}
		return asInterrupted(ctx, err)
	}
	r.client.Close()
	if r.cfg.AutoRemove && !r.keep {
		r.a.discard(r.c)
	}
	return fail(code, err)
}

// discardUnstarted removes a container that run has made in vain: docker keeps it
// without --rm when its start failed, but a Ctrl-C leaves nothing.
func (a *app) discardUnstarted(cfg *container.Config, c *container.Container, ctx context.Context) {
	if cfg.AutoRemove || ctx.Err() != nil {
		a.discard(c)
	}
}

// foreground starts the container, joins it, and returns its exit code.
func (r *running) foreground(ctx context.Context, what attachment) (code int, err error) {
	s, err := r.a.open(r.client, what)
	if err != nil {
		return 0, fail(exitFailed, err)
	}
	// Asked before the start, so that no end is missed.
	waitCtx, stopWaiting := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWaiting()
	finished := r.wait(waitCtx)
	if err := r.start(ctx, s); err != nil {
		s.close()
		return 0, err
	}
	forward := func(unix.Signal) {}
	if r.sigProxy {
		forward = r.forward
	}
	r.signals.to(forward)
	started := time.Now()
	s.first = func() {
		trace.Record(ctx, "first byte", started, time.Now())
		r.whole.End()
	}
	err = s.run(context.WithoutCancel(ctx))
	switch {
	case errors.Is(err, terminal.ErrDetached):
		s.firstByte()
		r.report()
		return 0, nil
	case errors.Is(err, errReaderGone):
		// As a program that writes to a closed pipe ends: `manis run ... | head`.
		r.kill(unix.SIGKILL)
		<-finished
		return exitSignal + int(unix.SIGPIPE), nil
	case err != nil:
		return 0, fail(exitFailed, err)
	}
	end := <-finished
	s.firstByte() // of nothing
	r.report()
	if end.err != nil {
		if r.cfg.AutoRemove {
			r.a.discard(r.c)
		}
		return 0, fail(exitFailed, end.err)
	}
	if end.Error != "" {
		r.a.note("%s", end.Error)
	}
	return int(end.ExitCode), nil
}

// wait asks for the container's end, with --rm also for its removal.
func (r *running) wait(ctx context.Context) <-chan ended {
	condition := monitorapi.WaitRequest_NEXT_EXIT
	if r.cfg.AutoRemove {
		condition = monitorapi.WaitRequest_NOT_RUNNING
	}
	finished := make(chan ended, 1)
	go func() {
		resp, err := r.client.API().Wait(ctx, &monitorapi.WaitRequest{Condition: condition})
		if err != nil {
			err = explained(r.client, err)
		}
		finished <- ended{resp, err}
	}()
	return finished
}

// forward passes a signal of ours on to the container's process.
func (r *running) forward(sig unix.Signal) {
	if sig == unix.SIGCONT && r.cfg.TTY {
		return // ours: the terminal is back
	}
	r.kill(sig)
}

func (r *running) kill(sig unix.Signal) {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
	defer cancel()
	// It fails when the process has ended: then so does the session.
	r.client.API().Kill(ctx, &monitorapi.KillRequest{Signal: uint32(sig)})
}

// report shows the trace, if one was asked for.
func (r *running) report() {
	if r.spans == nil {
		return
	}
	r.a.showTrace(r.spans.Spans(), r.showTrace)
}

// lost reports whether the monitor has hung up.
func lost(client *monitor.Client) bool {
	select {
	case <-client.Done():
		return true
	default:
		return false
	}
}

// explained is the error of a request to a monitor: what it has answered, also where it has ended since, or else its last words.
func explained(client *monitor.Client, err error) error {
	if _, answered := grpcstatus.FromError(err); !answered && lost(client) {
		return client.Lost()
	}
	return err
}

// tagged is a reference with the tag that it means.
func tagged(ref string) string {
	if strings.Contains(ref, "@") {
		return ref
	}
	last := ref[strings.LastIndexByte(ref, '/')+1:]
	if !strings.Contains(last, ":") {
		ref += ":latest"
	}
	return ref
}
