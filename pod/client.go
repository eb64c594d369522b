package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"manis/api/agent"
)

// Client asks a pod. Each call is a connection of its own, so that calls wait for nobody.
type Client struct{ socket string }

// At returns the client of the pod that listens on a socket.
func At(socket string) *Client { return &Client{socket} }

// Create makes a container. Files are the proxy's socket and the streams. The container stays when it is kept: should the caller
// die before, nobody knows of it, and it goes.
func (c *Client) Create(ctx context.Context, r *CreateRequest, files ...*os.File) (*Made, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	if err := exchange(conn, "create", r, nil, files...); err != nil {
		stop()
		conn.Close()
		return nil, err
	}
	return &Made{conn, stop}, nil
}

// Made is a container that has been made, until it is kept.
type Made struct {
	conn *net.UnixConn
	stop func() bool
}

// Keep has the container stay. A pod that has ended meanwhile says so when it is spoken to again.
func (m *Made) Keep() {
	m.stop()
	m.conn.Write([]byte{kept})
	m.conn.Close()
}

// Close gives a container up that was not kept.
func (m *Made) Close() {
	m.stop()
	m.conn.Close()
}

// Start executes a container's first process.
func (c *Client) Start(ctx context.Context, id string) error {
	return c.call(ctx, "start", ref{id}, nil)
}

// Exec runs a further process. Files are as for Create.
func (c *Client) Exec(ctx context.Context, r *ExecRequest, files ...*os.File) error {
	return c.call(ctx, "exec", r, nil, files...)
}

// Signal sends a signal.
func (c *Client) Signal(ctx context.Context, r *SignalRequest) error {
	return c.call(ctx, "signal", r, nil)
}

// Pause freezes a container's processes; Resume thaws them.
func (c *Client) Pause(ctx context.Context, id string) error {
	return c.call(ctx, "pause", ref{id}, nil)
}

// Resume is the opposite of Pause.
func (c *Client) Resume(ctx context.Context, id string) error {
	return c.call(ctx, "resume", ref{id}, nil)
}

// Status says what becomes of a container.
func (c *Client) Status(ctx context.Context, id string) (*Status, error) {
	s := new(Status)
	return s, c.call(ctx, "status", ref{id}, s)
}

// Await waits for a container's end. ErrGone means that it has ended before.
func (c *Client) Await(ctx context.Context, id string) (*Exit, error) {
	e := new(Exit)
	return e, c.call(ctx, "await", ref{id}, e)
}

// Remove ends a container whose process has ended, or never ran, and forgets it.
func (c *Client) Remove(ctx context.Context, id string) error {
	return c.call(ctx, "remove", ref{id}, nil)
}

// call makes one request. ErrGone means that nobody listens any more.
func (c *Client) call(ctx context.Context, verb string, body, result any, files ...*os.File) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	return exchange(conn, verb, body, result, files...)
}

func (c *Client) dial(ctx context.Context) (*net.UnixConn, error) {
	conn, err := dial(ctx, c.socket)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("connect to the pod: %w", err)
	}
	return conn, nil
}

func exchange(conn *net.UnixConn, verb string, body, result any, files ...*os.File) error {
	encoded, err := json.Marshal(body)
	if err != nil {
		return err
	}
	var answer reply
	err = send(conn, request{Verb: verb, Body: encoded}, files...)
	if err == nil {
		var extra []*os.File
		extra, err = receive(conn, &answer)
		closeAll(extra)
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
		return ErrGone
	case err != nil:
		return fmt.Errorf("speak to the pod: %w", err)
	case answer.Error != "":
		return answer.err()
	case result != nil:
		return json.Unmarshal(answer.Body, result)
	}
	return nil
}

// remote is an error of the pod's with the meaning that it had there.
type remote struct {
	text string
	is   error
	code int
}

func (r *remote) Error() string { return r.text }
func (r *remote) Unwrap() error { return r.is }

// ExitCode is the exit code, as shells have it, of a process that a pod could not execute; 1 where nothing else is known.
func ExitCode(err error) int {
	var r *remote
	if errors.As(err, &r) && r.code != 0 {
		return r.code
	}
	return exitCode(err)
}

func (r *reply) err() error {
	e := &remote{text: r.Error, code: r.Code}
	switch r.Kind {
	case kindNotFound:
		e.is = ErrNotFound
	case kindState:
		e.is = ErrState
	}
	return e
}

// dial connects to a path that may be too long for a socket's address.
func dial(ctx context.Context, path string) (*net.UnixConn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// Gone reports whether nobody listens any more.
func (c *Client) Gone(ctx context.Context) bool {
	conn, err := dial(ctx, c.socket)
	if err == nil {
		conn.Close()
	}
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED)
}

// Stats reads a container's counters.
func (c *Client) Stats(ctx context.Context, id string) (*agent.StatsResponse, error) {
	u := new(Usage)
	err := c.call(ctx, "stats", ref{id}, u)
	return u.Stats, err
}

// Processes lists a container's processes.
func (c *Client) Processes(ctx context.Context, id string) (*agent.ProcessesResponse, error) {
	r := new(agent.ProcessesResponse)
	return r, c.call(ctx, "processes", ref{id}, r)
}

// Process is the process that a container was made with.
func (c *Client) Process(ctx context.Context, id string) (*specs.Process, error) {
	p := new(specs.Process)
	return p, c.call(ctx, "process", ref{id}, p)
}

// Update changes a container's limits.
func (c *Client) Update(ctx context.Context, r *UpdateRequest) error {
	return c.call(ctx, "update", r, nil)
}
