package monitor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"manis/api/monitor"
	"manis/api/wire"
	"manis/container"
	"manis/sandbox"
)

// maxFronts bounds the connections of front ends at one time.
const maxFronts = 256

// goodbye is how long the monitor waits at its end for front ends to read
// their last answers.
const goodbye = 5 * time.Second

// fronts are the connections to front ends.
type fronts struct {
	ctx context.Context
	m   *Monitor
	mu  sync.Mutex
	all map[*front]struct{}
	wg  sync.WaitGroup
}

func newFronts(ctx context.Context, m *Monitor) *fronts {
	return &fronts{ctx: ctx, m: m, all: make(map[*front]struct{})}
}

// accept serves connections until the listener is closed.
func (f *fronts) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(100 * time.Millisecond) // out of descriptors: wait for one
			continue
		}
		f.mu.Lock()
		full := len(f.all) >= maxFronts
		f.mu.Unlock()
		if full {
			conn.Close()
			continue
		}
		f.serve(conn)
	}
}

// serve answers one front end. The one that started the monitor is the first; when
// it goes away without having asked for the start, nobody wants this container to run.
func (f *fronts) serve(conn net.Conn) {
	link, err := wire.NewServer(conn)
	if err != nil {
		conn.Close()
		return
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		conn.Close()
		return
	}
	one := &front{Monitor: f.m, link: link, conn: conn}
	monitor.RegisterMonitorService(server, one)
	f.mu.Lock()
	first := len(f.all) == 0 && !f.m.wasAsked()
	f.all[one] = struct{}{}
	f.wg.Add(1)
	f.mu.Unlock()
	go func() {
		defer f.wg.Done()
		link.Serve(f.ctx, server)
		conn.Close()
		f.mu.Lock()
		delete(f.all, one)
		f.mu.Unlock()
		if first {
			f.m.abandon()
		}
	}()
}

// drain waits until every front end has hung up, but not for long.
func (f *fronts) drain() {
	gone := make(chan struct{})
	go func() {
		f.wg.Wait()
		close(gone)
	}()
	select {
	case <-gone:
	case <-time.After(goodbye):
		f.mu.Lock()
		for one := range f.all {
			one.conn.Close()
		}
		f.mu.Unlock()
	}
}

// front answers the requests of one connection.
type front struct {
	*Monitor
	link *wire.Server
	conn net.Conn
}

func (m *Monitor) wasAsked() bool {
	select {
	case <-m.start:
		return true
	default:
		return false
	}
}

// abandon gives a container up that was never asked to start.
func (m *Monitor) abandon() {
	if m.wasAsked() {
		return
	}
	m.mu.Lock()
	m.wantsStop = true
	m.run.cancelBoot()
	m.change()
	m.mu.Unlock()
}

// current returns the running round, or says why there is none.
func (m *Monitor) current() (*round, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.run.running() {
		return nil, status.Errorf(codes.FailedPrecondition, "container %s is not running", m.cfg.ID[:12])
	}
	return m.run, nil
}

func (f *front) Start(ctx context.Context, req *monitor.StartRequest) (*monitor.StartResponse, error) {
	if req.Attach != nil {
		if _, err := f.Attach(ctx, req.Attach); err != nil {
			return nil, err
		}
	}
	f.letStart()
	select {
	case <-f.started:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.startErr != nil {
		return nil, wireError(f.startErr)
	}
	return &monitor.StartResponse{Trace: f.startTrace}, nil
}

func (f *front) Attach(ctx context.Context, req *monitor.AttachRequest) (*monitor.Empty, error) {
	f.mu.Lock()
	r := f.run
	f.mu.Unlock()
	streams, err := f.claim(ctx, req.Streams)
	if err != nil {
		return nil, err
	}
	if streams.stdout != nil {
		r.stdout.attach(streams.stdout)
	}
	if streams.stderr != nil {
		r.stderr.attach(streams.stderr)
	}
	if streams.stdin != nil {
		if r.tty || f.cfg.OpenStdin {
			go f.feed(r, streams.stdin)
		} else {
			streams.stdin.Close()
		}
	}
	if r.tty && req.Rows > 0 && req.Columns > 0 {
		f.size(r, req.Rows, req.Columns)
	}
	return &monitor.Empty{}, nil
}

// feed copies an attachment's stdin once the process is there to read it.
func (f *front) feed(r *round, from net.Conn) {
	select {
	case <-r.began:
		r.stdin.copyFrom(from, f.cfg.StdinOnce && !r.tty)
	case <-r.ended:
		from.Close()
	}
}

// claimed are the client's streams; nil where it asked for none.
type claimed struct{ stdin, stdout, stderr net.Conn }

func (c claimed) close() {
	for _, s := range []net.Conn{c.stdin, c.stdout, c.stderr} {
		if s != nil {
			s.Close()
		}
	}
}

func (f *front) claim(ctx context.Context, s *monitor.Streams) (c claimed, err error) {
	if s == nil {
		return c, nil
	}
	for _, w := range []struct {
		token uint64
		conn  *net.Conn
	}{{s.Stdin, &c.stdin}, {s.Stdout, &c.stdout}, {s.Stderr, &c.stderr}} {
		if w.token == 0 {
			continue
		}
		if *w.conn, err = f.link.Claim(ctx, w.token); err != nil {
			c.close()
			return claimed{}, err
		}
	}
	return c, nil
}

func (f *front) Wait(ctx context.Context, req *monitor.WaitRequest) (*monitor.WaitResponse, error) {
	f.mu.Lock()
	finished := f.state.FinishedAt
	for {
		ok := false
		switch req.Condition {
		case monitor.WaitRequest_NOT_RUNNING:
			ok = f.final
		case monitor.WaitRequest_NEXT_EXIT:
			ok = f.state.FinishedAt.After(finished) || f.final
		case monitor.WaitRequest_HEALTHY:
			ok = f.final || f.state.Health != nil && f.state.Health.Status == "healthy"
		}
		if ok {
			break
		}
		changed := f.changed
		f.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		f.mu.Lock()
	}
	resp := &monitor.WaitResponse{ExitCode: uint32(f.state.ExitCode), Error: f.state.Error, OomKilled: f.state.OOMKilled}
	final := f.final
	f.mu.Unlock()
	if final {
		select {
		case <-f.done: // with --rm: removed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return resp, nil
}

func (f *front) Update(_ context.Context, req *monitor.UpdateRequest) (*monitor.Empty, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.restart = container.Restart{Policy: req.RestartPolicy, Max: int(req.RestartMax)}
	f.change()
	return &monitor.Empty{}, nil
}

// wireError turns an error into one that keeps its meaning on the way to a
// front end: the agent's codes pass, everything else is "unknown" with its text.
func wireError(err error) error {
	if err == nil {
		return nil
	}
	var s interface{ GRPCStatus() *status.Status }
	switch {
	case errors.As(err, &s):
		return status.Error(s.GRPCStatus().Code(), message(err))
	case errors.Is(err, sandbox.ErrEnded):
		return status.Error(codes.Unavailable, err.Error())
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, err.Error())
	}
	return status.Error(codes.Unknown, err.Error())
}

// message is the error's text without the wire's decoration.
func message(err error) string {
	var s interface{ GRPCStatus() *status.Status }
	if errors.As(err, &s) {
		return s.GRPCStatus().Message()
	}
	return fmt.Sprint(err)
}
