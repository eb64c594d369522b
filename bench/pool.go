package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// pooled is manis with a daemon that keeps one machine waiting. The daemon fills its pool
// before and after each command and sleeps in between, so that it disturbs nobody's
// measurement but its own.
type pooled struct {
	*manis
	run    string
	daemon *exec.Cmd
}

// startPool starts the daemon beside m's binary.
func startPool(m *manis, run string) (*pooled, error) {
	path := filepath.Join(filepath.Dir(m.binary), "manisd")
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("%w (make build)", err)
	}
	p := &pooled{manis: m, run: run, daemon: exec.Command(path, "-n", "1")}
	p.daemon.Env = m.env
	p.daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	return p, p.daemon.Start()
}

func (p *pooled) stop() {
	p.daemon.Process.Signal(syscall.SIGCONT)
	p.daemon.Process.Signal(syscall.SIGTERM)
	p.daemon.Wait()
}

// fill waits until a machine waits, and lets the daemon sleep.
func (p *pooled) fill(ctx context.Context) {
	p.daemon.Process.Signal(syscall.SIGCONT)
	for end := time.Now().Add(time.Minute); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(100 * time.Millisecond) {
		if found, _ := filepath.Glob(filepath.Join(p.run, "pool", "[0-9a-f]*-*")); len(found) > 0 {
			time.Sleep(500 * time.Millisecond) // its last work before it waits
			break
		}
	}
	p.daemon.Process.Signal(syscall.SIGSTOP)
}

func (p *pooled) command(ctx context.Context, t task) (*exec.Cmd, func()) {
	p.fill(ctx)
	return p.manis.command(ctx, t)
}
