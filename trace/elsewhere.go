package trace

import (
	"context"
	"encoding/json"
	"strings"
	"time"
	"unicode"
)

// Bounds of what comes from other processes: a guest may say anything.
const (
	maxForeign    = 64 // spans of one call
	maxText       = 128
	maxAttributes = 16
)

// Elsewhere is a span measured with another clock, such as the guest's.
type Elsewhere struct {
	Name       string
	Start, End time.Duration // on that clock
}

// Place adds spans of another clock as children of the context's, given that the clock showed the duration
// clock when it was now here. They are moved, if need be, to where they can have been: not before the parent
// began and not after now.
func Place(ctx context.Context, now time.Time, clock time.Duration, spans []Elsewhere) {
	at, ok := ctx.Value(key{}).(position)
	if !ok {
		return
	}
	earliest := at.recorder.startOf(at.parent)
	for _, s := range spans[:min(len(spans), maxForeign)] {
		start, end := now.Add(s.Start-clock), now.Add(s.End-clock)
		start = clamp(start, earliest, now)
		at.recorder.add(Span{Name: clean(s.Name), Start: start, End: clamp(end, start, now), Parent: at.parent})
	}
}

func clamp(t, low, high time.Time) time.Time {
	if t.After(high) {
		t = high
	}
	if t.Before(low) {
		t = low
	}
	return t
}

// startOf returns when a span began, or the beginning of the recording for 0.
func (r *Recorder) startOf(id int) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if id == 0 {
		id = 1
	}
	if id > len(r.spans) {
		return time.Time{}
	}
	return r.spans[id-1].Start
}

// Join takes over the spans of another process, from its JSON, as children of the context's.
func Join(ctx context.Context, b []byte) error {
	at, ok := ctx.Value(key{}).(position)
	if !ok {
		return nil
	}
	return at.recorder.join(b, at.parent)
}

// Add takes over the spans of another process, from its JSON.
func (r *Recorder) Add(b []byte) error { return r.join(b, 0) }

func (r *Recorder) join(b []byte, parent int) error {
	var spans []Span
	if err := json.Unmarshal(b, &spans); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	renumbered := map[int]int{0: parent}
	for _, s := range spans {
		if len(r.spans) >= maxSpans {
			break
		}
		theirs := s.ID
		s.ID = len(r.spans) + 1
		s.Parent = renumbered[s.Parent] // a parent comes before its children; any other is none
		if s.Parent == 0 {
			s.Parent = parent
		}
		s.Name, s.Attributes = clean(s.Name), cleanAll(s.Attributes)
		r.spans = append(r.spans, s)
		if theirs > 0 {
			renumbered[theirs] = s.ID
		}
	}
	return nil
}

// clean makes a text of another process fit to be shown on a terminal.
func clean(s string) string {
	if len(s) > maxText {
		s = s[:maxText]
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

func cleanAll(attributes map[string]string) map[string]string {
	if len(attributes) == 0 {
		return nil
	}
	out := make(map[string]string, min(len(attributes), maxAttributes))
	for k, v := range attributes {
		if len(out) == maxAttributes {
			break
		}
		out[clean(k)] = clean(v)
	}
	return out
}
