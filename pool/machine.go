package pool

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"manis/container"
	"manis/host/priority"
	"manis/vmm/jail"
)

// What a machine's process reports.
const (
	ready   = "ready"
	claimed = "claimed"
)

// makeTime bounds how long a machine may take to be ready, with a template to be built for it and
// a host that has little time to spare; endTime is how long one that was given up may take to end.
const (
	makeTime = 10 * time.Minute
	endTime  = 30 * time.Second
)

// phase is how far a machine is.
type phase int

const (
	isMade phase = iota
	waits
	leaves // was given up
	isGone // was claimed
)

// machine is a process with a machine that waits for a container.
type machine struct {
	shelf *shelf
	phase phase
	bytes uint64 // what it takes; 0 while that is unknown
	pid   int
	err   error // why it ended, once it has

	reports *os.File
	idle    *os.File // its end ends a machine that waits; so does this process's
	release sync.Once
	said    lastWords
	ended   chan struct{}
	endErr  error // of the process, when ended is closed
	left    chan struct{}
}

// start starts the process.
func (m *machine) start(p *Pool, size container.Config) (err error) {
	words, err := json.Marshal(size)
	if err != nil {
		return err
	}
	reports, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer theirs.Close()
	idleR, idle, err := os.Pipe()
	if err != nil {
		reports.Close()
		return err
	}
	defer idleR.Close()
	program, name := p.Executable, "manis"
	if size.Network.Mode == TapMode && p.Shim != "" {
		program, name = p.Shim, filepath.Base(p.Shim)
	}
	cmd := exec.Command(program, "standby", string(words))
	cmd.Args[0] = name
	cmd.Env, cmd.Dir, cmd.Stderr = p.Environ, "/", &m.said
	cmd.ExtraFiles = []*os.File{theirs, idleR}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := jail.StartKeeper(func() error { return priority.StartIdle(cmd) }); err != nil {
		reports.Close()
		idle.Close()
		return err
	}
	m.pid, m.reports, m.idle = cmd.Process.Pid, reports, idle
	m.ended, m.left = make(chan struct{}), make(chan struct{})
	// It may be a container's by then and outlive this process: nobody waits for this.
	go func() {
		m.endErr = cmd.Wait()
		p.tidy(m.pid)
		close(m.ended)
	}()
	return nil
}

// giveUp ends a machine that waits, or is made. One that is claimed at this moment goes on, and
// says so.
func (m *machine) giveUp() {
	if m.phase == isMade || m.phase == waits {
		m.phase = leaves
	}
	m.release.Do(func() {
		close(m.left)
		m.idle.Close()
	})
}

// follow tells what the process reports until it is a container's or has ended, and lets go of it.
func (m *machine) follow(ctx context.Context, p *Pool, tell func(report string, took time.Duration)) {
	defer m.reports.Close()
	// Its process is a container's, or has ended: the pipe must stay open no longer.
	defer m.idle.Close()
	defer context.AfterFunc(ctx, func() { m.idle.Close() })()
	late := time.AfterFunc(makeTime, func() { unix.Kill(m.pid, unix.SIGKILL) })
	defer late.Stop()
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-ctx.Done():
		case <-m.left:
		case <-done:
			return
		}
		select {
		case <-time.After(endTime):
			unix.Kill(m.pid, unix.SIGKILL)
		case <-done:
		}
	}()
	lines := bufio.NewScanner(io.LimitReader(m.reports, 1024))
	for lines.Scan() {
		report, rest, _ := strings.Cut(lines.Text(), " ")
		switch report {
		case ready:
			late.Stop()
			tell(ready, 0)
		case claimed:
			took, _ := strconv.ParseUint(rest, 10, 32)
			tell(claimed, time.Duration(took)*time.Microsecond)
			return
		}
	}
	<-m.ended
	if words := m.said.String(); words != "" {
		m.err = errors.New(words)
	} else if m.err = m.endErr; m.err == nil {
		m.err = errors.New("it ended")
	}
}

// lastWords keeps the beginning of what a process says.
type lastWords struct {
	mu sync.Mutex
	b  []byte
}

func (w *lastWords) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := 512 - len(w.b); n > 0 {
		w.b = append(w.b, b[:min(n, len(b))]...)
	}
	return len(b), nil
}

func (w *lastWords) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.TrimRight(string(w.b), "\n")
}
