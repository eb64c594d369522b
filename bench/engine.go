package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"manis/place"
)

// engineTime is the longest that one command of an engine may take.
const engineTime = 2 * time.Minute

// engines starts containers by Podman, with runc and with Manis as its runtime.
func (b *bench) engines(ctx context.Context) error {
	const section = "engine"
	path, err := exec.LookPath("podman")
	if err == nil && os.Geteuid() != 0 {
		err = errors.New("needs root, for bridges")
	}
	if err != nil {
		b.skip(section, "podman", err)
		return nil
	}
	if b.manis == nil {
		return nil
	}
	dir := filepath.Join(b.w.dir, "podman")
	e := &engine{ctx: ctx, bench: b, args: []string{path, "--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--cgroup-manager", "cgroupfs", "--events-backend", "none"}}
	defer os.RemoveAll(dir)
	defer e.do("rm", "-af", "-t", "0")
	// Podman makes a name of the path, and takes none with a dot in front.
	plain, err := os.MkdirTemp("/tmp", "manis-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(plain)
	link := filepath.Join(plain, "layout")
	if err := os.Symlink(b.w.layout, link); err != nil {
		return err
	}
	if err := e.do("pull", "-q", "oci:"+link); err != nil {
		b.skip(section, "podman", err)
		return ctx.Err()
	}
	out, err := e.command(ctx, "images", "-q").Output()
	image := strings.TrimSpace(string(out))
	if err != nil || image == "" {
		b.skip(section, "podman", fmt.Errorf("find the image: %w", err))
		return ctx.Err()
	}
	// Limits that a host without CAP_SYS_RESOURCE lets runc set. In a machine they are the guest's.
	limits := []string{"--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"}
	binary := b.manis.binary
	networks := []struct{ metric, mode string }{{"podman run, no network", "none"}, {"podman run, on a bridge", "bridge"}}
	// start has the engine start a container, in this round.
	start := func(metric, mode, name, runtime string, round int) error {
		b.progress(fmt.Sprintf("%s, round %d of %d: %s", metric, round+1, b.rounds, name))
		begin := time.Now()
		err := e.do(append(append([]string{"--runtime", runtime, "run", "--rm", "--network", mode}, limits...), image, "true")...)
		if err != nil {
			b.skip(section, name, err)
			b.progress("")
			return err
		}
		if round >= 0 {
			b.add(section, metric, name, "ms", false, float64(time.Since(begin).Microseconds())/1000)
		}
		return nil
	}
	for _, network := range networks {
		for round := -warmups; round < b.rounds; round++ {
			for _, s := range []struct{ name, runtime string }{{"runc", "runc"}, {"manis", binary}} {
				if start(network.metric, network.mode, s.name, s.runtime, round) != nil {
					return ctx.Err()
				}
			}
			if round == -1 {
				// What the second start of a size prepares in the background is for those that follow.
				e.await()
			}
		}
	}
	// Where machines wait every start takes one, so these come by themselves.
	const name = "manis, pool"
	p, err := enginePool(b.manis)
	if err != nil {
		b.skip(section, name, err)
		return ctx.Err()
	}
	defer p.stop()
	for _, network := range networks {
		for round := -warmups; round < b.rounds; round++ {
			p.daemon.Process.Signal(syscall.SIGCONT)
			// The first start has the pool know that engines want machines.
			if round > -warmups {
				if err := p.fill(ctx); err != nil {
					b.skip(section, name, err)
					return ctx.Err()
				}
				p.daemon.Process.Signal(syscall.SIGSTOP)
			}
			if start(network.metric, network.mode, name, binary, round) != nil {
				return ctx.Err()
			}
		}
	}
	b.progress("")
	return nil
}

// warmups are starts that are not counted: the first builds a template, the second has it exercised.
const warmups = 3

// enginePool starts the daemon where the binary that engines start looks for it. Of each kind one machine waits: that of
// `manis run`, and that of engines once they have asked.
func enginePool(m *manis) (*pooled, error) {
	places, err := place.Find("", "")
	if err != nil {
		return nil, err
	}
	plain := *m
	plain.env = os.Environ()
	p, err := startPool(&plain, filepath.Dir(places.Pool()), 1)
	if err == nil {
		p.size = 2
	}
	return p, err
}

type engine struct {
	ctx   context.Context
	bench *bench
	args  []string
}

func (e *engine) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, e.args[0], append(slices.Clone(e.args[1:]), args...)...)
}

func (e *engine) do(args ...string) error {
	ctx, cancel := context.WithTimeout(e.ctx, engineTime)
	defer cancel()
	cmd := e.command(ctx, args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("podman %s: %w: %s", strings.Join(args, " "), errors.Join(err, ctx.Err()), bytes.TrimSpace(said.Bytes()))
	}
	return nil
}

// await waits until no machine is exercised any more.
func (e *engine) await() {
	deadline := time.Now().Add(engineTime)
	for time.Now().Before(deadline) && e.ctx.Err() == nil {
		files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		busy := false
		for _, f := range files {
			b, _ := os.ReadFile(f)
			busy = busy || bytes.HasPrefix(b, []byte("manis\x00rehearse\x00"))
		}
		if !busy {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}
