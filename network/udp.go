package network

import (
	"container/list"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"manis/network/egress"
)

// flow names a UDP session by its two ends as the guest sees them.
type flow struct{ guest, peer netip.AddrPort }

// session is a UDP conversation between the guest and a peer, begun by either. Its socket is its own when
// the guest began it, and the published port's otherwise.
type session struct {
	flow
	socket *net.UDPConn
	client netip.AddrPort // of a published port: where answers go. Invalid when the guest began.
	index  *list.Element  // in sessions.order

	used     time.Time // guarded by sessions.mu
	answered bool
}

// sessions is the table of all of them, in order of last use. A new one takes the place of the one unused
// for longest when the table is full.
type sessions struct {
	mu    sync.Mutex
	max   int
	table map[flow]*session
	order list.List // of *session, the least recently used first
	// published finds the session of a client of a published port.
	published map[publishedClient]*session
	nextPort  uint16
}

type publishedClient struct {
	socket *net.UDPConn
	client netip.AddrPort
}

func (t *sessions) init(max int) {
	t.max = max
	t.table = map[flow]*session{}
	t.published = map[publishedClient]*session{}
	t.order.Init()
}

// find returns the session of a flow and marks it as used.
func (t *sessions) find(f flow) *session {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.table[f]
	if e != nil {
		t.touch(e)
	}
	return e
}

func (t *sessions) touch(e *session) {
	e.used = time.Now()
	t.order.MoveToBack(e.index)
}

// add enters a session, and ends the least recently used one if there are too many.
func (t *sessions) add(e *session) {
	e.used = time.Now()
	e.index = t.order.PushBack(e)
	t.table[e.flow] = e
	if e.client.IsValid() {
		t.published[publishedClient{e.socket, e.client}] = e
	}
	if len(t.table) > t.max {
		t.remove(t.order.Front().Value.(*session))
	}
}

// remove ends a session; t.mu is held. Closing its socket ends its goroutine.
func (t *sessions) remove(e *session) {
	if t.table[e.flow] != e {
		return
	}
	delete(t.table, e.flow)
	t.order.Remove(e.index)
	if e.client.IsValid() {
		delete(t.published, publishedClient{e.socket, e.client})
	} else {
		e.socket.Close()
	}
}

func (t *sessions) end(e *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.remove(e)
}

func (t *sessions) closeAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.order.Len() > 0 {
		t.remove(t.order.Front().Value.(*session))
	}
}

// sweep ends the sessions that have been idle for too long at a time.
func (t *sessions) sweep(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for e := t.order.Front(); e != nil; {
		next := e.Next()
		s := e.Value.(*session)
		idle := now.Sub(s.used)
		if idle < udpUnreplied {
			return // all that follow were used later
		}
		if !s.answered || idle >= udpIdle {
			t.remove(s)
		}
		e = next
	}
}

// sweepSessions runs sweep now and then until Close.
func (s *Stack) sweepSessions() {
	tick := time.NewTicker(udpUnreplied / 3)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			s.sessions.sweep(now)
		case <-s.ctx.Done():
			return
		}
	}
}

// forwardUDP takes a datagram of the guest to its peer. It runs in the goroutine that receives frames. The
// stack itself has no UDP endpoints, so every datagram comes here.
func (s *Stack) forwardUDP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	f := flow{
		guest: netip.AddrPortFrom(addrOf(id.RemoteAddress), id.RemotePort),
		peer:  netip.AddrPortFrom(addrOf(id.LocalAddress), id.LocalPort),
	}
	if !s.isGuest(f.guest.Addr()) || f.guest.Port() == 0 || f.peer.Port() == 0 {
		return true
	}
	data, ok := pkt.Data().PullUp(pkt.Data().Size())
	length := int(header.UDP(pkt.TransportHeader().Slice()).Length()) - header.UDPMinimumSize
	if !ok || length < 0 || length > len(data) {
		return true
	}
	data = data[:length]
	if s.gate.policy.isGateway(f.peer.Addr()) && f.peer.Port() == dnsPort {
		s.serveNamesUDP(f, data)
		return true
	}
	e := s.sessions.find(f)
	if e == nil {
		target, why := s.gate.policy.target(egress.UDP, f.peer)
		if why != allowed {
			s.link.stats.refused.Add(1)
			return false // the stack says "port unreachable"
		}
		if e = s.openSession(f, target); e == nil {
			return true
		}
	}
	if e.client.IsValid() {
		s.sessions.markAnswered(e)
		e.socket.WriteToUDPAddrPort(data, e.client)
	} else {
		writeNow(e.socket, data)
	}
	return true
}

func (t *sessions) markAnswered(e *session) {
	t.mu.Lock()
	e.answered = true
	if t.table[e.flow] == e {
		t.touch(e)
	}
	t.mu.Unlock()
}

// openSession makes a socket of the host for a flow that the guest begins, or returns nil when the host has
// no way there.
func (s *Stack) openSession(f flow, target netip.AddrPort) *session {
	conn, err := s.dial(s.ctx, "udp", target)
	if err != nil {
		return nil
	}
	return s.begin(f, conn.(*net.UDPConn), s.sendUDP)
}

// begin enters a session that the guest began and has its answers taken to the guest. It takes over the socket,
// and returns nil after Close.
func (s *Stack) begin(f flow, socket *net.UDPConn, deliver func(flow, []byte)) *session {
	e := &session{flow: f, socket: socket}
	s.sessions.mu.Lock()
	s.sessions.add(e)
	s.sessions.mu.Unlock()
	if !s.start(func() { s.answerSession(e, deliver) }) {
		s.sessions.end(e)
		return nil
	}
	return e
}

// answerSession hands on what the peer sends until the session is removed from the table, which closes its
// socket.
func (s *Stack) answerSession(e *session, deliver func(flow, []byte)) {
	defer s.sessions.end(e)
	raw, err := e.socket.SyscallConn()
	if err != nil {
		return
	}
	for failures := 0; failures < 16; {
		chunk, n, err := readReady(raw, &datagrams)
		if errno, ok := err.(syscall.Errno); ok {
			// What came back for an earlier datagram, not the end of the session.
			failures++
			if errno == syscall.ECONNREFUSED && e.peer.Port() != 0 {
				s.sendUnreachable(e.flow)
			}
			continue
		}
		if err != nil {
			return
		}
		failures = 0
		s.sessions.markAnswered(e)
		deliver(e.flow, (*chunk)[:n])
		datagrams.Put(chunk)
	}
}

var datagrams = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// writeNow sends a datagram to the connected peer if the socket takes it at once, and drops it otherwise, as a
// network does: the goroutine that receives frames must not wait.
func writeNow(c *net.UDPConn, data []byte) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	raw.Write(func(fd uintptr) bool {
		syscall.Write(int(fd), data)
		return true
	})
}

// sendUDP sends a datagram to the guest from the flow's peer, in fragments if it has to be.
func (s *Stack) sendUDP(f flow, data []byte) {
	local, proto := stackAddr(f.peer.Addr())
	remote, _ := stackAddr(f.guest.Addr())
	route, err := s.stack.FindRoute(nicID, local, remote, proto, false)
	if err != nil {
		return
	}
	defer route.Release()
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.UDPMinimumSize + int(route.MaxHeaderLength()),
		Payload:            buffer.MakeWithData(data), // copies
	})
	defer pkt.DecRef()
	pkt.TransportProtocolNumber = udp.ProtocolNumber
	u := header.UDP(pkt.TransportHeader().Push(header.UDPMinimumSize))
	length := uint16(pkt.Size())
	u.Encode(&header.UDPFields{SrcPort: f.peer.Port(), DstPort: f.guest.Port(), Length: length})
	sum := checksum.Combine(route.PseudoHeaderChecksum(udp.ProtocolNumber, length), pkt.Data().Checksum())
	if sum = ^u.CalculateChecksum(sum); sum == 0 {
		sum = 0xffff // zero stands for "none"
	}
	u.SetChecksum(sum)
	route.WritePacket(stack.NetworkHeaderParams{
		Protocol: udp.ProtocolNumber,
		TTL:      route.DefaultTTL(),
		TOS:      stack.DefaultTOS,
	}, pkt)
}

// sendUnreachable tells the guest that nothing listens at the peer's port, as the peer told the host.
func (s *Stack) sendUnreachable(f flow) {
	if f.peer.Addr().Is4() {
		s.link.send(header.IPv4ProtocolNumber, unreachable4(f))
	} else {
		s.link.send(header.IPv6ProtocolNumber, unreachable6(f))
	}
}
