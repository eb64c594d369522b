package trace

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestSpans(t *testing.T) {
	r := NewRecorder()
	ctx := With(t.Context(), r)
	ctx, whole := Start(ctx, "run")
	bootCtx, boot := Start(ctx, "boot")
	_, agent := Start(bootCtx, "agent")
	agent.Set("kernel", "6.1")
	agent.End()
	boot.End()
	_, launch := Start(ctx, "launch")
	launch.Fail(errors.New("no such file"))
	launch.Fail(nil)
	launch.End()
	Record(bootCtx, "kernel", time.Unix(1, 0), time.Unix(2, 0))
	whole.End()

	want := map[string]string{"run": "", "boot": "run", "agent": "boot", "launch": "run", "kernel": "boot"}
	spans := r.Spans()
	if len(spans) != len(want) {
		t.Fatalf("%d spans, want %d", len(spans), len(want))
	}
	name := map[int]string{}
	for _, s := range spans {
		name[s.ID] = s.Name
		if got := name[s.Parent]; got != want[s.Name] {
			t.Errorf("the parent of %q is %q, want %q", s.Name, got, want[s.Name])
		}
		if s.End.Before(s.Start) {
			t.Errorf("%q ends before it begins", s.Name)
		}
	}
	if spans[2].Attributes["kernel"] != "6.1" || spans[3].Attributes["error"] != "no such file" {
		t.Errorf("attributes %v, %v", spans[2].Attributes, spans[3].Attributes)
	}
}

func TestNoRecorderCostsNothing(t *testing.T) {
	ctx := t.Context()
	now := time.Now()
	if n := testing.AllocsPerRun(100, func() {
		c, span := Start(ctx, "x")
		span.Set("a", "b")
		span.Fail(nil)
		Record(c, "y", now, now)
		Place(c, now, 0, nil)
		span.End()
	}); n != 0 {
		t.Errorf("%v allocations without a recorder", n)
	}
}

func TestRecorderIsBounded(t *testing.T) {
	ctx := With(t.Context(), NewRecorder())
	for range 3 * maxSpans {
		_, s := Start(ctx, "x")
		s.Set("a", "b")
		s.End()
	}
	r := ctx.Value(key{}).(position).recorder
	if n := len(r.Spans()); n != maxSpans {
		t.Errorf("%d spans", n)
	}
	if err := r.Add(r.JSON()); err != nil || len(r.Spans()) != maxSpans {
		t.Errorf("%d spans after Add, %v", len(r.Spans()), err)
	}
}

func TestConcurrentSpans(t *testing.T) {
	r := NewRecorder()
	ctx := With(t.Context(), r)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				c, a := Start(ctx, "a")
				_, b := Start(c, "b")
				b.End()
				a.End()
			}
		})
	}
	wg.Wait()
	spans := r.Spans()
	for _, s := range spans {
		if s.Name == "b" && spans[s.Parent-1].Name != "a" {
			t.Fatalf("the parent of b is %q", spans[s.Parent-1].Name)
		}
	}
}

func TestJoin(t *testing.T) {
	monitor := NewRecorder()
	mctx, boot := Start(With(t.Context(), monitor), "boot")
	_, agent := Start(mctx, "agent")
	agent.End()
	boot.End()

	r := NewRecorder()
	ctx, _ := Start(With(t.Context(), r), "run")
	ctx, _ = Start(ctx, "start")
	if err := Join(ctx, monitor.JSON()); err != nil {
		t.Fatal(err)
	}
	if err := r.Add(monitor.JSON()); err != nil {
		t.Fatal(err)
	}
	var got []string
	spans := r.Spans()
	for _, s := range spans {
		parent := ""
		if s.Parent > 0 {
			parent = spans[s.Parent-1].Name
		}
		got = append(got, s.Name+"<"+parent)
	}
	if want := "run< start<run boot<start agent<boot boot< agent<boot"; strings.Join(got, " ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, " "), want)
	}
	if err := Join(t.Context(), []byte("nonsense")); err != nil {
		t.Errorf("without a recorder: %v", err)
	}
	if err := Join(ctx, []byte("nonsense")); err == nil {
		t.Error("nonsense: no error")
	}
}

// What another process says of itself is hostile: its numbers and texts do no harm.
func TestForeignSpansAreTamed(t *testing.T) {
	r := NewRecorder()
	ctx, whole := Start(With(t.Context(), r), "run")
	b, err := json.Marshal([]Span{
		{ID: 1, Parent: 1, Name: "own parent"},
		{ID: 7, Parent: 9, Name: "unknown parent"},
		{ID: -1, Parent: -5, Name: "negative\x1b[2J\n" + strings.Repeat("x", 1000), Attributes: map[string]string{"\a": "\u202e"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := Join(ctx, b); err != nil {
		t.Fatal(err)
	}
	for _, s := range r.Spans()[1:] {
		if s.Parent != 1 {
			t.Errorf("the parent of %q is %d", s.Name, s.Parent)
		}
		if strings.ContainsAny(s.Name, "\x1b\n") || len(s.Name) > maxText || s.Attributes["\a"] != "" {
			t.Errorf("not cleaned: %q %q", s.Name, s.Attributes)
		}
	}
	whole.End()
	var out strings.Builder
	if err := Waterfall(&out, r.Spans(), Style{}); err != nil || strings.Contains(out.String(), "\x1b") {
		t.Errorf("waterfall: %v\n%s", err, out.String())
	}
}

func TestPlace(t *testing.T) {
	r := NewRecorder()
	ctx, _ := Start(With(context.Background(), r), "boot")
	begun := r.Spans()[0].Start
	now := begun.Add(100 * time.Millisecond)
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	Place(ctx, now, ms(1000), []Elsewhere{
		{"kernel", ms(910), ms(950)},
		{"before the boot", ms(-5000), ms(920)},
		{"after now", ms(2000), ms(3000)},
		{"backwards", ms(960), ms(940)},
		{"endless", -1 << 63, 1<<63 - 1},
	})
	want := []struct{ start, end int }{{10, 50}, {0, 20}, {100, 100}, {60, 60}, {0, 100}}
	spans := r.Spans()[1:]
	for i, w := range want[:4] {
		s := spans[i]
		if s.Start.Sub(begun) != ms(w.start) || s.End.Sub(begun) != ms(w.end) || s.Parent != 1 {
			t.Errorf("%q is at %v to %v below %d, want %d to %d ms", s.Name, s.Start.Sub(begun), s.End.Sub(begun), s.Parent, w.start, w.end)
		}
	}
	for _, s := range spans {
		if s.Start.Before(begun) || s.End.After(now) || s.End.Before(s.Start) {
			t.Errorf("%q is at %v to %v", s.Name, s.Start, s.End)
		}
	}
	Place(ctx, now, 0, make([]Elsewhere, 10*maxForeign))
	if n := len(r.Spans()); n > 1+len(want)+maxForeign {
		t.Errorf("%d spans", n)
	}
}
