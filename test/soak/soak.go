// Package soak starts and ends containers in all ways, over and over, and then looks whether
// anything of them is left on the host: processes, descriptors of the daemon, memory files, control
// groups, files, mounts, sockets. It uses Manis as its users do, by its command line, in an
// installation of its own.
package soak

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"manis/test/census"
)

// Options say how long and with what.
type Options struct {
	// Binary is manis; manisd is beside it.
	Binary string
	// Cycles is how many containers there will be, after one of each kind whose traces
	// are taken as what an installation looks like that was used.
	Cycles int
	// Waiting is how many machines manisd keeps waiting; with 0 there is no manisd.
	Waiting int
	// Log is told how it goes.
	Log io.Writer

	// cycles take turns; nil is all that there are.
	cycles []cycle
	// restTime is how long things may take to come to rest after the last container: a machine
	// that waits is made anew, a process that was killed is noticed. 0 is ample.
	restTime time.Duration
}

// maxFailures is how many cycles may fail before there is no use in going on.
const maxFailures = 10

// Run makes the cycles, and returns an error that says what failed or was left behind.
func Run(ctx context.Context, o Options) (err error) {
	if o.cycles == nil {
		o.cycles = cycles
	}
	if o.restTime == 0 {
		o.restTime = 5 * time.Minute
	}
	in, err := install(ctx, o.Binary)
	if err != nil {
		return err
	}
	defer in.remove()
	if o.Waiting > 0 {
		if err := in.startDaemon(o.Waiting); err != nil {
			return fmt.Errorf("start manisd: %w", err)
		}
	}
	s := &soaking{Options: o, in: in}
	for _, c := range o.cycles {
		s.cycle(ctx, c)
	}
	if err := s.failed(ctx); err != nil {
		return err
	}
	before, err := s.rest(ctx, nil)
	if err != nil {
		return err
	}
	began, told := time.Now(), time.Now()
	for i := range o.Cycles {
		s.cycle(ctx, o.cycles[i%len(o.cycles)])
		if ctx.Err() != nil || len(s.failures) >= maxFailures {
			break
		}
		if time.Since(told) > time.Minute || i+1 == o.Cycles {
			told = time.Now()
			fmt.Fprintf(o.Log, "soak: %d of %d, %.2f s each; manisd: %s\n", i+1, o.Cycles, time.Since(began).Seconds()/float64(i+1), s.daemon())
		}
	}
	err = s.failed(ctx)
	_, left := s.rest(ctx, before)
	return errors.Join(err, left, s.end())
}

// soaking is a run that is going on.
type soaking struct {
	Options
	in       *installation
	count    int
	failures []error
}

func (s *soaking) cycle(ctx context.Context, c cycle) {
	s.count++
	container := fmt.Sprintf("soak-%d", s.count)
	if err := c.live(ctx, s.in, container); err != nil && ctx.Err() == nil {
		err = fmt.Errorf("cycle %d, %s: %w", s.count, c.name, err)
		fmt.Fprintln(s.Log, "soak:", err)
		s.failures = append(s.failures, err)
		s.in.manis(ctx, "rm", "-f", "-v", container)
	}
}

func (s *soaking) failed(ctx context.Context) error {
	return errors.Join(append(s.failures, ctx.Err())...)
}

// rest waits until there is no more than before, or, when nothing is known of before, until
// two counts are the same. What there is more in the end is the error.
func (s *soaking) rest(ctx context.Context, before census.Census) (census.Census, error) {
	var more []string
	last := s.in.Take()
	for end := time.Now().Add(s.restTime); time.Now().Before(end) && ctx.Err() == nil; {
		time.Sleep(time.Second)
		now := s.in.Take()
		switch {
		case !s.in.full():
			more = []string{"the pool is not full: " + lastWords(s.in)}
		case before != nil:
			if more = now.More(before); len(more) == 0 {
				return now, nil
			}
		default:
			if more = append(now.More(last), last.More(now)...); len(more) == 0 {
				return now, nil
			}
		}
		last = now
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("left behind after %d containers:\n  %s", s.count, strings.Join(more, "\n  "))
}

// end ends the daemon, after which an installation has no processes, sockets and temporary files.
func (s *soaking) end() error {
	s.in.stopDaemon()
	var left []string
	for end := time.Now().Add(s.restTime / 3); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		left = nil
		for pid, command := range s.in.Processes() {
			left = append(left, fmt.Sprintf("process %d %s", pid, command))
		}
		for _, dir := range append([]string{s.in.Run, s.in.Root + "/containers"}, s.in.Further...) {
			entries, _ := os.ReadDir(dir)
			for _, e := range entries {
				if e.Name() != "lock" {
					left = append(left, dir+"/"+e.Name())
				}
			}
		}
		if len(left) == 0 {
			return nil
		}
	}
	return fmt.Errorf("left behind without a daemon:\n  %s", strings.Join(left, "\n  "))
}

// daemon describes what the daemon has.
func (s *soaking) daemon() string {
	if s.in.Daemon == 0 {
		return "none"
	}
	descriptors, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.in.Daemon))
	resident := "?"
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.in.Daemon))
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			resident = strings.TrimSpace(value)
		}
	}
	return fmt.Sprintf("%d descriptors, %s", len(descriptors), resident)
}

// lastWords are the end of what the daemon has said.
func lastWords(in *installation) string {
	const most = 300
	said, _ := os.ReadFile(in.said())
	said = bytes.TrimSpace(said)
	return string(said[max(0, len(said)-most):])
}
