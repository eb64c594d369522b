package shim

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	containerd "github.com/containerd/containerd/v2/pkg/shim"
)

// maxEvents bounds what waits for a containerd that does not listen. It asks for the state of its tasks
// when it is back.
const maxEvents = 4096

// events tells containerd what happens, in the order in which it happens.
type events struct {
	publisher containerd.Publisher
	queue     chan any
	waiting   sync.WaitGroup
}

func newEvents(ctx context.Context, publisher containerd.Publisher) *events {
	e := &events{publisher: publisher, queue: make(chan any, maxEvents)}
	go func() {
		for event := range e.queue {
			if err := publisher.Publish(ctx, runtime.GetTopic(event), event); err != nil {
				fmt.Fprintln(os.Stderr, "tell containerd:", err)
			}
			e.waiting.Done()
		}
	}()
	return e
}

func (e *events) send(event any) {
	e.waiting.Add(1)
	select {
	case e.queue <- event:
	default:
		e.waiting.Done()
	}
}

// flushTime is how long the end of a shim waits until containerd has heard everything.
const flushTime = 3 * time.Second

func (e *events) flush() {
	done := make(chan struct{})
	go func() { e.waiting.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(flushTime):
	}
}
