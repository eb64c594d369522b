// Package pool keeps machines waiting for containers. It starts their processes and replaces
// those that were claimed or have died; what they are and how they are claimed is package
// monitor's affair. It owns nothing that runs: when it ends, or is killed, machines that wait end
// and containers go on.
package pool

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"manis/container"
	"manis/place"
)

// Size is a kind of machine and how many of it are to wait.
type Size struct {
	Container container.Config
	Count     int
}

// Keeper keeps machines of one size waiting.
type Keeper struct {
	// Executable is the manis binary.
	Executable string
	// Dir is the directory of the pool, see place.Places.Pool.
	Dir string
	// Environ is the environment of the machines' processes.
	Environ []string
	Size    Size
	// Log is told in words what happens.
	Log func(format string, args ...any)
}

// Pauses after a machine that could not be made: doubled from the first to the last.
const (
	firstPause = time.Second
	lastPause  = time.Minute
)

// Run keeps the pool filled until ctx ends. Machines are made one after the other, so that filling
// takes one processor at most, and only time that nobody else wants.
func (k *Keeper) Run(ctx context.Context) {
	k.sweep()
	var all sync.WaitGroup
	defer all.Wait()
	events := make(chan event)
	waiting, making, pause := 0, false, firstPause
	var again <-chan time.Time
	for {
		if waiting < k.Size.Count && !making && again == nil {
			making = true
			all.Go(func() { k.one(ctx, events) })
		}
		select {
		case <-ctx.Done():
			return
		case <-again:
			again = nil
		case e := <-events:
			switch e.kind {
			case ready:
				making, pause = false, firstPause
				waiting++
			case claimed:
				waiting--
			case failed:
				if making && !e.waited {
					making = false
					k.Log("a machine could not be made: %v (the next attempt is in %v)", e.err, pause)
					again = time.After(pause)
					pause = min(2*pause, lastPause)
				} else {
					waiting--
					k.Log("a waiting machine has ended: %v", e.err)
				}
			}
		}
	}
}

type kind int

const (
	ready kind = iota
	claimed
	failed
)

type event struct {
	kind   kind
	waited bool // failed after it was ready
	err    error
}

// one makes a machine and follows it until it is claimed or gone.
func (k *Keeper) one(ctx context.Context, events chan<- event) {
	tell := func(e event) {
		select {
		case events <- e:
		case <-ctx.Done():
		}
	}
	waited, err := k.follow(ctx, tell)
	if err != nil {
		tell(event{kind: failed, waited: waited, err: err})
	}
}

func (k *Keeper) follow(ctx context.Context, tell func(event)) (waited bool, err error) {
	size, err := json.Marshal(k.Size.Container)
	if err != nil {
		return false, err
	}
	reports, theirs, err := os.Pipe()
	if err != nil {
		return false, err
	}
	defer reports.Close()
	idleR, idle, err := os.Pipe()
	if err != nil {
		theirs.Close()
		return false, err
	}
	// Its closing, or this process's end, ends a machine that waits.
	defer idle.Close()
	said := &lastWords{}
	cmd := exec.Command(k.Executable, "standby", string(size))
	cmd.Args[0] = "manis"
	cmd.Env, cmd.Dir, cmd.Stderr = k.Environ, "/", said
	cmd.ExtraFiles = []*os.File{theirs, idleR}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = startIdle(cmd)
	theirs.Close()
	idleR.Close()
	if err != nil {
		return false, err
	}
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		k.tidy(cmd.Process.Pid)
		ended <- err
	}()
	defer context.AfterFunc(ctx, func() { idle.Close() })()
	lines := bufio.NewScanner(io.LimitReader(reports, 1024))
	for lines.Scan() {
		switch lines.Text() {
		case "ready":
			waited = true
			tell(event{kind: ready})
		case "claimed":
			// It is a container's now, and nobody's here. The pipe must stay open no longer.
			tell(event{kind: claimed})
			return true, nil
		}
	}
	err = <-ended
	if words := said.String(); words != "" {
		return waited, errors.New(words)
	}
	if err == nil {
		err = errors.New("it ended")
	}
	return waited, err
}

// startIdle starts a process that runs when nobody else wants the processor. All its threads
// and children inherit that from the thread that forks here.
func startIdle(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	policy := func(p uint32) error {
		return unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: p}, 0)
	}
	idle := policy(unix.SCHED_IDLE) == nil
	err := cmd.Start()
	// A thread that cannot come back ends with its goroutine, still locked.
	if !idle || policy(unix.SCHED_NORMAL) == nil {
		runtime.UnlockOSThread()
	}
	return err
}

// tidy removes what a process that was killed has left.
func (k *Keeper) tidy(pid int) {
	sockets, _ := filepath.Glob(filepath.Join(k.Dir, fmt.Sprintf("[0-9a-f]*-%d", pid)))
	for _, path := range append(sockets, filepath.Join(k.Dir, place.StandbyDir(pid))) {
		os.RemoveAll(path)
	}
	os.Remove(k.Dir) // when it was the last
}

// sweep does so for those whose keeper was killed as well.
func (k *Keeper) sweep() {
	entries, _ := os.ReadDir(k.Dir)
	for _, e := range entries {
		name := e.Name()
		pid, err := strconv.Atoi(name[strings.LastIndexByte(name, '-')+1:])
		if err == nil && errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			k.tidy(pid)
		}
	}
}

// lastWords keeps the beginning of what a process says.
type lastWords struct{ b []byte }

func (w *lastWords) Write(b []byte) (int, error) {
	if n := 512 - len(w.b); n > 0 {
		w.b = append(w.b, b[:min(n, len(b))]...)
	}
	return len(b), nil
}

func (w *lastWords) String() string { return strings.TrimRight(string(w.b), "\n") }
