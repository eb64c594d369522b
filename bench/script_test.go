package main

import (
	"context"
	"io"
	"os/exec"
)

// script is a runtime that is a shell script.
type script struct {
	label, text string
	ran         int
}

func (s *script) name() string                   { return s.label }
func (s *script) version(context.Context) string { return "1" }
func (s *script) command(ctx context.Context, _ task) (*exec.Cmd, func()) {
	s.ran++
	return exec.CommandContext(ctx, "sh", "-c", s.text), func() {}
}
func (s *script) address(context.Context, task) (string, error) { return "", nil }
func (s *script) members(context.Context, *exec.Cmd) (map[string][]int, error) {
	return nil, nil
}

// traced is one that tells its phases. Its boot has gone on since 1970: on no machine is there a
// longer one.
const traced = `end=$(date -u +%FT%T.%NZ); echo hello
span='"start":"1970-01-01T00:00:00Z","end":"'$end'"'
echo "[{\"name\":\"run\",$span,\"id\":1},{\"name\":\"boot\",$span,\"id\":2,\"parent\":1}]" >&2`

func testBench(subjects ...subject) *bench {
	return &bench{Report: &Report{Versions: make(map[string]string)}, subjects: subjects, rounds: 2, log: io.Discard, contention: func() float64 { return 1 }}
}
