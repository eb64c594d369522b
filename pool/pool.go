// Package pool keeps machines waiting for containers. It starts their processes, replaces
// those that were claimed or have died, and decides how many of which size are worth their
// memory: as many as were asked for lately, see Demand. What a machine is and how it is claimed is
// package monitor's affair. The pool owns nothing that runs: when it ends, or is killed, machines that
// wait end and containers go on.
//
// A machine's process says on a pipe that it is "ready", and then that it is "claimed" and how many
// microseconds that took. The end of another pipe ends it while it waits.
package pool

import (
	"context"
	"errors"
	"sync"
	"time"

	"manis/container"
)

// Pool keeps machines waiting. Its fields are set before Run and not changed after that.
type Pool struct {
	// Executable is the manis binary.
	Executable string
	// Shim is the program of containerd's shims, which can become all that manis can with a machine for engines, and a shim, too;
	// empty: it is not installed.
	Shim string
	// Dir is the directory of the pool, see place.Places.Pool.
	Dir string
	// Environ is the environment of the machines' processes.
	Environ []string
	// Identify says which machine a container of this configuration gets.
	Identify func(context.Context, *container.Config) (Kind, error)
	// Host is what the pool has to leave to others.
	Host Host
	// Log is told in words what happens.
	Log func(format string, args ...any)
	// Alive is called again and again while the pool does its work; it may be nil.
	Alive func(State)

	once   sync.Once
	events chan func(*keeping)
	kinds  kindCache
}

// Pauses after a machine that could not be made: doubled from the first to the last.
const (
	firstPause = time.Second
	lastPause  = time.Minute
)

// How often the pool looks again at what changes by itself.
const (
	beat         = time.Second      // demand that is forgotten, the host's memory and pressure
	measureEvery = 30 * time.Second // the memory of machines
	reviewEvery  = time.Minute      // whether machines are still those that containers want
	// busyPause is how long a busy host is left alone before one more machine is made all the same, when nobody
	// else wants the time.
	busyPause = 30 * time.Second
	// calm is how long nothing is made after machines were given up for want of memory.
	calm = 30 * time.Second
)

// ErrEnded is returned to those who ask a pool that has ended.
var ErrEnded = errors.New("the pool has ended")

func (p *Pool) init() {
	p.once.Do(func() { p.events = make(chan func(*keeping)) })
}

// tell hands something to the goroutine that keeps the pool.
func (p *Pool) tell(ctx context.Context, do func(*keeping)) error {
	p.init()
	select {
	case p.events <- do:
		return nil
	case <-ctx.Done():
		return ErrEnded
	}
}

// Reload makes the pool follow other settings from now on. What waits and is still wanted stays.
func (p *Pool) Reload(ctx context.Context, s Settings) error {
	return p.tell(ctx, func(k *keeping) { k.follow(s) })
}

// Missed says that a container found no machine.
func (p *Pool) Missed(ctx context.Context, cfg *container.Config) error {
	kind, err := p.kinds.get(ctx, cfg, p.Identify)
	if err != nil {
		return err
	}
	return p.tell(ctx, func(k *keeping) { k.missed(kind, cfg) })
}

// State is what the pool has at this moment.
func (p *Pool) State(ctx context.Context) (State, error) {
	answer := make(chan State, 1)
	if err := p.tell(ctx, func(k *keeping) { answer <- k.state() }); err != nil {
		return State{}, err
	}
	return <-answer, nil
}

// Run keeps the pool until ctx ends. Machines are made one after the other, so that filling
// takes little of the host's time, and only what nobody else wants.
func (p *Pool) Run(ctx context.Context, s Settings) {
	p.init()
	p.sweep()
	k := &keeping{Pool: p, ctx: ctx, start: time.Now()}
	defer k.all.Wait()
	k.follow(s)
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for {
		k.balance()
		if p.Alive != nil {
			p.Alive(k.state())
		}
		select {
		case <-ctx.Done():
			return
		case do := <-p.events:
			do(k)
		case <-tick.C:
			k.beat()
		}
	}
}
