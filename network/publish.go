package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"
)

// PortError is a published port that the host does not give.
type PortError struct {
	Mapping PortMapping
	Err     error
}

func (e *PortError) Error() string {
	host := e.Mapping.HostIP
	if !host.IsValid() {
		host = netip.IPv4Unspecified()
	}
	port := fmt.Sprint(e.Mapping.HostPort)
	if e.Mapping.HostPortEnd > e.Mapping.HostPort {
		port = fmt.Sprintf("%d-%d", e.Mapping.HostPort, e.Mapping.HostPortEnd)
	}
	why := e.Err.Error()
	switch {
	case errors.Is(e.Err, syscall.EADDRINUSE):
		why = "port is already allocated"
	case errors.Is(e.Err, syscall.EACCES):
		why = "permission denied (ports below net.ipv4.ip_unprivileged_port_start need root)"
	case errors.Is(e.Err, syscall.EADDRNOTAVAIL):
		why = "the host has no such address"
	}
	return fmt.Sprintf("bind for %s failed: %s", joinHostPort(host.String(), port), why)
}

func (e *PortError) Unwrap() error { return e.Err }

// listener is one bound socket of a published port.
type listener struct {
	mapping PortMapping // as it is, HostIP and HostPort filled in
	tcp     *net.TCPListener
	udp     *net.UDPConn
}

func (l *listener) close() {
	if l.tcp != nil {
		l.tcp.Close()
	} else {
		l.udp.Close()
	}
}

func (l *listener) addr() netip.AddrPort {
	if l.tcp != nil {
		return l.tcp.Addr().(*net.TCPAddr).AddrPort()
	}
	return l.udp.LocalAddr().(*net.UDPAddr).AddrPort()
}

// Ports returns the published ports as they are: one mapping for each address listened at, with the port
// that was chosen where any would do.
func (s *Stack) Ports() []PortMapping {
	ports := make([]PortMapping, len(s.listeners))
	for i, l := range s.listeners {
		ports[i] = l.mapping
	}
	return ports
}

// publish binds every published port and starts to serve them. Clients that come before the guest is ready
// wait for it.
func (s *Stack) publish(ctx context.Context) error {
	for _, m := range s.config.Publish {
		if m.GuestPort == 0 || m.proto() != TCP && m.proto() != UDP {
			return fmt.Errorf("publish %s: want a container port and tcp or udp", m)
		}
		bound, err := bind(ctx, m, !s.config.NoIPv6)
		if err != nil {
			return err
		}
		s.listeners = append(s.listeners, bound...)
	}
	for i := range s.listeners {
		l := &s.listeners[i]
		if l.tcp != nil {
			s.start(func() { s.acceptTCP(l) })
		} else {
			s.start(func() { s.acceptUDP(l) })
		}
	}
	return nil
}

// attempts bounds the search for a port that is free for IPv4 and IPv6 alike.
const attempts = 32

// bind listens at the host's addresses that a mapping means, all at the same port.
func bind(ctx context.Context, m PortMapping, ipv6 bool) ([]listener, error) {
	m.Proto = m.proto()
	addrs := []netip.Addr{m.HostIP}
	if !m.HostIP.IsValid() {
		addrs = []netip.Addr{netip.IPv4Unspecified()}
		if ipv6 && hostHasIPv6() {
			addrs = append(addrs, netip.IPv6Unspecified())
		}
	}
	if m.HostPortEnd > m.HostPort {
		for port := int(m.HostPort); port <= int(m.HostPortEnd); port++ {
			bound, err := bindAll(ctx, m, addrs, uint16(port))
			if err == nil || !errors.Is(err, syscall.EADDRINUSE) {
				return bound, err
			}
		}
		return nil, &PortError{Mapping: m, Err: syscall.EADDRINUSE}
	}
	for try := 1; ; try++ {
		bound, err := bindAll(ctx, m, addrs, m.HostPort)
		if err == nil || m.HostPort != 0 || try == attempts || !errors.Is(err, syscall.EADDRINUSE) {
			return bound, err
		}
	}
}

func bindAll(ctx context.Context, m PortMapping, addrs []netip.Addr, port uint16) (bound []listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range bound {
				l.close()
			}
			bound = nil
		}
	}()
	for _, a := range addrs {
		l := listener{mapping: m}
		l.mapping.HostIP, l.mapping.HostPortEnd = a, 0
		if err = l.listen(ctx, netip.AddrPortFrom(a, port)); err != nil {
			m.HostIP, m.HostPort, m.HostPortEnd = a, port, 0
			return bound, &PortError{Mapping: m, Err: err}
		}
		port = l.addr().Port() // the others get the same
		l.mapping.HostPort = port
		bound = append(bound, l)
	}
	return bound, nil
}

// listen binds one socket. The family is explicit, so that [::] does not take IPv4 as well.
func (l *listener) listen(ctx context.Context, at netip.AddrPort) error {
	family := "6"
	if at.Addr().Is4() {
		family = "4"
	}
	var lc net.ListenConfig
	if l.mapping.Proto == UDP {
		c, err := lc.ListenPacket(ctx, "udp"+family, at.String())
		if err == nil {
			l.udp = c.(*net.UDPConn)
		}
		return err
	}
	c, err := lc.Listen(ctx, "tcp"+family, at.String())
	if err == nil {
		l.tcp = c.(*net.TCPListener)
	}
	return err
}

// hostHasIPv6 reports whether sockets can be bound to IPv6 addresses at all.
func hostHasIPv6() bool {
	c, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// guestAddr returns the guest's address of the same family as the client's, and the address that the client
// has for the guest: its own, so that the guest's logs tell the truth, but the gateway's for clients on the
// host itself.
func (s *Stack) guestAddr(client netip.Addr) (guest, seen netip.Addr) {
	client = client.Unmap().WithZone("")
	guest, seen = s.gate.guest4, s.gate.gateway4
	if client.Is6() && s.gate.guest6.IsValid() {
		guest, seen = s.gate.guest6, s.gate.gateway6
	}
	if client.Is4() == guest.Is4() && client.IsGlobalUnicast() &&
		!slices.ContainsFunc(s.gate.policy.subnets, func(n netip.Prefix) bool { return n.Contains(client) }) {
		seen = client
	}
	return guest, seen
}

// acceptTCP serves a published TCP port until it is closed.
func (s *Stack) acceptTCP(l *listener) {
	for {
		conn, err := l.tcp.AcceptTCP()
		if err != nil {
			if s.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of descriptors or the like: nothing tells when that is over.
			select {
			case <-time.After(acceptRetry):
				continue
			case <-s.ctx.Done():
				return
			}
		}
		// With all connections taken, further clients wait in the kernel's queue.
		select {
		case s.slots <- struct{}{}:
		case <-s.ctx.Done():
			conn.Close()
			return
		}
		if !s.start(func() { s.serveClient(l, conn) }) {
			s.freeSlot()
			conn.Close()
			return
		}
	}
}

// serveClient connects a client of a published port with the guest. A guest that refuses the connection
// resets the client's.
func (s *Stack) serveClient(l *listener, conn *net.TCPConn) {
	defer s.freeSlot()
	epoch := s.epochContext()
	guest, seen := s.guestAddr(conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr())
	ctx, cancel := context.WithTimeout(epoch, knockLimit)
	g, err := s.dialGuest(ctx, seen, netip.AddrPortFrom(guest, l.mapping.GuestPort))
	cancel()
	if err != nil {
		reset(conn)
		return
	}
	s.relay(epoch, g, conn)
	finish(epoch, g)
}

// acceptUDP serves a published UDP port until it is closed.
func (s *Stack) acceptUDP(l *listener) {
	raw, err := l.udp.SyscallConn()
	if err != nil {
		return
	}
	for {
		// A buffer is borrowed only when there is something to put in it: a range may be many ports.
		if awaitDatagram(raw) != nil {
			return
		}
		buf := datagrams.Get().(*[]byte)
		n, client, err := l.udp.ReadFromUDPAddrPort(*buf)
		if err == nil { // else what came back for an earlier answer
			s.sendUDP(s.publishedFlow(l, client), (*buf)[:n])
		}
		datagrams.Put(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
	}
}

// awaitDatagram waits until there is a datagram, or an error, to read. It fails only on a closed socket.
func awaitDatagram(raw syscall.RawConn) error {
	return raw.Read(func(fd uintptr) bool {
		_, _, err := syscall.Recvfrom(int(fd), nil, syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		return err != syscall.EAGAIN
	})
}

// publishedFlow returns the flow of a client of a published UDP port, a new one if need be.
func (s *Stack) publishedFlow(l *listener, client netip.AddrPort) flow {
	t := &s.sessions
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.published[publishedClient{l.udp, client}]; e != nil {
		t.touch(e)
		return e.flow
	}
	guest, seen := s.guestAddr(client.Addr())
	f := flow{
		guest: netip.AddrPortFrom(guest, l.mapping.GuestPort),
		peer:  netip.AddrPortFrom(seen, client.Port()),
	}
	// Clients that are seen under the same address, or a session of the guest's own, may have the port.
	for t.table[f] != nil || s.gate.policy.isGateway(seen) && f.peer.Port() == dnsPort {
		t.nextPort++
		f.peer = netip.AddrPortFrom(seen, 32768+t.nextPort%28000)
	}
	t.add(&session{flow: f, socket: l.udp, client: client})
	return f
}
