package pod

import (
	"context"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"

	"manis/api/agent"
)

// maxExecs bounds the further processes of one container.
const maxExecs = 512

// execution is one further process of a container.
type execution struct {
	id      string
	pid     int // that stands for it on the host, 0: none
	ended   func(Exit)
	streams *streams
}

// exec runs a further process. It owns the streams.
func (m *member) exec(ctx context.Context, r *ExecRequest, a Attendant) (err error) {
	x := &execution{id: r.ExecID, pid: r.ProxyPID, ended: a.Ended}
	var process *agent.Process
	// Before that what it is to be is still being read.
	err = m.need("exec in", specs.StateRunning)
	if err == nil {
		process, err = m.bundle.Process(r.Process)
	}
	if err == nil && !r.IgnorePaused && m.isPaused() {
		err = fmt.Errorf("%w: cannot exec in a paused container", ErrState)
	}
	if err != nil {
		closeAll(a.Streams.files())
		return err
	}
	process.User, process.Rows, process.Columns = r.User, r.Rows, r.Columns
	if x.streams, err = newStreams(process.Terminal, a.Streams); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			x.streams.close()
		}
	}()
	m.mu.Lock()
	switch {
	case m.execs[x.id] != nil:
		err = fmt.Errorf("exec id %s is in use", x.id)
	case len(m.execs) >= maxExecs:
		err = fmt.Errorf("exec: %d processes are running already", maxExecs)
	default:
		m.execs[x.id] = x
	}
	m.mu.Unlock()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			m.forget(x)
		}
	}()
	if err := x.streams.connect(process, m.pod.sandbox.Stream); err != nil {
		return err
	}
	if _, err := m.pod.sandbox.Exec(ctx, &agent.ExecRequest{Id: m.id, ExecId: x.id, Process: process}); err != nil {
		return err
	}
	// Engines set the size when they like; what changed before the proxy listened to the signal is seen here.
	if size := x.streams.size(); size != nil && (uint32(size.Row) != process.Rows || uint32(size.Col) != process.Columns) {
		m.fit(ctx, x.id, x.streams)
	}
	x.streams.pump()
	go m.attend(x)
	return nil
}

func (m *member) forget(x *execution) {
	m.mu.Lock()
	delete(m.execs, x.id)
	m.mu.Unlock()
}

// attend waits for the end of a further process and tells its attendant.
func (m *member) attend(x *execution) {
	e := m.await(x.id, x.streams)
	x.streams.close()
	m.forget(x)
	x.ended(e)
}
