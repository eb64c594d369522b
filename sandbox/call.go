package sandbox

import (
	"bytes"
	"context"
	"strings"
	"unicode"

	"manis/api/agent"
)

// The requests below are the agent's, see api/agent/agent.proto. Each ends with
// an error that wraps ErrEnded and says why when the machine ends first.

// CreateContainer prepares a container; its process does not run yet.
func (s *Sandbox) CreateContainer(ctx context.Context, r *agent.CreateContainerRequest) (*agent.CreateContainerResponse, error) {
	resp, err := call(ctx, s, r, s.client().CreateContainer)
	if err == nil {
		s.record(ctx, resp.Spans)
	}
	return resp, err
}

// StartContainer executes the first process of a container.
func (s *Sandbox) StartContainer(ctx context.Context, r *agent.StartContainerRequest) (*agent.StartResponse, error) {
	resp, err := call(ctx, s, r, s.client().StartContainer)
	if err == nil {
		s.record(ctx, resp.Spans)
	}
	return resp, err
}

// Exec runs a further process in a container.
func (s *Sandbox) Exec(ctx context.Context, r *agent.ExecRequest) (*agent.StartResponse, error) {
	return call(ctx, s, r, s.client().Exec)
}

// Adopt connects the streams of a container's first process after the machine was saved
// and continued.
func (s *Sandbox) Adopt(ctx context.Context, r *agent.AdoptRequest) error {
	_, err := call(ctx, s, r, s.client().Adopt)
	return err
}

// Wait blocks until a process has ended; execID "" is the first one.
func (s *Sandbox) Wait(ctx context.Context, id, execID string) (*agent.WaitResponse, error) {
	return lasting(ctx, s, &agent.WaitRequest{Id: id, ExecId: execID}, func(c agent.AgentService) func(context.Context, *agent.WaitRequest) (*agent.WaitResponse, error) {
		return c.Wait
	})
}

// Signal sends a signal to a process.
func (s *Sandbox) Signal(ctx context.Context, r *agent.SignalRequest) error {
	_, err := call(ctx, s, r, s.client().Signal)
	return err
}

// Resize sets the size of a process's terminal.
func (s *Sandbox) Resize(ctx context.Context, r *agent.ResizeRequest) error {
	_, err := call(ctx, s, r, s.client().Resize)
	return err
}

// Pause freezes the processes of a container.
func (s *Sandbox) Pause(ctx context.Context, id string) error {
	_, err := call(ctx, s, &agent.ContainerRef{Id: id}, s.client().Pause)
	return err
}

// Resume thaws them.
func (s *Sandbox) Resume(ctx context.Context, id string) error {
	_, err := call(ctx, s, &agent.ContainerRef{Id: id}, s.client().Resume)
	return err
}

// Publish makes a projected volume of the containers hold something else.
func (s *Sandbox) Publish(ctx context.Context, r *agent.Projection) error {
	_, err := call(ctx, s, r, s.client().Publish)
	return err
}

// Grow has the guest use what its machine was given.
func (s *Sandbox) Grow(ctx context.Context, r *agent.GrowRequest) error {
	_, err := call(ctx, s, r, s.client().Grow)
	return err
}

// Stats reads the container's counters.
func (s *Sandbox) Stats(ctx context.Context, id string) (*agent.StatsResponse, error) {
	return call(ctx, s, &agent.ContainerRef{Id: id}, s.client().Stats)
}

// Processes lists a container's processes.
func (s *Sandbox) Processes(ctx context.Context, id string) (*agent.ProcessesResponse, error) {
	return call(ctx, s, &agent.ContainerRef{Id: id}, s.client().Processes)
}

// CopyOut writes a tar of a path to the stream that the request names.
func (s *Sandbox) CopyOut(ctx context.Context, r *agent.CopyOutRequest) (*agent.CopyOutResponse, error) {
	return call(ctx, s, r, s.client().CopyOut)
}

// CopyIn unpacks the tar of the stream that the request names.
func (s *Sandbox) CopyIn(ctx context.Context, r *agent.CopyInRequest) error {
	_, err := call(ctx, s, r, s.client().CopyIn)
	return err
}

// RemoveContainer ends what still runs of a container and releases its disks: what was
// written to them is in their files when it returns without an error.
func (s *Sandbox) RemoveContainer(ctx context.Context, id string) error {
	_, err := call(ctx, s, &agent.ContainerRef{Id: id}, s.client().RemoveContainer)
	return err
}

// maxLine is the most bytes of the console in an error.
const maxLine = 200

// lastLine returns the last line that says something, made printable: a guest
// must not speak to the user's terminal.
func lastLine(console []byte) string {
	lines := bytes.Split(bytes.TrimSpace(console), []byte("\n"))
	line := string(bytes.TrimSpace(lines[len(lines)-1]))
	// A panic's reason is more telling than the end of its stack.
	for _, l := range lines {
		if i := bytes.Index(l, []byte("Kernel panic")); i >= 0 {
			line = string(bytes.TrimSpace(l[i:]))
			break
		}
	}
	line = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, line)
	if len(line) > maxLine {
		line = strings.ToValidUTF8(line[:maxLine], "")
	}
	return line
}
