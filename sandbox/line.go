package sandbox

import (
	"context"
	"net"
	"sync"
	"time"

	"manis/api/agent"
)

// Line is a stream of the container's that outlasts the session with the agent: between
// two sessions reads and writes wait.
type Line struct {
	net.Conn // the first one, for its addresses and nothing else
	// Name says which it is: stdin, stdout, stderr, or console.
	Name string

	writing sync.Mutex // held by a write, and between two sessions

	mu     sync.Mutex
	moved  *sync.Cond
	now    net.Conn
	parked bool
	closed bool
}

// NewLine returns the line whose present stream is conn.
func NewLine(name string, conn net.Conn) *Line {
	l := &Line{Conn: conn, Name: name, now: conn}
	l.moved = sync.NewCond(&l.mu)
	return l
}

// current returns the present stream. When old is the present one it waits for the next, and
// reports whether there is one.
func (l *Line) current(old net.Conn) (net.Conn, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.parked && l.now == old && !l.closed {
		l.moved.Wait()
	}
	return l.now, l.now != old
}

func (l *Line) Read(b []byte) (int, error) {
	conn, _ := l.current(nil)
	for {
		n, err := conn.Read(b)
		if n > 0 || err == nil {
			return n, nil
		}
		var more bool
		if conn, more = l.current(conn); !more {
			return n, err
		}
	}
}

func (l *Line) Write(b []byte) (int, error) {
	l.writing.Lock()
	defer l.writing.Unlock()
	conn, _ := l.current(nil)
	return conn.Write(b)
}

func (l *Line) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.moved.Broadcast()
	return l.now.Close()
}

// Park lets the write that is under way end, and no other begin. It fails when ctx ends first.
func (l *Line) Park(ctx context.Context) error {
	for !l.writing.TryLock() {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.parked = true
	return nil
}

// Unpark goes on with another stream, or with the same.
func (l *Line) Unpark(conn net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if conn != nil {
		l.now = conn
		if l.closed {
			conn.Close()
		}
	}
	l.parked = false
	l.moved.Broadcast()
	l.writing.Unlock()
}

// ParkAll parks lines, or none when it fails.
func ParkAll(ctx context.Context, lines []*Line) error {
	ctx, cancel := context.WithTimeout(ctx, parkTime)
	defer cancel()
	for i, l := range lines {
		if err := l.Park(ctx); err != nil {
			UnparkAll(lines[:i])
			return err
		}
	}
	return nil
}

// parkTime bounds how long a write may take to end.
const parkTime = 5 * time.Second

// UnparkAll goes on with the streams that there are.
func UnparkAll(lines []*Line) {
	for _, l := range lines {
		l.Unpark(nil)
	}
}

// Return connects a container, after Reattach, to the lines of its first process, which are parked.
func (s *Sandbox) Return(ctx context.Context, id string, lines []*Line) error {
	request := &agent.AdoptRequest{Id: id}
	conns := make([]net.Conn, len(lines))
	for i, l := range lines {
		conn, token, err := s.Stream()
		if err != nil {
			return err
		}
		conns[i] = conn
		switch l.Name {
		case "console":
			request.Stdin, request.Stdout = token, token
		case "stdin":
			request.Stdin = token
		case "stdout":
			request.Stdout = token
		case "stderr":
			request.Stderr = token
		}
	}
	if err := s.Adopt(ctx, request); err != nil {
		return err
	}
	for i, l := range lines {
		l.Unpark(conns[i])
	}
	return nil
}
