// Package trace records what a start spends its time on: spans with a name, a
// beginning and an end, collected by a Recorder that travels in a context. Without
// a recorder in the context nothing is recorded and nothing is allocated.
// The spans of one start come from several processes (front end, monitor, guest);
// they meet as JSON, with wall-clock times of one host.
//
// The package knows neither what is measured nor who shows it.
package trace

import (
	"context"
	"encoding/json"
	"sync"
	"time"
)

// maxSpans bounds a recorder: a trace is of one start, not of a life.
const maxSpans = 1024

// Span is one phase.
type Span struct {
	Name   string    `json:"name"`
	Start  time.Time `json:"start"`
	End    time.Time `json:"end"`
	ID     int       `json:"id"`               // from 1, unique in its recorder
	Parent int       `json:"parent,omitempty"` // 0: a phase of its own
	// Attributes are further facts, such as the size of what was read.
	Attributes map[string]string `json:"attributes,omitempty"`
}

// Recorder collects spans. It is safe for concurrent use.
type Recorder struct {
	mu    sync.Mutex
	spans []Span
}

// NewRecorder returns an empty recorder.
func NewRecorder() *Recorder { return new(Recorder) }

type key struct{}

type position struct {
	recorder *Recorder
	parent   int
}

// With returns a context in which spans go to r.
func With(ctx context.Context, r *Recorder) context.Context {
	return context.WithValue(ctx, key{}, position{recorder: r})
}

// Active is a span that has begun. The nil Active, of a context without a
// recorder, does nothing.
type Active struct {
	recorder *Recorder
	index    int
}

// Start begins a span; spans started with the context returned are its children.
func Start(ctx context.Context, name string) (context.Context, *Active) {
	at, ok := ctx.Value(key{}).(position)
	if !ok {
		return ctx, nil
	}
	index := at.recorder.add(Span{Name: name, Start: time.Now(), Parent: at.parent})
	if index < 0 {
		return ctx, nil
	}
	return context.WithValue(ctx, key{}, position{at.recorder, index + 1}), &Active{at.recorder, index}
}

// Record adds a span that was measured elsewhere, as a child of the
// context's.
func Record(ctx context.Context, name string, start, end time.Time) {
	if at, ok := ctx.Value(key{}).(position); ok {
		at.recorder.add(Span{Name: name, Start: start, End: end, Parent: at.parent})
	}
}

func (r *Recorder) add(s Span) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.spans) >= maxSpans {
		return -1
	}
	s.ID = len(r.spans) + 1
	r.spans = append(r.spans, s)
	return s.ID - 1
}

// End ends the span.
func (a *Active) End() {
	if a == nil {
		return
	}
	a.recorder.mu.Lock()
	defer a.recorder.mu.Unlock()
	a.recorder.spans[a.index].End = time.Now()
}

// Fail records why the phase failed. A nil error does nothing.
func (a *Active) Fail(err error) {
	if a != nil && err != nil {
		a.Set(errorAttribute, err.Error())
	}
}

// errorAttribute holds the reason of a failure.
const errorAttribute = "error"

// Set adds an attribute.
func (a *Active) Set(name, value string) {
	if a == nil {
		return
	}
	a.recorder.mu.Lock()
	defer a.recorder.mu.Unlock()
	s := &a.recorder.spans[a.index]
	if s.Attributes == nil {
		s.Attributes = make(map[string]string)
	}
	s.Attributes[name] = value
}

// Spans returns a copy of what has been recorded, in the order of beginning.
func (r *Recorder) Spans() []Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Span(nil), r.spans...)
}

// JSON encodes the spans for another process.
func (r *Recorder) JSON() []byte {
	b, err := json.Marshal(r.Spans())
	if err != nil {
		return nil
	}
	return b
}
