package pod

import (
	"context"
	"fmt"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"manis/api/agent"
)

// maxExecs bounds the further processes of one container.
const maxExecs = 512

// execution is one further process of a container.
type execution struct {
	id      string
	pid     int // of the proxy
	proxy   *os.File
	streams *streams
	done    chan struct{}
}

// exec runs a further process. It owns the files.
func (m *member) exec(ctx context.Context, r *ExecRequest, files []*os.File) (err error) {
	if len(files) == 0 {
		return fmt.Errorf("the request lacks the proxy")
	}
	x := &execution{id: r.ExecID, pid: r.ProxyPID, proxy: files[0], done: make(chan struct{})}
	defer func() {
		if err != nil {
			x.proxy.Close()
		}
	}()
	process, err := m.bundle.Process(r.Process)
	if err == nil {
		err = m.need("exec in", specs.StateRunning)
	}
	if err == nil && !r.IgnorePaused && m.isPaused() {
		err = fmt.Errorf("%w: cannot exec in a paused container", ErrState)
	}
	if err != nil {
		closeAll(files[1:])
		return err
	}
	process.Rows, process.Columns = r.Rows, r.Columns
	if x.streams, err = newStreams(process.Terminal, files[1:]); err != nil {
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
	if err := attach(process, x.streams, m.pod.sandbox); err != nil {
		return err
	}
	if _, err := m.pod.sandbox.Exec(ctx, &agent.ExecRequest{Id: m.id, ExecId: x.id, Process: process}); err != nil {
		return err
	}
	if process.Terminal {
		// Engines set the size when they like; what changed before the proxy listened to the signal is seen here.
		if size := x.streams.size(); size != nil && (uint32(size.Row) != process.Rows || uint32(size.Col) != process.Columns) {
			m.resize(x.id, x.streams)
		}
	}
	x.streams.pump()
	go m.obey(x.proxy, x.done, x.id, x.streams)
	go m.await(x)
	return nil
}

func (m *member) forget(x *execution) {
	m.mu.Lock()
	delete(m.execs, x.id)
	m.mu.Unlock()
}

// await waits for the end of a further process and tells its proxy.
func (m *member) await(x *execution) {
	exit, err := m.pod.sandbox.Wait(context.Background(), m.id, x.id)
	code := exitGone
	if err == nil {
		x.streams.drained()
		code = int(exit.ExitCode)
	}
	close(x.done)
	x.streams.close()
	m.forget(x)
	unix.Write(int(x.proxy.Fd()), []byte{byte(code)})
	x.proxy.Close()
}
