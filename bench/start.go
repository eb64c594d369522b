package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"manis/trace"
)

// word is what the container of a start says.
const word = "hello"

// start is what one start of a container that says a word and ends was like.
type start struct {
	begin, first, end time.Time // the command's start, the first byte of output, the command's end
	// spans are what the runtime says of itself; nil when it says nothing.
	spans []trace.Span
}

// claimed reports whether the container got a machine that was waiting.
func (s *start) claimed() bool {
	for _, span := range s.spans {
		// The second of this name: the front end asks, and the machine's process takes it.
		if span.Name == "claim" && span.Parent > 1 {
			return true
		}
	}
	return false
}

// checker is a subject that knows which starts are not what is to be measured.
type checker interface{ check(*start) error }

// startOf measures one start, from a command's beginning to its end.
func startOf(ctx context.Context, s subject) (*start, error) {
	cmd, done := s.command(ctx, task{args: []string{"echo", word}, trace: true})
	defer done()
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	st := &start{begin: time.Now()}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	said := make([]byte, 1, 64)
	n, err := io.ReadFull(out, said)
	st.first = time.Now()
	rest, _ := io.ReadAll(out)
	said = append(said[:n], rest...)
	if e := cmd.Wait(); e != nil {
		err = e
	}
	st.end = time.Now()
	words, spans := cutTrace(errs.Bytes())
	st.spans = spans
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %.300s", err, words)
	case string(bytes.TrimSpace(said)) != word:
		return nil, fmt.Errorf("the container said %.50q instead of %q: %.300s", said, word, words)
	}
	if c, ok := s.(checker); ok {
		return st, c.check(st)
	}
	return st, nil
}

// cutTrace takes the line of a trace off what a command said.
func cutTrace(said []byte) (words []byte, spans []trace.Span) {
	for line := range bytes.Lines(said) {
		if spans == nil && bytes.HasPrefix(line, []byte("[{")) && json.Unmarshal(line, &spans) == nil {
			continue
		}
		words = append(words, line...)
	}
	return bytes.TrimSpace(words), spans
}

// startTime is the longest that a start may take.
const startTime = 5 * time.Minute

// start measures the section of that name.
func (b *bench) start(ctx context.Context) error {
	subjects, release := b.startSubjects(ctx)
	defer release()
	if err := b.warmUp(ctx, subjects); err != nil {
		return err
	}
	return b.starts(ctx, subjects, b.rounds)
}

// warmUp makes each subject's first start of all, which fills the caches of programs.
func (b *bench) warmUp(ctx context.Context, subjects []subject) error {
	return b.inTurn(ctx, "start", subjects, 1, func(ctx context.Context, s subject) error {
		ctx, cancel := context.WithTimeout(ctx, startTime)
		defer cancel()
		_, err := startOf(ctx, s)
		return err
	})
}

// starts measures rounds of starts of the subjects in turn.
func (b *bench) starts(ctx context.Context, subjects []subject, rounds int) error {
	err := b.inTurn(ctx, "start", subjects, rounds, func(ctx context.Context, s subject) error {
		ctx, cancel := context.WithTimeout(ctx, startTime)
		defer cancel()
		b.Contention = append(b.Contention, b.contention())
		st, err := startOf(ctx, s)
		if err != nil {
			return err
		}
		b.add("start", "to first output", s.name(), "ms", false, ms(st.first.Sub(st.begin)))
		b.add("start", toExit, s.name(), "ms", false, ms(st.end.Sub(st.begin)))
		b.phases.add(s.name(), st)
		return nil
	})
	b.Phases = b.phases.medians()
	return err
}

// toExit is the metric that runtimes are compared by.
const toExit = "to exit"
