package monitor

import (
	"context"
	"net"
	"sync"
	"time"
)

// line is a stream of the container's that outlasts the session with the agent: between
// two sessions reads and writes wait.
type line struct {
	net.Conn // the first one, for its addresses and nothing else
	name     string

	writing sync.Mutex // held by a write, and between two sessions

	mu     sync.Mutex
	moved  *sync.Cond
	now    net.Conn
	parked bool
	closed bool
}

func newLine(name string, conn net.Conn) *line {
	l := &line{Conn: conn, name: name, now: conn}
	l.moved = sync.NewCond(&l.mu)
	return l
}

// current returns the present stream. When old is the present one it waits for the next, and
// reports whether there is one.
func (l *line) current(old net.Conn) (net.Conn, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.parked && l.now == old && !l.closed {
		l.moved.Wait()
	}
	return l.now, l.now != old
}

func (l *line) Read(b []byte) (int, error) {
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

func (l *line) Write(b []byte) (int, error) {
	l.writing.Lock()
	defer l.writing.Unlock()
	conn, _ := l.current(nil)
	return conn.Write(b)
}

func (l *line) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.moved.Broadcast()
	return l.now.Close()
}

// park lets the write that is under way end, and no other begin. It fails when ctx ends first.
func (l *line) park(ctx context.Context) error {
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

// unpark goes on with another stream, or with the same.
func (l *line) unpark(conn net.Conn) {
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
