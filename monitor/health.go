package monitor

import (
	"context"
	"net"
	"sync"
	"time"

	"manis/api/agent"
	"manis/container"
	"manis/container/spec"
)

// Docker's defaults of a health check.
const (
	healthInterval      = 30 * time.Second
	healthTimeout       = 30 * time.Second
	healthStartInterval = 5 * time.Second
	healthRetries       = 3
	healthResults       = 5
	healthOutput        = 4096
)

// watchHealth runs the container's health check again and again until the
// round ends; the function returned waits for that.
func (m *Monitor) watchHealth(ctx context.Context, r *round) (wait func()) {
	h := m.cfg.Health
	if h == nil || len(h.Test) == 0 || h.Test[0] == "NONE" {
		return func() {}
	}
	check := withHealthDefaults(*h)
	m.mu.Lock()
	m.state.Health = &container.HealthState{Status: "starting"}
	m.save()
	m.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		began := time.Now()
		for {
			pause := check.Interval
			if m.healthStatus() == "starting" && time.Since(began) < check.StartPeriod {
				pause = check.StartInterval
			}
			select {
			case <-time.After(pause):
			case <-r.ended:
				return
			}
			if m.paused() {
				continue
			}
			m.judge(check, m.probe(ctx, r, check), time.Since(began) < check.StartPeriod)
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}

func withHealthDefaults(h container.Health) container.Health {
	for _, d := range []struct {
		value *time.Duration
		def   time.Duration
	}{{&h.Interval, healthInterval}, {&h.Timeout, healthTimeout}, {&h.StartInterval, healthStartInterval}} {
		if *d.value <= 0 {
			*d.value = d.def
		}
	}
	if h.Retries <= 0 {
		h.Retries = healthRetries
	}
	return h
}

func (m *Monitor) healthStatus() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state.Health.Status
}

// judge applies docker's rules: one success is healthy, Retries failures in a row
// are unhealthy, failures during the start period do not count.
func (m *Monitor) judge(check container.Health, result container.HealthResult, starting bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := *m.state.Health
	switch {
	case result.ExitCode == 0:
		s.Status, s.FailingStreak = "healthy", 0
	case starting && s.Status == "starting":
	default:
		s.FailingStreak++
		if s.FailingStreak >= check.Retries {
			s.Status = "unhealthy"
		}
	}
	s.Log = append(append([]container.HealthResult(nil), s.Log...), result)
	if len(s.Log) > healthResults {
		s.Log = s.Log[len(s.Log)-healthResults:]
	}
	m.state.Health = &s
	m.save()
	m.change()
}

// probe runs the check once.
func (m *Monitor) probe(ctx context.Context, r *round, check container.Health) container.HealthResult {
	result := container.HealthResult{Start: time.Now().UTC()}
	fail := func(text string) container.HealthResult {
		result.End, result.ExitCode, result.Output = time.Now().UTC(), -1, text
		return result
	}
	args := check.Test[1:]
	if check.Test[0] == "CMD-SHELL" {
		args = append([]string{"/bin/sh", "-c"}, args...)
	}
	process, err := spec.BuildExec(m.cfg, spec.ExecOptions{Args: args})
	if err != nil {
		return fail(err.Error())
	}
	ctx, cancel := context.WithTimeout(ctx, check.Timeout)
	defer cancel()
	var text beginning
	var reading sync.WaitGroup
	var pipes []net.Conn
	pipe := func() net.Conn {
		ours, theirs := net.Pipe()
		pipes = append(pipes, ours)
		reading.Go(func() { text.readFrom(ours) })
		return theirs
	}
	finish := func() {
		for _, p := range pipes {
			p.Close()
		}
		reading.Wait()
	}
	id, err := m.exec(ctx, r, process, claimed{stdout: pipe(), stderr: pipe()})
	if err != nil {
		finish()
		return fail(message(err))
	}
	x, err := r.execs.get(id)
	if err != nil {
		return fail(err.Error())
	}
	defer r.execs.drop(id)
	select {
	case <-x.done:
	case <-ctx.Done():
		killCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTime)
		defer cancel()
		r.sandbox.Signal(killCtx, &agent.SignalRequest{Id: containerID, ExecId: id, Signal: 9})
		finish()
		return fail("health check exceeded its timeout of " + check.Timeout.String())
	}
	finish()
	result.End, result.Output = time.Now().UTC(), string(text.kept)
	if x.err != nil {
		return fail(message(x.err))
	}
	result.ExitCode = int(x.exit.ExitCode & 0xff)
	return result
}

// beginning keeps the first bytes of what several readers deliver.
type beginning struct {
	mu   sync.Mutex
	kept []byte
}

func (b *beginning) readFrom(c net.Conn) {
	buf := make([]byte, healthOutput)
	for {
		n, err := c.Read(buf)
		b.mu.Lock()
		b.kept = append(b.kept, buf[:min(n, healthOutput-len(b.kept))]...)
		b.mu.Unlock()
		if err != nil {
			return
		}
	}
}
