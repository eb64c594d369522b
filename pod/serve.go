package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"

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
	defer os.RemoveAll(dir)
	defer listener.Close()
	places, err := place.Find("", "")
	if err != nil {
		return err
	}
	if err := places.Make(); err != nil {
		return err
	}
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGPIPE)
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, unix.SIGTERM)
	p := newPod(places, dir)
	var calls sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			calls.Go(func() { p.answer(ctx, conn.(*net.UnixConn)) })
		}
	}()
	idle := time.NewTimer(idleTime)
	for running := true; running; {
		select {
		case <-idle.C:
			p.mu.Lock()
			if len(p.members) == 0 {
				p.finish()
			}
			p.mu.Unlock()
		case <-terminate:
			p.mu.Lock()
			if p.sandbox != nil {
				go p.sandbox.Kill()
			}
			p.mu.Unlock()
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

// answer serves one connection.
func (p *Pod) answer(ctx context.Context, conn *net.UnixConn) {
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
	if r.Verb == "create" {
		// A container that nobody waits for any more is not made.
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		go func() {
			conn.Read(make([]byte, 1))
			cancel()
		}()
	}
	result, err := p.carryOut(ctx, &r, files)
	var a reply
	if err == nil && result != nil {
		a.Body, err = json.Marshal(result)
	}
	if err != nil {
		a = reply{Error: text(err), Kind: kindOther}
		switch {
		case errors.Is(err, ErrNotFound):
			a.Kind = kindNotFound
		case errors.Is(err, ErrState):
			a.Kind = kindState
		}
	}
	orphan := ctx.Err() != nil // its creator has died meanwhile
	if failed := send(conn, a) != nil; r.Verb == "create" && err == nil && (failed || orphan) {
		p.abandon(r.Body)
	}
}

// abandon removes a container whose creator has died: nobody else knows of it.
func (p *Pod) abandon(body []byte) {
	if m, err := p.named(body); err == nil {
		p.remove(m)
	}
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
	m, err := p.named(r.Body)
	if err == nil && r.Verb == "exec" {
		var e ExecRequest
		if err = json.Unmarshal(r.Body, &e); err == nil {
			return nil, m.exec(ctx, &e, files)
		}
	}
	closeAll(files)
	if err != nil {
		return nil, err
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
	case "start":
		return nil, m.start(ctx)
	case "pause":
		return nil, m.pause(ctx)
	case "resume":
		return nil, m.resume(ctx)
	case "status":
		return m.report(), nil
	case "process":
		return m.bundle.Spec.Process, nil
	case "stats":
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
