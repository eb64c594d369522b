package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"manis/monitor"
	"manis/place"
	"manis/pool"
)

// Word is the argument by which the program that starts pods runs Main.
const Word = "pod"

// Main is the body of a pod's process, which listens on descriptor 3 and keeps its things in
// dir. It returns the exit code.
func Main(ctx context.Context, dir string) int {
	if err := serve(ctx, dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func serve(ctx context.Context, dir string) error {
	unix.CloseOnExec(3)
	file := os.NewFile(3, "listener")
	listener, err := net.FileListener(file)
	file.Close()
	if err != nil {
		return fmt.Errorf("a pod is started by manis create, not by hand: %w", err)
	}
	places, err := place.Find("", "")
	if err == nil {
		err = places.Make()
	}
	if err != nil {
		listener.Close()
		os.RemoveAll(dir)
		return err
	}
	return serveOn(ctx, places, dir, listener, nil)
}

// Adopt is serve for a pod that has claimed a machine which waited: see monitor.PodOwner.
func Adopt(ctx context.Context, places *place.Places, c *monitor.PodClaim, s *monitor.Standby) error {
	listener, err := net.FileListener(c.Listener)
	c.Listener.Close()
	if err != nil {
		return fmt.Errorf("serve a pod: %w", err)
	}
	return serveOn(ctx, places, c.Dir, listener, s)
}

// serveOn serves a pod until its end.
func serveOn(ctx context.Context, places *place.Places, dir string, listener net.Listener, waited *monitor.Standby) error {
	defer os.RemoveAll(dir)
	defer listener.Close()
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGPIPE)
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, unix.SIGTERM)
	p := New(places, dir)
	if waited != nil {
		p.Use(waited)
	}
	var calls sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go p.accept(ctx, listener, nil, &calls)
	idle := time.NewTimer(idleTime)
	for running := true; running; {
		select {
		case <-idle.C:
			p.mu.Lock()
			idle := len(p.members) == 0
			p.finishing = p.finishing || idle
			p.mu.Unlock()
			if idle {
				p.finish()
			}
		case <-terminate:
			go p.Kill()
		case <-p.ended:
			running = false
		}
	}
	listener.Close()
	cancel()
	// Whoever has asked shall hear the answer, if that takes no time.
	answered := make(chan struct{})
	go func() { calls.Wait(); close(answered) }()
	select {
	case <-answered:
	case <-time.After(time.Second):
	}
	return nil
}

// accept serves connections until the listener's end. With verbs no others are taken.
func (p *Pod) accept(ctx context.Context, listener net.Listener, verbs []string, calls *sync.WaitGroup) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		calls.Go(func() { p.answer(ctx, conn.(*net.UnixConn), verbs) })
	}
}

// answer serves one connection.
func (p *Pod) answer(ctx context.Context, conn *net.UnixConn, verbs []string) {
	defer conn.Close()
	// Only the same user's, or root's.
	if uid, err := pool.Peer(conn); err != nil || uid != 0 && uid != os.Geteuid() {
		return
	}
	var r request
	files, err := receive(conn, &r)
	if err != nil {
		closeAll(files)
		return
	}
	if verbs != nil && !slices.Contains(verbs, r.Verb) {
		closeAll(files)
		send(conn, reply{Error: fmt.Sprintf("%s: the pod belongs to its engine, which alone may ask for that", r.Verb), Kind: kindOther})
		return
	}
	stays := make(chan bool, 1)
	if r.Verb == "create" || r.Verb == "await" {
		// A container that nobody waits for any more is not made, and nobody's wait goes on.
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		go func() {
			said := make([]byte, 1)
			n, _ := conn.Read(said)
			stays <- n == 1 && said[0] == kept
			cancel()
		}()
	}
	result, err := p.carryOut(ctx, &r, files)
	var a reply
	if err == nil && result != nil {
		a.Body, err = json.Marshal(result)
	}
	if err != nil {
		a = reply{Error: Text(err), Kind: kindOther, Code: exitCode(err)}
		switch {
		case errors.Is(err, ErrNotFound):
			a.Kind = kindNotFound
		case errors.Is(err, ErrState):
			a.Kind = kindState
		}
	}
	failed := send(conn, a) != nil
	if r.Verb == "create" && err == nil && (failed || !<-stays) {
		p.abandon(r.Body)
	}
}

// abandon removes a container whose creator has died: nobody else knows of it.
func (p *Pod) abandon(body []byte) {
	if m, err := p.named(body); err == nil {
		m.end(gone(exitGone, ""))
		p.remove(m)
	}
}

// create makes a container that a proxy stands for.
func (p *Pod) create(ctx context.Context, r *CreateRequest, files []*os.File) error {
	s, attendant, err := receiveStandIn(files)
	if err != nil {
		return err
	}
	s.group = r.Group
	if err := p.Create(ctx, r, attendant); err != nil {
		s.socket.Close()
		return err
	}
	go s.obey(p, r.ID, "")
	return nil
}

// exec runs a further process that a proxy stands for.
func (p *Pod) exec(ctx context.Context, r *ExecRequest, files []*os.File) error {
	s, attendant, err := receiveStandIn(files)
	if err != nil {
		return err
	}
	if err := p.Exec(ctx, r, attendant); err != nil {
		s.socket.Close()
		return err
	}
	go s.obey(p, r.ID, r.ExecID)
	return nil
}

// carryOut does what a request asks for. It owns the files.
func (p *Pod) carryOut(ctx context.Context, r *request, files []*os.File) (any, error) {
	if r.Verb == "create" {
		var c CreateRequest
		if err := json.Unmarshal(r.Body, &c); err != nil {
			closeAll(files)
			return nil, err
		}
		return nil, p.create(ctx, &c, files)
	}
	if r.Verb == "describe" {
		closeAll(files)
		return p.Describe(), nil
	}
	m, err := p.named(r.Body)
	if err == nil && r.Verb == "exec" {
		var e ExecRequest
		if err = json.Unmarshal(r.Body, &e); err == nil {
			return nil, p.exec(ctx, &e, files)
		}
	}
	closeAll(files)
	if err != nil {
		return nil, err
	}
	switch r.Verb {
	case "process", "processes", "stats":
		// Before that there may be no machine.
		if err := m.need("look into", specs.StateCreated, starting, specs.StateRunning, specs.StateStopped); err != nil {
			return nil, err
		}
	}
	switch r.Verb {
	case "update":
		var u UpdateRequest
		if err := json.Unmarshal(r.Body, &u); err != nil {
			return nil, err
		}
		return nil, m.update(ctx, &u)
	case "signal":
		var s SignalRequest
		if err := json.Unmarshal(r.Body, &s); err != nil {
			return nil, err
		}
		return nil, m.signal(ctx, &s)
	case "checkpoint":
		var c CheckpointRequest
		if err := json.Unmarshal(r.Body, &c); err != nil {
			return nil, err
		}
		return m.checkpoint(ctx, &c)
	case "start":
		return nil, m.start(ctx)
	case "pause":
		return nil, m.pause(ctx)
	case "resume":
		return nil, m.resume(ctx)
	case "await":
		return m.awaited(ctx)
	case "status":
		return m.report(), nil
	case "process":
		return m.bundle.Spec.Process, nil
	case "stats":
		if !p.Permits("stats") {
			return nil, errors.New(`the manifest does not permit the call "stats"`)
		}
		stats, err := p.sandbox.Stats(ctx, m.id)
		return Usage{stats}, err
	case "processes":
		return p.sandbox.Processes(ctx, m.id)
	case "remove":
		return nil, p.remove(m)
	}
	return nil, fmt.Errorf("a pod has no verb %q", r.Verb)
}

// named finds the container that a request is about: all name it in the same way.
func (p *Pod) named(body []byte) (*member, error) {
	var r ref
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, err
	}
	return p.member(r.ID)
}
