package network

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"manis/network/egress"
)

// forwardTCP turns a connection request of the guest into a connection of the host. The guest's handshake
// is completed only when the host's has been, so that a refused connection is refused to the guest as well.
// The stack calls it in a goroutine of its own.
func (s *Stack) forwardTCP(r *tcp.ForwarderRequest) {
	if !s.enter() {
		r.Complete(false)
		return
	}
	defer s.work.Done()
	epoch := s.epochContext()
	id := r.ID()
	if !s.isGuest(addrOf(id.RemoteAddress)) {
		r.Complete(false)
		return
	}
	if !s.takeSlot() {
		r.Complete(true)
		return
	}
	defer s.freeSlot()

	dst := netip.AddrPortFrom(addrOf(id.LocalAddress), id.LocalPort)
	if s.gate.policy.isGateway(dst.Addr()) && dst.Port() == dnsPort {
		if g := acceptGuest(epoch, r); g != nil {
			s.serveNamesTCP(epoch, g)
			finish(epoch, g)
		}
		return
	}
	target, why := s.gate.policy.target(egress.TCP, dst)
	if why != allowed {
		s.link.stats.refused.Add(1)
		r.Complete(true)
		return
	}
	ctx, cancel := context.WithTimeout(epoch, dialTimeout)
	conn, err := s.dial(ctx, "tcp", target)
	cancel()
	if err != nil {
		// A guest whose packets get no answer keeps asking, as it would on a real network; each of its
		// attempts is one of ours.
		r.Complete(!errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, syscall.ETIMEDOUT))
		return
	}
	host := conn.(*net.TCPConn)
	g := acceptGuest(epoch, r)
	if g == nil {
		reset(host)
		return
	}
	s.relay(epoch, g, host)
	finish(epoch, g)
}

// reset closes a connection in a way that tells the far end that something broke.
func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

// takeSlot reserves one of the connections the guest may have at a time.
func (s *Stack) takeSlot() bool {
	select {
	case s.slots <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s *Stack) freeSlot() { <-s.slots }

// guestConn is the stack's end of a TCP connection with the guest.
type guestConn struct {
	ep tcpip.Endpoint
	wq *waiter.Queue
}

// acceptGuest completes the guest's handshake, or returns nil when the guest does not take part in it.
func acceptGuest(ctx context.Context, r *tcp.ForwarderRequest) *guestConn {
	ctx, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	var wq waiter.Queue
	// The stack waits for the guest, and nothing but an event on the queue makes it look whether that is of
	// use still. It may not listen yet when the context ends, so one is not enough.
	returned, woken := make(chan struct{}), make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		for {
			wq.Notify(waiter.WritableEvents)
			select {
			case <-returned:
				return
			case <-time.After(wakeInterval):
			}
		}
	})
	ep, err := r.CreateEndpoint(&wq)
	close(returned)
	if !stop() {
		<-woken
	}
	r.Complete(err != nil)
	if err != nil {
		return nil
	}
	return &guestConn{ep: ep, wq: &wq}
}

// dialGuest connects from an address outside to one of the guest.
func (s *Stack) dialGuest(ctx context.Context, from netip.Addr, to netip.AddrPort) (*guestConn, error) {
	var wq waiter.Queue
	src, proto := stackAddr(from)
	dst, _ := stackAddr(to.Addr())
	ep, err := s.stack.NewEndpoint(tcp.ProtocolNumber, proto, &wq)
	if err != nil {
		return nil, errors.New(err.String())
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	err = ep.Bind(tcpip.FullAddress{NIC: nicID, Addr: src})
	if err == nil {
		err = ep.Connect(tcpip.FullAddress{NIC: nicID, Addr: dst, Port: to.Port()})
	}
	if _, started := err.(*tcpip.ErrConnectStarted); started {
		select {
		case <-ready:
			err = ep.LastError()
		case <-ctx.Done():
			ep.Abort()
			ep.Close()
			return nil, ctx.Err()
		}
	}
	if err != nil {
		ep.Close()
		return nil, errors.New(err.String())
	}
	return &guestConn{ep: ep, wq: &wq}, nil
}

// relay copies between the guest and the host until both directions have ended, or one has failed, and
// closes the host's connection. The guest's is left to finish. When ctx ends, both are broken off.
func (s *Stack) relay(ctx context.Context, g *guestConn, host *net.TCPConn) {
	defer host.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { host.SetDeadline(time.Unix(1, 0)) })()

	pool := &tightChunks
	if len(s.slots) <= roomyConnections {
		pool = &roomyChunks
		g.ep.SocketOptions().SetReceiveBufferSize(roomyBuffer, true)
		g.ep.SocketOptions().SetSendBufferSize(roomyBuffer, true)
	}
	toGuest := make(chan struct{})
	go func() {
		defer close(toGuest)
		if err := g.copyFrom(ctx, host, pool); err != nil {
			cancel()
			return
		}
		g.ep.Shutdown(tcpip.ShutdownWrite)
	}()
	err := g.copyTo(ctx, host, pool)
	if err == nil {
		err = host.CloseWrite()
	}
	if err != nil {
		cancel()
	}
	<-toGuest
	if ctx.Err() != nil { // an end that broke off breaks off the other
		host.SetLinger(0)
		g.ep.Abort()
	}
}

// finish closes the guest's end and waits until the stack has forgotten it, so that the slot is held for as
// long as the connection holds memory. A guest that does not take the last bytes in time is cut off.
func finish(ctx context.Context, g *guestConn) {
	entry, gone := waiter.NewChannelEntry(waiter.EventHUp)
	g.wq.EventRegister(&entry)
	defer g.wq.EventUnregister(&entry)
	g.ep.Close()
	if st := tcp.EndpointState(g.ep.State()); st == tcp.StateClose || st == tcp.StateError {
		return
	}
	limit := time.NewTimer(lingerTimeout)
	defer limit.Stop()
	select {
	case <-gone:
	case <-limit.C:
		g.ep.Abort()
	case <-ctx.Done():
		g.ep.Abort()
	}
}

// Buffers are borrowed only while there is something to copy: an idle connection has none.
var (
	roomyChunks = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}
	tightChunks = sync.Pool{New: func() any { b := make([]byte, 16<<10); return &b }}
)

// copyTo copies what the guest sends to w until the guest ends its direction.
func (g *guestConn) copyTo(ctx context.Context, w io.Writer, pool *sync.Pool) error {
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	g.wq.EventRegister(&entry)
	defer g.wq.EventUnregister(&entry)
	for {
		chunk := pool.Get().(*[]byte)
		n, err := g.read(*chunk)
		if err == nil {
			_, err = w.Write((*chunk)[:n])
		}
		pool.Put(chunk)
		switch {
		case err == nil:
		case errors.Is(err, errWouldBlock):
			select {
			case <-ready:
			case <-ctx.Done():
				return ctx.Err()
			}
		case err == io.EOF:
			return nil
		default:
			return err
		}
	}
}

// errWouldBlock is the stack's word for "nothing yet".
var errWouldBlock = errors.New("would block")

// read takes what the guest has sent.
func (g *guestConn) read(b []byte) (int, error) {
	w := tcpip.SliceWriter(b)
	res, err := g.ep.Read(&w, tcpip.ReadOptions{})
	switch err.(type) {
	case nil:
		g.ep.ModerateRecvBuf(res.Count)
		return res.Count, nil
	case *tcpip.ErrWouldBlock:
		return 0, errWouldBlock
	case *tcpip.ErrClosedForReceive:
		return 0, io.EOF
	}
	return 0, errors.New(err.String())
}

// copyFrom copies what the host's connection receives to the guest until the far end closes its direction.
func (g *guestConn) copyFrom(ctx context.Context, host *net.TCPConn, pool *sync.Pool) error {
	raw, err := host.SyscallConn()
	if err != nil {
		return err
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	g.wq.EventRegister(&entry)
	defer g.wq.EventUnregister(&entry)
	for {
		chunk, n, err := readReady(raw, pool)
		if err != nil {
			return err
		}
		if n > 0 {
			err = g.write(ctx, (*chunk)[:n], ready)
		}
		pool.Put(chunk)
		if n == 0 || err != nil {
			return err
		}
	}
}

// readReady waits until there is something to read and borrows a buffer only then. It returns 0 bytes at the
// end of the stream. The buffer goes back to the pool by the caller unless there is an error.
func readReady(raw syscall.RawConn, pool *sync.Pool) (chunk *[]byte, n int, err error) {
	var readErr error
	err = raw.Read(func(fd uintptr) bool {
		chunk = pool.Get().(*[]byte)
		for {
			n, readErr = syscall.Read(int(fd), *chunk)
			if readErr != syscall.EINTR {
				break
			}
		}
		if readErr == syscall.EAGAIN {
			pool.Put(chunk)
			return false
		}
		return true
	})
	if err == nil {
		err = readErr
		if err != nil {
			pool.Put(chunk)
		}
	}
	return chunk, n, err
}

// write sends all of b to the guest, waiting for room.
func (g *guestConn) write(ctx context.Context, b []byte, ready <-chan struct{}) error {
	var r bytes.Reader
	for len(b) > 0 {
		r.Reset(b)
		n, err := g.ep.Write(&r, tcpip.WriteOptions{})
		b = b[n:]
		switch err.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			select {
			case <-ready:
			case <-ctx.Done():
				return ctx.Err()
			}
		default:
			return errors.New(err.String())
		}
	}
	return nil
}
