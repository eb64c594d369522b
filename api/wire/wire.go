// Package wire multiplexes the one byte stream between a host and an agent, or
// a front end and a monitor: a yamux session whose first stream speaks ttrpc and whose further streams
// carry raw bytes, each introduced by a token. The side that asks opens every
// stream, so a hostile guest has nothing to offer but answers. Each stream has a
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
const Version = 2

// controlToken introduces the ttrpc stream.
const controlToken = 0

// window is the most that one stream buffers on the receiving side, bytes.
const window = 512 << 10

// maxUnclaimed bounds the streams that wait in the guest for a request that
// names them. It is far above what callers do at once: a hundred processes that
// begin together are three hundred streams, which a busy guest may accept before
// the first of the requests.
const maxUnclaimed = 4096

// maxOpening bounds the streams that the other side has not accepted yet; one
// that opens more waits.
const maxOpening = 256

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
	c.AcceptBacklog = maxOpening
	c.LogOutput = io.Discard
	return c
}

// Client is the end that asks: the host towards an agent, or a front end
// towards a monitor.
type Client struct {
	mux     *yamux.Session
	control *ttrpc.Client
	tokens  atomic.Uint64
	broken  atomic.Pointer[error]
}

// NewClient starts the session on conn, which it owns from now on. It does not
// wait for the other side: what is sent before an agent listens is kept by the VMM.
func NewClient(conn io.ReadWriteCloser) (*Client, error) {
	c := new(Client)
	note := func(err error) { c.broken.CompareAndSwap(nil, &err) }
	mux, err := yamux.Client(&frames{ReadWriteCloser: &guard{ReadWriteCloser: conn, broken: note, read: newScanner(headSize)}}, config())
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("start session: %w", err)
	}
	c.mux = mux
	stream, err := c.open(controlToken)
	if err != nil {
		mux.Close()
		return nil, err
	}
	c.control = ttrpc.NewClient(&answers{Conn: stream, read: newScanner(messageHead), outstanding: make(map[uint32]struct{}), broken: func(err error) {
		note(err)
		mux.Close()
	}}, ttrpc.WithUnaryClientInterceptor(legible))
	return c, nil
}

// Control returns the ttrpc client; it lives as long as the session.
func (c *Client) Control() *ttrpc.Client { return c.control }

// Stream opens a byte stream and returns it with the token by which a request
// refers to it. The caller closes it. Close ends the writing direction: the
// other side reads to the end and then sees EOF.
func (c *Client) Stream() (net.Conn, uint64, error) {
	token := c.tokens.Add(1)
	stream, err := c.open(token)
	return stream, token, err
}

func (c *Client) open(token uint64) (net.Conn, error) {
	stream, err := c.mux.OpenStream()
	if err != nil {
		return nil, fmt.Errorf("open stream: %w", err)
	}
	var head [8]byte
	binary.BigEndian.PutUint64(head[:], token)
	if _, err := stream.Write(head[:]); err != nil {
		stream.Close()
		return nil, fmt.Errorf("open stream: %w", err)
	}
	return stream, nil
}

// Err says what the other side did that ended the session. It wraps ErrProtocol; nil if it did nothing.
func (c *Client) Err() error {
	if err := c.broken.Load(); err != nil {
		return *err
	}
	return nil
}

// Done is closed when the connection has ended, from either side.
func (c *Client) Done() <-chan struct{} { return c.mux.CloseChan() }

// Close ends the session and every stream of it.
func (c *Client) Close() error {
	c.control.Close()
	return c.mux.Close()
}

// Server is the end that answers: the agent, or a monitor.
type Server struct {
	mux *yamux.Session

	mu      sync.Mutex
	arrived *sync.Cond
	streams map[uint64]net.Conn
	// unwanted are tokens that were discarded before their streams arrived.
	unwanted map[uint64]bool
	// refused are tokens whose streams were closed as too many were waiting, so
	// that their requests are told.
	refused map[uint64]bool
	last    uint64 // highest token that has arrived
	err     error
}

// NewServer starts the answering end on conn, which it owns from now on.
func NewServer(conn io.ReadWriteCloser) (*Server, error) {
	mux, err := yamux.Server(&frames{ReadWriteCloser: conn}, config())
	if err != nil {
		return nil, fmt.Errorf("start session: %w", err)
	}
	s := &Server{mux: mux, streams: make(map[uint64]net.Conn), unwanted: make(map[uint64]bool), refused: make(map[uint64]bool)}
	s.arrived = sync.NewCond(&s.mu)
	return s, nil
}

// Close ends the session, and returns when nothing of it reads or writes any more.
func (s *Server) Close() error { return s.mux.Close() }

// Serve answers requests with server until the connection ends or ctx is
// cancelled, and returns why it ended.
func (s *Server) Serve(ctx context.Context, server *ttrpc.Server) error {
	control := &oneConn{conns: make(chan net.Conn, 1), done: s.mux.CloseChan(), addr: s.mux.Addr()}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, control) }()
	stop := context.AfterFunc(ctx, func() { s.mux.Close() })
	defer stop()

	err := s.accept(control.conns)
	s.mu.Lock()
	s.err = err
	for token, stream := range s.streams {
		stream.Close()
		delete(s.streams, token)
	}
	s.arrived.Broadcast()
	s.mu.Unlock()
	server.Close()
	<-served
	return err
}

func (s *Server) accept(control chan<- net.Conn) error {
	for {
		stream, err := s.mux.AcceptStream()
		if err != nil {
			return fmt.Errorf("session ended: %w", err)
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
		s.mu.Lock()
		s.last = max(s.last, token)
		switch {
		case s.unwanted[token]:
			delete(s.unwanted, token)
			stream.Close()
		case len(s.streams) >= maxUnclaimed:
			stream.Close()
			if len(s.refused) < maxUnclaimed {
				s.refused[token] = true
			}
			s.arrived.Broadcast()
		default:
			s.streams[token] = stream
			s.arrived.Broadcast()
		}
		s.mu.Unlock()
	}
}

// Claim returns the stream with this token and waits for its arrival when the
// request that names it was faster. The caller closes it.
func (s *Server) Claim(ctx context.Context, token uint64) (net.Conn, error) {
	if token == controlToken {
		return nil, errors.New("claim stream: token 0 is the control stream")
	}
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.arrived.Broadcast()
	})
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if stream, ok := s.streams[token]; ok {
			delete(s.streams, token)
			return stream, nil
		}
		if s.refused[token] {
			delete(s.refused, token)
			return nil, fmt.Errorf("claim stream %d: refused on its arrival, as %d streams were waiting for their requests", token, maxUnclaimed)
		}
		if s.err != nil {
			return nil, s.err
		}
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("claim stream %d: %w", token, err)
		}
		s.arrived.Wait()
	}
}

// Discard closes the streams of a request that failed before it claimed them. The
// token 0 and tokens that were claimed are ignored.
func (s *Server) Discard(tokens ...uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, token := range tokens {
		if stream, ok := s.streams[token]; ok {
			delete(s.streams, token)
			stream.Close()
		} else if s.refused[token] {
			delete(s.refused, token)
		} else if token > s.last && len(s.unwanted) < maxUnclaimed {
			s.unwanted[token] = true
		}
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
