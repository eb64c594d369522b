package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	monitorapi "manis/api/monitor"
	"manis/cli/filter"
	"manis/cli/journal"
	"manis/container"
	"manis/monitor"
)

type logsFlags struct {
	follow, timestamps, details bool
	since, until, tail          string
}

func (a *app) logsCommand() *cobra.Command {
	var f logsFlags
	cmd := &cobra.Command{
		Use:               "logs [OPTIONS] CONTAINER",
		Short:             "Fetch the logs of a container",
		Args:              needs(1, 1),
		ValidArgsFunction: a.containerNames(anyStatus),
		RunE: func(cmd *cobra.Command, args []string) error {
			sig, ctx := catch(cmd.Context())
			defer sig.stop()
			return asInterrupted(ctx, a.logs(ctx, args[0], f))
		},
	}
	fs := cmd.Flags()
	fs.BoolVar(&f.details, "details", false, "Show extra details provided to logs")
	fs.BoolVarP(&f.follow, "follow", "f", false, "Follow log output")
	fs.StringVar(&f.since, "since", "", `Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)`)
	fs.StringVarP(&f.tail, "tail", "n", "all", "Number of lines to show from the end of the logs")
	fs.BoolVarP(&f.timestamps, "timestamps", "t", false, "Show timestamps")
	fs.StringVar(&f.until, "until", "", `Show logs before a timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)`)
	return cmd
}

// logTime is docker's time before a line: RFC 3339 with nine digits.
const logTime = "2006-01-02T15:04:05.000000000Z07:00"

func (a *app) logs(ctx context.Context, name string, f logsFlags) error {
	q := journal.Query{Tail: -1}
	now := time.Now()
	var err error
	if f.since != "" {
		if q.Since, err = filter.Time(f.since, now); err != nil {
			return fmt.Errorf("invalid value for --since: %w", err)
		}
	}
	if f.until != "" {
		if q.Until, err = filter.Time(f.until, now); err != nil {
			return fmt.Errorf("invalid value for --until: %w", err)
		}
	}
	if f.tail != "all" {
		// As docker, a number that is none shows everything.
		if n, err := strconv.Atoi(f.tail); err == nil && n >= 0 {
			q.Tail = n
		}
	}
	c, err := a.container(name)
	if e, err := a.orEngines(ctx, name, err); err != nil {
		return err
	} else if e != nil {
		return a.logsOfEngine(ctx, e, q, f)
	}
	cfg, err := c.Config()
	if err != nil {
		return err
	}
	if cfg.Log.Driver == "none" {
		return errors.New("configured logging driver does not support reading (the container was started with --log-driver none)")
	}
	if f.follow {
		ended, stop, err := a.untilEnd(ctx, c)
		if err != nil {
			return err
		}
		defer stop()
		q.Ended = ended
	}
	out, errOut := bufio.NewWriter(a.out), bufio.NewWriter(a.err)
	err = journal.Read(ctx, monitor.LogDir(c.Dir()), q, func(r *journal.Record) error {
		w := out
		if r.Stream == "stderr" && !cfg.TTY {
			w = errOut
		}
		if err := writeRecord(w, r, f); err != nil {
			return err
		}
		if f.follow {
			return w.Flush()
		}
		return nil
	})
	return errors.Join(err, out.Flush(), errOut.Flush())
}

func writeRecord(w io.Writer, r *journal.Record, f logsFlags) error {
	var head strings.Builder
	if f.timestamps {
		head.WriteString(r.Time.UTC().Format(logTime) + " ")
	}
	if f.details {
		var attrs []string
		for _, k := range slices.Sorted(maps.Keys(r.Attrs)) {
			attrs = append(attrs, k+"="+r.Attrs[k])
		}
		head.WriteString(strings.Join(attrs, ",") + " ")
	}
	_, err := io.WriteString(w, head.String()+r.Log)
	return err
}

// untilEnd returns a channel that is closed when the container has ended and
// everything it said is written.
func (a *app) untilEnd(ctx context.Context, c *container.Container) (_ <-chan struct{}, stop func(), err error) {
	ended := make(chan struct{})
	client, err := monitor.Connect(ctx, c)
	if errors.Is(err, monitor.ErrNotRunning) {
		close(ended)
		return ended, func() {}, nil
	}
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		client.API().Wait(ctx, &monitorapi.WaitRequest{Condition: monitorapi.WaitRequest_NOT_RUNNING})
		if ctx.Err() == nil {
			close(ended)
		}
	}()
	return ended, func() {
		cancel()
		client.Close()
		<-done
	}, nil
}
