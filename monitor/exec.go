package monitor

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"manis/api/agent"
	"manis/api/monitor"
	"manis/container/spec"
)

// maxExecs bounds the processes that exec has added and nobody has waited for.
const maxExecs = 512

// execs are the further processes of a round.
type execs struct {
	mu   sync.Mutex
	next uint64
	byID map[string]*execution
}

// execution is one process that exec added.
type execution struct {
	done chan struct{}
	exit *agent.WaitResponse
	err  error
}

// add makes room for one more; finished ones that nobody asked for give way.
func (e *execs) add() (string, *execution, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.byID) >= maxExecs {
		for id, x := range e.byID {
			select {
			case <-x.done:
				delete(e.byID, id)
			default:
			}
		}
	}
	if len(e.byID) >= maxExecs {
		return "", nil, status.Errorf(codes.ResourceExhausted, "exec: %d processes are running already", maxExecs)
	}
	e.next++
	id := fmt.Sprintf("exec%d", e.next)
	x := &execution{done: make(chan struct{})}
	e.byID[id] = x
	return id, x, nil
}

func (e *execs) drop(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.byID, id)
}

func (e *execs) get(id string) (*execution, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if x, ok := e.byID[id]; ok {
		return x, nil
	}
	return nil, status.Errorf(codes.NotFound, "no such exec instance: %s", id)
}

func (f *front) Exec(ctx context.Context, req *monitor.ExecRequest) (*monitor.ExecResponse, error) {
	r, err := f.current()
	if err != nil {
		return nil, err
	}
	if f.paused() {
		return nil, status.Errorf(codes.FailedPrecondition, "container %s is paused, unpause the container before exec", f.cfg.ID[:12])
	}
	streams, err := f.claim(ctx, req.Streams)
	if err != nil {
		return nil, err
	}
	process, err := spec.BuildExec(f.cfg, spec.ExecOptions{
		Args: req.Args, Env: req.Env, Dir: req.Dir, User: req.User,
		TTY: req.Terminal, Privileged: req.Privileged,
		Rows: req.Rows, Columns: req.Columns,
	})
	if err != nil {
		streams.close()
		return nil, wireError(err)
	}
	id, err := f.exec(ctx, r, process, streams)
	if err != nil {
		return nil, wireError(err)
	}
	return &monitor.ExecResponse{ExecId: id}, nil
}

// exec starts a process whose stdio is copied to and from streams, which it
// owns from now on.
func (m *Monitor) exec(ctx context.Context, r *round, p *agent.Process, streams claimed) (id string, err error) {
	id, x, err := r.execs.add()
	if err != nil {
		streams.close()
		return "", err
	}
	var opened []net.Conn
	defer func() {
		if err != nil {
			for _, c := range opened {
				c.Close()
			}
			streams.close()
			r.execs.drop(id)
		}
	}()
	var ins, outs [][2]net.Conn
	connect := func(theirs net.Conn, token *uint64, pairs *[][2]net.Conn) error {
		if theirs == nil {
			return nil
		}
		ours, t, err := r.sandbox.Stream()
		if err != nil {
			return err
		}
		opened = append(opened, ours)
		*token = t
		*pairs = append(*pairs, [2]net.Conn{ours, theirs})
		return nil
	}
	if p.Terminal {
		// One stream for both directions.
		ours, t, err := r.sandbox.Stream()
		if err != nil {
			return "", err
		}
		opened = append(opened, ours)
		p.Stdin, p.Stdout = t, t
		if streams.stdin != nil {
			ins = append(ins, [2]net.Conn{ours, streams.stdin})
		}
		if streams.stdout != nil {
			outs = append(outs, [2]net.Conn{ours, streams.stdout})
		}
		if streams.stderr != nil {
			streams.stderr.Close()
		}
	} else {
		for _, c := range []struct {
			theirs net.Conn
			token  *uint64
			pairs  *[][2]net.Conn
		}{{streams.stdin, &p.Stdin, &ins}, {streams.stdout, &p.Stdout, &outs}, {streams.stderr, &p.Stderr, &outs}} {
			if err := connect(c.theirs, c.token, c.pairs); err != nil {
				return "", err
			}
		}
	}
	if _, err := r.sandbox.Exec(ctx, &agent.ExecRequest{Id: containerID, ExecId: id, Process: p}); err != nil {
		return "", err
	}
	for _, pair := range ins {
		go func() {
			io.CopyBuffer(onlyWriter{pair[0]}, onlyReader{pair[1]}, make([]byte, copyBuffer))
			if !p.Terminal {
				pair[0].Close()
			}
			pair[1].Close()
		}()
	}
	var pumps sync.WaitGroup
	for _, pair := range outs {
		pumps.Go(func() {
			drain(pair[1], pair[0])
			pair[1].Close()
		})
	}
	go func() {
		x.exit, x.err = r.sandbox.Wait(context.WithoutCancel(ctx), containerID, id)
		pumps.Wait()
		for _, c := range opened {
			c.Close()
		}
		streams.close()
		close(x.done)
	}()
	return id, nil
}

// drain copies to the end; when the reader hangs up the rest is thrown away, so
// that the process meets a full pipe no more than with any other reader.
func drain(to io.Writer, from io.Reader) {
	buf := make([]byte, copyBuffer)
	_, err := io.CopyBuffer(onlyWriter{to}, onlyReader{from}, buf)
	if err != nil {
		io.CopyBuffer(onlyWriter{io.Discard}, onlyReader{from}, buf)
	}
}

// onlyReader and onlyWriter hide ReadFrom and WriteTo, which would allocate
// buffers of their own.
type onlyReader struct{ io.Reader }
type onlyWriter struct{ io.Writer }

func (f *front) ExecWait(ctx context.Context, req *monitor.ExecWaitRequest) (*monitor.WaitResponse, error) {
	f.mu.Lock()
	r := f.run
	f.mu.Unlock()
	x, err := r.execs.get(req.ExecId)
	if err != nil {
		return nil, err
	}
	select {
	case <-x.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	r.execs.drop(req.ExecId)
	if x.err != nil {
		// The container, and its machine, ended under the process.
		return &monitor.WaitResponse{ExitCode: 137, Error: message(x.err)}, nil
	}
	return &monitor.WaitResponse{ExitCode: x.exit.ExitCode & 0xff}, nil
}

func (f *front) ExecSignal(ctx context.Context, req *monitor.ExecSignalRequest) (*monitor.Empty, error) {
	r, err := f.current()
	if err != nil {
		return nil, err
	}
	err = r.sandbox.Signal(ctx, &agent.SignalRequest{Id: containerID, ExecId: req.ExecId, Signal: req.Signal})
	return &monitor.Empty{}, wireError(err)
}
