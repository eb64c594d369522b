package monitor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"manis/api/agent"
	"manis/container"
	"manis/sandbox"
	"manis/trace"
)

// round is one life of the container: one machine, from boot to end.
type round struct {
	sandbox *sandbox.Sandbox
	setup   *agent.SetupRequest
	lines   []*sandbox.Line // all streams of the first process
	tty     bool
	stdin   input
	stdout  output
	stderr  output
	pumps   sync.WaitGroup
	execs   execs
	// rows and columns are the size of the terminal, 0 while unknown.
	mu            sync.Mutex
	rows, columns uint32
	// began is closed when the first process runs, ended when it has ended or
	// will never run.
	began, ended chan struct{}
	// cancelBoot gives the boot up.
	boot       context.Context
	cancelBoot context.CancelFunc
}

func newRound(tty bool) *round {
	r := &round{tty: tty, began: make(chan struct{}), ended: make(chan struct{})}
	r.execs.byID = make(map[string]*execution)
	r.boot, r.cancelBoot = context.WithCancel(context.Background())
	return r
}

// running reports whether the first process runs.
func (r *round) running() bool {
	select {
	case <-r.ended:
		return false
	default:
	}
	select {
	case <-r.began:
		return true
	default:
		return false
	}
}

// containerID names the container within its machine.
const containerID = "c"

// round boots a machine, runs the container in it once and cleans up. The
// error says why the process could not run, or how the machine broke.
func (m *Monitor) round(ctx context.Context) (err error) {
	m.mu.Lock()
	r := m.run
	m.mu.Unlock()
	defer closeOnce(r.ended)

	// A stop, or the end of every interest before the start, ends the boot.
	bootCtx, cancelBoot := context.WithCancel(ctx)
	defer cancelBoot()
	defer context.AfterFunc(r.boot, cancelBoot)()
	machine, err := m.boot(bootCtx)
	if machine != nil {
		defer machine.release()
	}
	if err == nil {
		r.sandbox, r.setup = machine.sandbox, machine.setup
		defer func() {
			if kerr := r.sandbox.Kill(); kerr != nil {
				fmt.Fprintln(os.Stderr, kerr)
			}
		}()
		err = m.openStreams(ctx, r, machine.request)
	}
	if err == nil && !machine.continued {
		rootfsCtx, span := trace.Start(bootCtx, "rootfs")
		_, err = r.sandbox.CreateContainer(rootfsCtx, machine.request)
		span.End()
	}
	if err == nil {
		err = machine.created()
	}
	if err == nil {
		err = m.awaitStart(ctx)
	}
	var rows, columns uint32
	if err == nil {
		launchCtx, span := trace.Start(ctx, "launch")
		rows, columns = r.size()
		if p := machine.request.Process; machine.continued {
			err = r.sandbox.Adopt(launchCtx, &agent.AdoptRequest{Id: containerID, Stdin: p.Stdin, Stdout: p.Stdout, Stderr: p.Stderr})
			if err == nil {
				err = m.runHook(launchCtx, r, machine.hook)
			}
		} else {
			_, err = r.sandbox.StartContainer(launchCtx, &agent.StartContainerRequest{Id: containerID, Rows: rows, Columns: columns})
		}
		span.End()
	}
	if err != nil {
		if r.boot.Err() != nil {
			err = errNotStarted
		}
		m.keepBundle(ctx, r)
		if r.sandbox != nil {
			r.sandbox.Kill()
		}
		r.closeStreams()
		r.pumps.Wait()
		return m.failed(err)
	}

	m.mu.Lock()
	info := r.sandbox.VM().Info()
	m.state = container.State{
		Status:     container.Running,
		MonitorPID: os.Getpid(),
		VMPID:      info.PID,
		StartedAt:  time.Now().UTC(),
		FinishedAt: m.state.FinishedAt,
		// Kept: they describe the container across rounds.
		RestartCount: m.state.RestartCount,
		Ports:        machine.ports,
		IPAddress:    machine.address,
		Gateway:      machine.gateway,
		MAC:          machine.mac,
		VM:           encode(info),
		Boot:         machine.boot,
		Continued:    m.state.Continued || machine.continued,
	}
	if m.startTrace == nil {
		m.startTrace = m.spans.JSON()
	}
	m.save()
	closeOnce(m.started)
	// Before the change is told: who is woken by it asks whether the process runs, and is not woken again.
	close(r.began)
	m.change()
	m.mu.Unlock()
	if nowRows, nowColumns := r.size(); nowRows != rows || nowColumns != columns {
		// Changed while the process was being started.
		r.sandbox.Resize(ctx, &agent.ResizeRequest{Id: containerID, Rows: nowRows, Columns: nowColumns})
	}

	// Should machine or monitor be killed, this is what is left.
	m.keepBundle(ctx, r)
	health := m.watchHealth(ctx, r)
	exit, waitErr := r.sandbox.Wait(ctx, containerID, "")
	close(r.ended)
	health()
	if waitErr == nil {
		r.pumps.Wait()
	}
	m.keepBundle(ctx, r)
	if waitErr == nil && !m.throwaway() {
		r.sandbox.Stop(ctx)
	} else {
		r.sandbox.Kill()
	}
	r.closeStreams()
	r.pumps.Wait()

	m.mu.Lock()
	defer m.mu.Unlock()
	m.state.Status = container.Exited
	m.state.MonitorPID, m.state.VMPID = 0, 0
	m.state.Ports = nil
	m.state.FinishedAt = time.Now().UTC()
	m.state.StoppedByUser = m.wantsStop
	if waitErr != nil {
		m.state.ExitCode = 128 + int(unix.SIGKILL)
		if !m.wantsStop {
			m.state.Error = waitErr.Error()
		}
	} else {
		m.state.ExitCode = int(exit.ExitCode & 0xff)
		m.state.OOMKilled = exit.OomKilled
	}
	m.save()
	m.change()
	return nil
}

// throwaway reports whether nothing that the guest has written outlives it, so
// that there is no point in letting it sync and power off.
func (m *Monitor) throwaway() bool {
	return m.cfg.AutoRemove && !m.copying && !slices.ContainsFunc(m.cfg.Mounts, func(mount container.Mount) bool {
		return mount.Type != "tmpfs" && !mount.ReadOnly
	})
}

// failed records that a round could not start its process.
func (m *Monitor) failed(err error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state.Status = container.Created
	if !m.state.StartedAt.IsZero() {
		m.state.Status = container.Exited
	}
	m.state.MonitorPID, m.state.VMPID = 0, 0
	m.state.ExitCode = exitCode(err)
	m.state.Error = message(err)
	m.state.FinishedAt = time.Now().UTC()
	m.state.Ports = nil
	m.save()
	m.change()
	return err
}

// size is the terminal's.
func (r *round) size() (rows, columns uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rows, r.columns
}

// setSize keeps the terminal's size and reports whether the process runs already, so that
// it has to be told. If not, its start tells it.
func (r *round) setSize(rows, columns uint32) (running bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rows, r.columns = rows, columns
	return r.running()
}

var errNotStarted = errors.New("stopped before it was started")

// awaitStart waits for the Start request; a prepared machine whose front end
// went away is given up.
func (m *Monitor) awaitStart(ctx context.Context) error {
	for {
		m.mu.Lock()
		changed, stop := m.changed, m.wantsStop
		m.mu.Unlock()
		if stop {
			return errNotStarted
		}
		select {
		case <-m.start:
			return nil
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// openStreams connects the first process's stdio and starts the pumps.
func (m *Monitor) openStreams(ctx context.Context, r *round, req *agent.CreateContainerRequest) error {
	keep := func(name string) interface {
		Write([]byte) (int, error)
		Close() error
	} {
		if m.log == nil {
			return discard{}
		}
		return m.log.stream(name)
	}
	open := func(name string) (net.Conn, uint64, error) {
		conn, token, err := r.sandbox.Stream()
		if err != nil {
			return nil, 0, err
		}
		l := sandbox.NewLine(name, conn)
		r.lines = append(r.lines, l)
		return l, token, nil
	}
	pump := func(from net.Conn, o *output, name string) {
		to := keep(name)
		o.pumped = true
		r.pumps.Add(1)
		go func() {
			defer r.pumps.Done()
			o.pump(from, to)
			to.Close()
			from.Close()
		}()
	}
	p := req.Process
	if m.confidential() && !m.logged() {
		return nil
	}
	if r.tty {
		conn, token, err := open("console")
		if err != nil {
			return err
		}
		p.Stdin, p.Stdout = token, token
		r.stdin.to = conn
		pump(conn, &r.stdout, "stdout")
		return nil
	}
	if m.cfg.OpenStdin {
		conn, token, err := open("stdin")
		if err != nil {
			return err
		}
		p.Stdin = token
		r.stdin.to = conn
	}
	for _, s := range []struct {
		token *uint64
		out   *output
		name  string
	}{{&p.Stdout, &r.stdout, "stdout"}, {&p.Stderr, &r.stderr, "stderr"}} {
		conn, token, err := open(s.name)
		if err != nil {
			return err
		}
		*s.token = token
		pump(conn, s.out, s.name)
	}
	return nil
}

func (r *round) closeStreams() {
	r.stdin.close()
	// A stream that never had a pump still has to tell its attachments.
	for _, o := range []*output{&r.stdout, &r.stderr} {
		if !o.pumped {
			o.end()
		}
	}
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) Close() error                { return nil }
