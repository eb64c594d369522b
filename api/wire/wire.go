// Package wire multiplexes the one byte stream between a host and an agent: a
// yamux session whose first stream speaks ttrpc and whose further streams
// carry raw bytes, each introduced by a token. The host opens every stream, so a
// hostile guest has nothing to offer but answers. Each stream has a
// bounded window: a reader that stops stops its writer, and nothing else.
//
// The package knows nothing of what is said on the streams.
package wire

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/hashicorp/yamux"
)

// Version of the protocol in package api/agent. Host and agent refuse each
// other when it differs: they are built and shipped together.
const Version = 1

// controlToken introduces the ttrpc stream.
const controlToken = 0

// window is the most that one stream buffers on the receiving side, bytes.
const window = 512 << 10

// maxUnclaimed bounds the streams that wait in the guest for a request that
// names them.
const maxUnclaimed = 256

// forever stands for "no limit" where yamux has no such value: a paused VM
// answers nothing for as long as its user likes.
const forever = 10 * 365 * 24 * time.Hour

func config() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false
	c.ConnectionWriteTimeout = forever
	c.StreamOpenTimeout = 0
	c.StreamCloseTimeout = 0
	c.MaxStreamWindowSize = window
	c.AcceptBacklog = maxUnclaimed
	c.LogOutput = io.Discard
	return c
}

// Host is the host's end of the connection.
type Host struct {
	mux     *yamux.Session
	control *ttrpc.Client
	tokens  atomic.Uint64
}

// NewHost starts the session on conn, which it owns from now on. It does not
// wait for the guest: what is sent before the agent listens is kept by the VMM.
func NewHost(conn io.ReadWriteCloser) (*Host, error) {
	mux, err := yamux.Client(conn, config())
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("start session with the agent: %w", err)
	}
	h := &Host{mux: mux}
	stream, err := h.open(controlToken)
	if err != nil {
		mux.Close()
		return nil, err
	}
	h.control = ttrpc.NewClient(stream)
	return h, nil
}

// Control returns the ttrpc client; it lives as long as the session.
func (h *Host) Control() *ttrpc.Client { return h.control }

// Stream opens a byte stream and returns it with the token by which a request
// refers to it. The caller closes it. Close ends the writing direction: the
// other side reads to the end and then sees EOF.
func (h *Host) Stream() (net.Conn, uint64, error) {
	token := h.tokens.Add(1)
	stream, err := h.open(token)
	return stream, token, err
}

func (h *Host) open(token uint64) (net.Conn, error) {
	stream, err := h.mux.OpenStream()
	if err != nil {
		return nil, fmt.Errorf("open stream to the agent: %w", err)
	}
	var head [8]byte
	binary.BigEndian.PutUint64(head[:], token)
	if _, err := stream.Write(head[:]); err != nil {
		stream.Close()
		return nil, fmt.Errorf("open stream to the agent: %w", err)
	}
	return stream, nil
}

// Done is closed when the connection has ended, from either side.
func (h *Host) Done() <-chan struct{} { return h.mux.CloseChan() }

// Close ends the session and every stream of it.
func (h *Host) Close() error {
	h.control.Close()
	return h.mux.Close()
}

// Guest is the agent's end of the connection.
type Guest struct {
	mux *yamux.Session

	mu      sync.Mutex
	arrived *sync.Cond
	streams map[uint64]net.Conn
	err     error
}

// NewGuest starts the agent's end on conn, which it owns from now on.
func NewGuest(conn io.ReadWriteCloser) (*Guest, error) {
	mux, err := yamux.Server(conn, config())
	if err != nil {
		return nil, fmt.Errorf("start session with the host: %w", err)
	}
	g := &Guest{mux: mux, streams: make(map[uint64]net.Conn)}
	g.arrived = sync.NewCond(&g.mu)
	return g, nil
}

// Serve answers requests with server until the connection ends or ctx is
// cancelled, and returns why it ended.
func (g *Guest) Serve(ctx context.Context, server *ttrpc.Server) error {
	control := &oneConn{conns: make(chan net.Conn, 1), done: g.mux.CloseChan(), addr: g.mux.Addr()}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, control) }()
	stop := context.AfterFunc(ctx, func() { g.mux.Close() })
	defer stop()

	err := g.accept(control.conns)
	g.mu.Lock()
	g.err = err
	for token, stream := range g.streams {
		stream.Close()
		delete(g.streams, token)
	}
	g.arrived.Broadcast()
	g.mu.Unlock()
	server.Close()
	<-served
	return err
}

func (g *Guest) accept(control chan<- net.Conn) error {
	for {
		stream, err := g.mux.AcceptStream()
		if err != nil {
			return fmt.Errorf("session with the host ended: %w", err)
		}
		// The host writes the token together with the opening, so this read
		// waits for nobody but the link.
		var head [8]byte
		if _, err := io.ReadFull(stream, head[:]); err != nil {
			stream.Close()
			continue
		}
		token := binary.BigEndian.Uint64(head[:])
		if token == controlToken {
			select {
			case control <- stream:
			default:
				stream.Close()
			}
			continue
		}
		g.mu.Lock()
		if len(g.streams) >= maxUnclaimed {
			stream.Close()
		} else {
			g.streams[token] = stream
			g.arrived.Broadcast()
		}
		g.mu.Unlock()
	}
}

// Claim returns the stream with this token and waits for its arrival when the
// request that names it was faster. The caller closes it.
func (g *Guest) Claim(ctx context.Context, token uint64) (net.Conn, error) {
	if token == controlToken {
		return nil, errors.New("claim stream: token 0 is the control stream")
	}
	stop := context.AfterFunc(ctx, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.arrived.Broadcast()
	})
	defer stop()
	g.mu.Lock()
	defer g.mu.Unlock()
	for {
		if stream, ok := g.streams[token]; ok {
			delete(g.streams, token)
			return stream, nil
		}
		if g.err != nil {
			return nil, g.err
		}
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("claim stream %d: %w", token, err)
		}
		g.arrived.Wait()
	}
}

// oneConn is a listener for a session's control stream.
type oneConn struct {
	conns chan net.Conn
	done  <-chan struct{}
	addr  net.Addr
}

func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return l.addr }
