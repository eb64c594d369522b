package pod

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"manis/place"
)

// operators is what the operator of a host may ask of a pod whose life is its engine's.
var operators = []string{"describe", "exec", "process", "processes", "stats"}

// Operator is the socket of a pod that its owner has in its own process. By it the operator of the host sees what
// is in there, and runs commands; the rest is for the owner alone.
type Operator struct {
	ready    chan struct{} // closed when it listens, or cannot
	listener net.Listener  // nil: it cannot
	cancel   context.CancelFunc
}

// Operate lets the host's operator reach the pod, from a moment later on: nobody waits for that. What goes wrong is said on
// standard error, and no reason to be without the pod.
func (p *Pod) Operate(i Identity) *Operator {
	p.mu.Lock()
	p.identity = i
	p.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	o := &Operator{ready: make(chan struct{}), cancel: cancel}
	go func() {
		err := i.write(p.dir)
		if err == nil {
			o.listener, err = net.Listen("unix", Socket(p.dir))
		}
		close(o.ready)
		if err != nil {
			fmt.Fprintf(os.Stderr, "manis ps --engines will not show the pod: %v\n", err)
			return
		}
		p.accept(ctx, o.listener, operators, new(sync.WaitGroup))
	}()
	return o
}

// Close ends it. Afterwards nothing more is written into the pod's directory.
func (o *Operator) Close() {
	<-o.ready
	o.cancel()
	if o.listener != nil {
		o.listener.Close()
	}
}

// identify says whose the pod is by its first container, unless its owner has said it.
func (p *Pod) identify(m *member) {
	i := whoseBundle(m.id, m.bundle.Dir, m.bundle.Spec)
	p.mu.Lock()
	known := p.identity.ID != ""
	if !known {
		p.identity = i
	}
	p.mu.Unlock()
	if known {
		return
	}
	if err := i.write(p.dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// answerTime is how long List waits for a pod: it needs nothing but a moment of the processor.
const answerTime = 5 * time.Second

// Found is a pod of an engine's on this host.
type Found struct {
	*Client
	Dir string
	// Description is what it says. With an Err it is what is noted of it: the Identity.
	Description *Description
	// Err says why it has not answered.
	Err error
}

// ErrSilent: a pod has not answered in time.
var ErrSilent = errors.New("the pod does not answer: its process hangs, is stopped, or the host has no time for it")

// List asks all pods of engines at the same time, and waits for none longer than a few seconds. Those that have ended are left out,
// whatever files they have left.
func List(ctx context.Context, places *place.Places) ([]*Found, error) {
	entries, err := os.ReadDir(places.Pods())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the pods of engines: %w", err)
	}
	all := make([]*Found, len(entries))
	var asked sync.WaitGroup
	for i, e := range entries {
		if !e.IsDir() {
			continue
		}
		asked.Go(func() { all[i] = ask(ctx, filepath.Join(places.Pods(), e.Name())) })
	}
	asked.Wait()
	var list []*Found
	for _, f := range all {
		if f != nil {
			list = append(list, f)
		}
	}
	return list, ctx.Err()
}

// ask asks the pod in a directory; nil: it has ended.
func ask(ctx context.Context, dir string) *Found {
	limited, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	f := &Found{Client: At(Socket(dir)), Dir: dir}
	f.Description, f.Err = f.Describe(limited)
	switch {
	case errors.Is(f.Err, ErrGone):
		return nil
	case f.Err == nil:
		return f
	case limited.Err() != nil:
		f.Err = ErrSilent
	}
	f.Description = &Description{Identity: readIdentity(dir)}
	return f
}
