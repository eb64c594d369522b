package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// pooled is manis with a daemon that keeps machines waiting.
type pooled struct {
	*manis
	run    string
	size   int
	daemon *exec.Cmd
}

// startPool starts the daemon beside m's binary.
func startPool(m *manis, run string, size int) (*pooled, error) {
	path := filepath.Join(filepath.Dir(m.binary), "manisd")
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("%w (make build)", err)
	}
	p := &pooled{manis: m, run: run, size: size, daemon: exec.Command(path, "-n", strconv.Itoa(size))}
	p.daemon.Env = m.env
	p.daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	return p, p.daemon.Start()
}

func (p *pooled) stop() {
	p.daemon.Process.Signal(syscall.SIGCONT)
	p.daemon.Process.Signal(syscall.SIGTERM)
	p.daemon.Wait()
}

// fill waits until the pool is full.
func (p *pooled) fill(ctx context.Context) error {
	const most = 2 * time.Minute // it takes 3 s of a processor that nobody else wants
	for end := time.Now().Add(most); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if found, _ := filepath.Glob(filepath.Join(p.run, "pool", "[0-9a-f]*-*")); len(found) >= p.size {
			time.Sleep(500 * time.Millisecond) // the last one's last work before it waits
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return fmt.Errorf("no machine waits %v after it was wanted (manisd says why)", most)
}

// paused is a pool whose daemon fills it before each command and sleeps from then on, so that
// it disturbs nobody's measurement.
type paused struct{ *pooled }

func (p paused) command(ctx context.Context, t task) (*exec.Cmd, func()) {
	p.daemon.Process.Signal(syscall.SIGCONT)
	err := p.fill(ctx)
	p.daemon.Process.Signal(syscall.SIGSTOP)
	cmd, done := p.pooled.command(ctx, t)
	cmd.Err = errors.Join(cmd.Err, err)
	return cmd, done
}

// check refuses a start that found no machine waiting and went another way.
func (p paused) check(s *start) error {
	if !s.claimed() {
		return errors.New("a start did not come out of the pool")
	}
	return nil
}
