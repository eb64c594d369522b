package network

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// alive fails the test unless the gateway answers, and so has looked at all frames before. It skips what else
// comes from the stack and returns the kinds of it.
func (g *rawGuest) alive() (skipped []string) {
	g.t.Helper()
	const ident = 0xbeef
	proto, echo := echoRequest(g.addrs.Gateway4, ident)
	g.ip(proto, g.addrs.IPv4.Addr(), g.addrs.Gateway4, echo)
	for {
		a := g.next()
		if a.kind == "echo reply" && header.ICMPv4(a.payload).Ident() == ident {
			return skipped
		}
		skipped = append(skipped, a.kind)
	}
}

// Frames under another name than the guest's own are dropped before anything looks into them.
func TestSpoofedSources(t *testing.T) {
	s := newStack(t, Config{AllowHostLoopback: true})
	trap := setTrap(t, "127.0.0.1", 0)
	g := connectRaw(t, s)
	dst := netip.AddrPortFrom(g.addrs.Gateway4, trap.at.Port())
	dst6 := netip.AddrPortFrom(g.addrs.Gateway6, trap.at.Port())
	attack := func(src netip.Addr) {
		d := dst
		if src.Is6() {
			d = dst6
		}
		from := netip.AddrPortFrom(src, 40000)
		g.ip(header.TCPProtocolNumber, src, d.Addr(), tcpSYN(from, d))
		g.ip(header.UDPProtocolNumber, src, d.Addr(), udpDatagram(from, d, []byte("x")))
		proto, echo := echoRequest(d.Addr(), 1)
		g.ip(proto, src, d.Addr(), echo)
		g.ip(header.UDPProtocolNumber, src, d.Addr(), udpDatagram(from, netip.AddrPortFrom(d.Addr(), dnsPort), []byte("x")))
	}
	for _, src := range addrs("192.168.127.1", "192.168.127.3", "192.168.127.0", "127.0.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1",
		"10.0.0.1", "169.254.1.1", "fd6d:616e:6973::1", "fd6d:616e:6973::3", "::1", "::", "fe80::1", "2001:db8::1", "ff02::1") {
		attack(src)
	}
	own := g.mac
	for _, mac := range []net.HardwareAddr{g.addrs.GatewayMAC, {2, 0, 0, 0, 0, 1}, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, make(net.HardwareAddr, 6)} {
		g.mac = mac
		attack(g.addrs.IPv4.Addr())
		attack(g.addrs.IPv6.Addr())
	}
	g.mac = own
	if got := g.alive(); len(got) > 0 {
		t.Errorf("spoofed frames are answered by %v", got)
	}
	if what := trap.reached(); what != "" {
		t.Errorf("a spoofed %s packet reached the host", what)
	}
	if n := s.Stats().Dropped; n < 64 {
		t.Errorf("%d frames counted as dropped", n)
	}
}

// Frames that are cut off, oversized or nonsense at every layer do no harm.
func TestMalformedFrames(t *testing.T) {
	s := newStack(t, Config{})
	g := connectRaw(t, s)
	proto, good := ipPacket(header.TCPProtocolNumber, g.addrs.IPv4.Addr(), netip.MustParseAddr("203.0.113.1"),
		tcpSYN(netip.AddrPortFrom(g.addrs.IPv4.Addr(), 1), netip.AddrPortFrom(g.addrs.Gateway4, 2)))
	_, good6 := ipPacket(header.UDPProtocolNumber, g.addrs.IPv6.Addr(), netip.MustParseAddr("2001:db8::1"), make([]byte, 8))
	for n := range ethernetBytes + 1 {
		g.frame(make([]byte, n))
	}
	for n := range len(good) {
		g.packet(proto, good[:n])
	}
	for n := range len(good6) {
		g.packet(header.IPv6ProtocolNumber, good6[:n])
	}
	for n := range header.ARPSize {
		g.packet(header.ARPProtocolNumber, make([]byte, n))
	}
	for _, size := range []int{1600, 65535, maxFrameBytes - ethernetBytes} {
		g.packet(proto, make([]byte, size))
		g.packet(header.IPv6ProtocolNumber, make([]byte, size))
		g.packet(0x8100, make([]byte, size)) // VLAN
	}
	// An IPv6 packet that claims a neighbour solicitation in a fragment, behind options, and cut off.
	for _, next := range []byte{0, 43, 44, 50, 51, 58, 59, 60, 135, 139, 253} {
		p := append([]byte(nil), good6...)
		p[6] = next
		g.packet(header.IPv6ProtocolNumber, p)
	}
	// IPv4 options, and a header length beyond the packet.
	for _, ihl := range []byte{0x40, 0x44, 0x46, 0x4f} {
		p := append([]byte(nil), good...)
		p[0] = ihl
		g.packet(proto, p)
	}
	g.alive()
}

// A length that QEMU cannot have sent ends the connection, not the memory.
func TestAbsurdFrameLength(t *testing.T) {
	for _, n := range []uint32{maxFrameBytes + 1, 1 << 31, 1<<32 - 1} {
		s := newStack(t, Config{})
		g := connectRaw(t, s)
		if _, err := g.conn.Write(binary.BigEndian.AppendUint32(nil, n)); err != nil {
			t.Fatal(err)
		}
		var framing *FramingError
		if err := <-g.serve; !errors.As(err, &framing) || framing.Length != n {
			t.Errorf("length %d: Serve returned %v", n, err)
		}
	}
}

func TestAddressResolution(t *testing.T) {
	s := newStack(t, Config{})
	g := connectRaw(t, s)
	ask4 := func(target netip.Addr) {
		p := header.ARP(make([]byte, header.ARPSize))
		p.SetIPv4OverEthernet()
		p.SetOp(header.ARPRequest)
		copy(p.HardwareAddressSender(), g.mac)
		copy(p.ProtocolAddressSender(), g.addrs.IPv4.Addr().AsSlice())
		copy(p.ProtocolAddressTarget(), target.AsSlice())
		g.packet(header.ARPProtocolNumber, p)
	}
	ask6 := func(target netip.Addr) {
		m := header.ICMPv6(make([]byte, header.ICMPv6NeighborSolicitMinimumSize))
		m.SetType(header.ICMPv6NeighborSolicit)
		ns := header.NDPNeighborSolicit(m.MessageBody())
		ns.SetTargetAddress(tcpip.AddrFrom16(target.As16()))
		g.ip(header.ICMPv6ProtocolNumber, g.addrs.IPv6.Addr(), netip.MustParseAddr("ff02::1:ff00:1"), m)
	}
	// In nobody's name but the gateway's.
	for _, a := range addrs("192.168.127.2", "192.168.127.3", "10.0.0.1", "169.254.169.254", "0.0.0.0") {
		ask4(a)
	}
	for _, a := range addrs("fd6d:616e:6973::3", "fe80::1", "::", "fd00:ec2::254") {
		ask6(a)
	}
	if got := g.alive(); len(got) > 0 {
		t.Errorf("answers in the name of others: %v", got)
	}
	ask4(g.addrs.Gateway4)
	if p := header.ARP((<-g.got)[ethernetBytes:]); !p.IsValid() || p.Op() != header.ARPReply ||
		!bytes.Equal(p.HardwareAddressSender(), g.addrs.GatewayMAC) ||
		!bytes.Equal(p.ProtocolAddressSender(), g.addrs.Gateway4.AsSlice()) ||
		!bytes.Equal(p.HardwareAddressTarget(), g.mac) {
		t.Errorf("ARP reply %x", []byte(p))
	}
	ask6(g.addrs.Gateway6)
	b := <-g.got
	if a := parseReply(b); a.kind == "bad checksum" || a.src != g.addrs.Gateway6 ||
		header.ICMPv6(a.payload).Type() != header.ICMPv6NeighborAdvert || !bytes.Contains(a.payload, g.addrs.GatewayMAC) {
		t.Errorf("neighbour advertisement %x", b)
	}
	proto, echo := echoRequest(g.addrs.Gateway6, 5)
	g.ip(proto, g.addrs.IPv6.Addr(), g.addrs.Gateway6, echo)
	if a := g.next(); a.kind != "echo reply" || a.src != g.addrs.Gateway6 {
		t.Errorf("ping of the IPv6 gateway: %+v", a)
	}
}

// More connections than allowed: the host has no more than that, and those there are go on working.
func TestConnectionsAreBounded(t *testing.T) {
	const limit = 8
	s, g := boot(t, Config{AllowHostLoopback: true, MaxConnections: limit})
	at, l, _ := outside(t, "tcp", s.Guest().Gateway4)
	go echoTCP(l)
	var open []net.Conn
	for range limit {
		c := g.mustDial(at)
		defer c.Close()
		open = append(open, c)
	}
	if c, err := g.dial(at); err == nil {
		c.Close()
		t.Error("one more connection than allowed")
	} else if !strings.Contains(err.Error(), "refused") {
		t.Errorf("one more connection: %v, want it refused", err)
	}
	for _, c := range open {
		if _, err := c.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Error(err)
		}
	}
	open[0].Close()
	// The slot is free when the connection has been forgotten, which no event tells the guest of.
	for deadline := time.Now().Add(patience); ; {
		c, err := g.dial(at)
		if err == nil {
			c.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no connection after one was closed: %v", err)
		}
		runtime.Gosched()
	}
}

// SYN packets without end to an address that never answers: what waits is bounded.
func TestSYNFlood(t *testing.T) {
	s := newStack(t, Config{})
	g := connectRaw(t, s)
	before := openFiles(t)
	for i := range 20000 {
		src := netip.AddrPortFrom(g.addrs.IPv4.Addr(), uint16(1024+i))
		dst := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), uint16(1+i/256))
		g.ip(header.TCPProtocolNumber, src.Addr(), dst.Addr(), tcpSYN(src, dst))
	}
	g.alive()
	if n := openFiles(t) - before; n > maxDialing+8 {
		t.Errorf("%d descriptors for 20000 SYN packets, want at most %d", n, maxDialing)
	}
	s.Close()
}

// Datagrams to ever new peers: the table is bounded and the newest are the ones that work.
func TestUDPSessionsAreBounded(t *testing.T) {
	const limit = 16
	s, g := boot(t, Config{AllowHostLoopback: true, MaxSessions: limit})
	at, _, pc := outside(t, "udp", s.Guest().Gateway4)
	go echoUDP(pc)
	before := openFiles(t)
	for range 40 * limit {
		c := g.dialUDP(at)
		c.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	s.sessions.mu.Lock()
	n := len(s.sessions.table)
	s.sessions.mu.Unlock()
	if n != limit {
		t.Errorf("%d sessions, want %d", n, limit)
	}
	if n := openFiles(t) - before; n > limit+4 {
		t.Errorf("%d descriptors for %d sessions", n, limit)
	}
}

func TestUDPSessionsEnd(t *testing.T) {
	s, g := boot(t, Config{AllowHostLoopback: true})
	at, _, pc := outside(t, "udp", s.Guest().Gateway4)
	one := func(answer bool) {
		c := g.dialUDP(at)
		defer c.Close()
		c.Write([]byte("x"))
		buf := make([]byte, 8)
		_, from, err := pc.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		if answer {
			pc.WriteTo(buf[:1], from)
			if _, err := c.Read(buf); err != nil {
				t.Fatal(err)
			}
		}
	}
	one(false)
	one(true)
	count := func() int {
		s.sessions.mu.Lock()
		defer s.sessions.mu.Unlock()
		return len(s.sessions.table)
	}
	for _, c := range []struct {
		later time.Duration
		left  int
	}{{0, 2}, {udpUnreplied + time.Second, 1}, {udpIdle + time.Second, 0}} {
		s.sessions.sweep(time.Now().Add(c.later))
		if n := count(); n != c.left {
			t.Errorf("after %v: %d sessions, want %d", c.later, n, c.left)
		}
	}
}

// A datagram to a port where nobody listens comes back as the error that the guest's kernel knows.
func TestUDPRefused(t *testing.T) {
	for _, family := range []string{"IPv4", "IPv6"} {
		t.Run(family, func(t *testing.T) {
			s := newStack(t, Config{AllowHostLoopback: true})
			gateway := s.Guest().Gateway4
			if family == "IPv6" {
				gateway = s.Guest().Gateway6
			}
			at, _, pc := outside(t, "udp", gateway)
			pc.Close()
			g := connectRaw(t, s)
			src := netip.AddrPortFrom(g.source(gateway), 40000)
			g.ip(header.UDPProtocolNumber, src.Addr(), gateway, udpDatagram(src, at, []byte("x")))
			if a := g.next(); a.kind != "port unreachable" || a.about != gateway {
				t.Errorf("answer %+v", a)
			}
		})
	}
}

// A guest that does not read what is sent to it: the sender is held back, memory does not grow, and the stack
// goes on for others.
func TestGuestThatDoesNotRead(t *testing.T) {
	s, g := boot(t, Config{AllowHostLoopback: true})
	at, l, _ := outside(t, "tcp", s.Guest().Gateway4)
	wrote := make(chan int64, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		c.SetWriteDeadline(time.Now().Add(2 * time.Second))
		var n int64
		buf := make([]byte, 64<<10)
		for {
			k, err := c.Write(buf)
			n += int64(k)
			if err != nil {
				wrote <- n
				return
			}
		}
	}()
	c := g.mustDial(at)
	defer c.Close()
	// What fits into buffers: both kernels' and both stacks'. Far less than two seconds of traffic.
	if n := <-wrote; n > 32<<20 {
		t.Errorf("%d bytes were taken from the sender while the guest read none", n)
	}
	at2, l2, _ := outside(t, "tcp", s.Guest().Gateway4)
	go echoTCP(l2)
	c2 := g.mustDial(at2)
	defer c2.Close()
	c2.Write([]byte("x"))
	if _, err := io.ReadFull(c2, make([]byte, 1)); err != nil {
		t.Errorf("another connection: %v", err)
	}
}

// Many connections on which the guest sends and nobody receives: the guest is held back, and what the stack
// keeps for it stays within what limits.go says.
func TestMemoryOfManyConnections(t *testing.T) {
	const connections, each = 200, 4 << 20
	s, g := boot(t, Config{AllowHostLoopback: true})
	// The guest of this test lives in the same memory: it keeps little itself.
	small := tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: 16 << 10, Max: 16 << 10}
	if err := g.stack.SetTransportProtocolOption(header.TCPProtocolNumber, &small); err != nil {
		t.Fatal(err)
	}
	at, l, _ := outside(t, "tcp", s.Guest().Gateway4)
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapInuse)
	}
	before := heap()
	data := make([]byte, each)
	var senders sync.WaitGroup
	for range connections {
		c := g.mustDial(at)
		h, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		h.(*net.TCPConn).SetReadBuffer(4 << 10)
		c.SetDeadline(time.Now().Add(3 * time.Second))
		senders.Go(func() {
			defer c.Close()
			c.Write(data) // until the deadline
		})
	}
	senders.Wait()
	grown := heap() - before
	t.Logf("%d MiB for %d connections that offer %d MiB", grown>>20, connections, connections*each>>20)
	if grown > 160<<20 {
		t.Errorf("the heap has grown by %d MiB", grown>>20)
	}
}

// The same with a VM that does not take frames at all.
func TestCardThatDoesNotRead(t *testing.T) {
	s := newStack(t, Config{Publish: []PortMapping{{HostIP: loopbackOf("IPv4"), GuestPort: 9, Proto: UDP}}})
	ours, theirs := socketPair(t)
	defer theirs.Close()
	served := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { served <- s.Serve(ctx, ours) }()
	c, err := net.Dial("udp", netip.AddrPortFrom(loopbackOf("IPv4"), portOf(t, s, UDP, false)).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	data := make([]byte, 8000)
	for range 20000 { // 160 MB
		c.Write(data)
	}
	if n := len(s.link.queue); n > cap(s.link.queue) || cap(s.link.queue)*s.config.MTU > 2*queueBytes {
		t.Errorf("%d packets of up to %d bytes wait", n, s.config.MTU)
	}
	cancel()
	if err := <-served; !errors.Is(err, context.Canceled) {
		t.Errorf("Serve: %v", err)
	}
}

func openFiles(t testing.TB) int {
	t.Helper()
	d, err := syscall.Open("/proc/self/fd", syscall.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(d)
	n, buf := 0, make([]byte, 64<<10)
	for {
		k, err := syscall.ReadDirent(d, buf)
		if err != nil {
			t.Fatal(err)
		}
		if k == 0 {
			return n
		}
		_, c, _ := syscall.ParseDirent(buf[:k], -1, nil)
		n += c
	}
}

// leaked returns the stacks of goroutines that run code of this package, its tests aside, or of the TCP/IP stack.
func leaked() string {
	buf := make([]byte, 4<<20)
	var found []string
	for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if (strings.Contains(g, "manis/network.") || strings.Contains(g, "gvisor.dev/")) && !strings.Contains(g, "testing.tRunner") {
			found = append(found, g)
		}
	}
	return strings.Join(found, "\n\n")
}

// Close in the middle of everything leaves nothing: no goroutine, no descriptor, no port.
func TestCloseLeavesNothing(t *testing.T) {
	before := openFiles(t)
	func() {
		server, err := net.ListenPacket("udp", "127.0.0.1:0") // a name server that never answers
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		s, err := New(t.Context(), Config{
			AllowHostLoopback: true,
			Publish:           []PortMapping{{GuestPort: 80}, {GuestPort: 81, Proto: UDP}, {HostIP: loopbackOf("IPv4"), GuestPort: 82}},
		})
		if err != nil {
			t.Fatal(err)
		}
		s.askBy(server.LocalAddr().(*net.UDPAddr).AddrPort())
		ours, theirs := socketPair(t)
		served := make(chan error, 1)
		go func() { served <- s.Serve(context.Background(), ours) }()
		defer theirs.Close()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		g := &rawGuest{t: t, conn: theirs, addrs: s.Guest(), mac: s.Guest().MAC}
		port := l.Addr().(*net.TCPAddr).AddrPort().Port()
		for i := range 40 {
			src := netip.AddrPortFrom(g.addrs.IPv4.Addr(), uint16(30000+i))
			for _, dst := range []netip.AddrPort{
				netip.AddrPortFrom(g.addrs.Gateway4, port),                 // a handshake that does not go on
				netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port), // a dial that gets no answer, or none at all
				netip.AddrPortFrom(g.addrs.Gateway4, dnsPort),              // DNS over TCP, likewise
			} {
				g.ip(header.TCPProtocolNumber, src.Addr(), dst.Addr(), tcpSYN(src, dst))
			}
			for _, p := range []uint16{port, dnsPort} {
				dst := netip.AddrPortFrom(g.addrs.Gateway4, p)
				g.ip(header.UDPProtocolNumber, src.Addr(), dst.Addr(), udpDatagram(src, dst, query(t, 1, "a.", 1, nil)))
			}
		}
		proto, echo := echoRequest(netip.MustParseAddr("192.0.2.1"), 1)
		g.ip(proto, g.addrs.IPv4.Addr(), netip.MustParseAddr("192.0.2.1"), echo)
		for _, p := range s.Ports() {
			at := netip.AddrPortFrom(loopbackOf("IPv4"), p.HostPort)
			c, err := net.Dial(string(p.Proto), at.String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			fmt.Fprint(c, "hello")
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("again: %v", err)
		}
		if err := <-served; !errors.Is(err, ErrClosed) {
			t.Errorf("Serve returned %v", err)
		}
		other, more := socketPair(t)
		defer more.Close()
		if err := s.Serve(t.Context(), other); !errors.Is(err, ErrClosed) {
			t.Errorf("Serve after Close: %v", err)
		}
		for _, p := range s.Ports() {
			again, err := New(t.Context(), Config{Publish: []PortMapping{p}})
			if err != nil {
				t.Errorf("port %v after Close: %v", p, err)
				continue
			}
			again.Close()
		}
	}()
	for deadline := time.Now().Add(patience); ; runtime.Gosched() {
		stacks, files := leaked(), openFiles(t)
		if stacks == "" && files <= before {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors more than before, goroutines:\n%s", files-before, stacks)
		}
	}
}

// When a VM goes, its connections go with it, and the next VM on the stack starts afresh.
func TestNextVM(t *testing.T) {
	s := newStack(t, Config{AllowHostLoopback: true, Publish: []PortMapping{{HostIP: loopbackOf("IPv4"), GuestPort: 80}}})
	at, l, _ := outside(t, "tcp", s.Guest().Gateway4)
	accepted := make(chan net.Conn, 1)
	go func() {
		if c, err := l.Accept(); err == nil {
			accepted <- c
		}
		echoTCP(l)
	}()
	first := connect(t, s)
	c1 := first.mustDial(at)
	host := <-accepted
	defer host.Close()
	c1.Write([]byte("x"))
	if _, err := io.ReadFull(host, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}

	ours, theirs := socketPair(t)
	defer theirs.Close()
	if err := s.Serve(t.Context(), ours); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("a second VM at the same time: %v", err)
	}
	first.close()
	host.SetReadDeadline(time.Now().Add(patience))
	if _, err := host.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection of a VM that is gone: %v, want a reset", err)
	}
	second := connect(t, s, func(g *guest) { go echoTCP(g.listen(80, false)) })
	c := second.mustDial(at)
	defer c.Close()
	p, err := net.Dial("tcp", netip.AddrPortFrom(loopbackOf("IPv4"), portOf(t, s, TCP, false)).String())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	p.SetDeadline(time.Now().Add(patience))
	for _, conn := range []net.Conn{c, p} {
		conn.Write([]byte("x"))
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Error(err)
		}
	}
}

// Each end of a connection learns how the other ended: an orderly end of one direction leaves the other open,
// a reset is a reset.
func TestEndsOfConnections(t *testing.T) {
	s, g := boot(t, Config{AllowHostLoopback: true})
	at, l, _ := outside(t, "tcp", s.Guest().Gateway4)
	accept := func() (net.Conn, *net.TCPConn) {
		c := g.mustDial(at)
		h, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		h.SetDeadline(time.Now().Add(patience))
		return c, h.(*net.TCPConn)
	}
	c, h := accept()
	c.(interface{ CloseWrite() error }).CloseWrite()
	if b, err := io.ReadAll(h); err != nil || len(b) > 0 {
		t.Errorf("the host's end: %q, %v", b, err)
	}
	h.Write([]byte("still here"))
	h.Close()
	if b, err := io.ReadAll(c); err != nil || string(b) != "still here" {
		t.Errorf("the guest's end: %q, %v", b, err)
	}
	c.Close()

	c, h = accept()
	h.SetLinger(0)
	h.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("the host resets, the guest reads: %v", err)
	}
	c.Close()

	l.Close()
	if _, err := g.dial(at); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("nobody listens: %v", err)
	}
}

func FuzzGate(f *testing.F) {
	s, err := New(context.Background(), Config{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Close() })
	a := s.Guest()
	frame := func(proto tcpip.NetworkProtocolNumber, p []byte) []byte {
		b := make([]byte, ethernetBytes, ethernetBytes+len(p))
		header.Ethernet(b).Encode(&header.EthernetFields{SrcAddr: tcpip.LinkAddress(a.MAC), DstAddr: tcpip.LinkAddress(a.GatewayMAC), Type: proto})
		return append(b, p...)
	}
	for _, dst := range addrs("192.168.127.1", "1.1.1.1", "127.0.0.1", "fd6d:616e:6973::1", "2606:4700::1111", "::1") {
		src := a.IPv4.Addr()
		if dst.Is6() {
			src = a.IPv6.Addr()
		}
		for _, p := range []tcpip.TransportProtocolNumber{6, 17, 1, 58, 44} {
			f.Add(frame(ipPacket(p, src, dst, make([]byte, 24))))
		}
	}
	f.Add(frame(header.ARPProtocolNumber, make([]byte, header.ARPSize)))
	f.Fuzz(func(t *testing.T, b []byte) {
		before := append([]byte(nil), b...)
		v, proto, reply := s.gate.inspect(b)
		if !bytes.Equal(b, before) {
			t.Error("the frame was changed")
		}
		if (v == answer || v == refuse) != (reply != nil) {
			t.Errorf("verdict %d with a reply of %d bytes", v, len(reply))
		}
		if len(reply) > len(b)+header.IPv6MinimumSize+header.ICMPv6DstUnreachableMinimumSize {
			t.Errorf("a reply of %d bytes to a frame of %d", len(reply), len(b))
		}
		if v != pass && v != ping {
			return
		}
		// Whatever gets through is from the guest to where policy lets it.
		p := b[ethernetBytes:]
		var src, dst netip.Addr
		if proto == header.IPv4ProtocolNumber {
			src, dst = netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20]))
		} else {
			src, dst = netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40]))
		}
		if !s.isGuest(src) {
			t.Errorf("a packet from %s gets through", src)
		}
		if why := s.gate.policy.check(dst); why != allowed && !s.gate.policy.isGateway(dst) {
			t.Errorf("a packet to %s gets through: %s", dst, why)
		}
	})
}

// FuzzFrames lets a guest send any bytes at all to a whole stack.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 0})
	f.Add(binary.BigEndian.AppendUint32(nil, 1<<31))
	g := Config{}.mustAddresses(f)
	for _, dst := range addrs("192.168.127.1", "fd6d:616e:6973::1") {
		src := g.IPv4.Addr()
		if dst.Is6() {
			src = g.IPv6.Addr()
		}
		for _, payload := range [][]byte{
			tcpSYN(netip.AddrPortFrom(src, 1), netip.AddrPortFrom(dst, 1)), udpDatagram(netip.AddrPortFrom(src, 1), netip.AddrPortFrom(dst, 1), []byte("x")),
		} {
			for _, p := range []tcpip.TransportProtocolNumber{6, 17, 44} {
				n, packet := ipPacket(p, src, dst, payload)
				b := make([]byte, ethernetBytes)
				header.Ethernet(b).Encode(&header.EthernetFields{SrcAddr: tcpip.LinkAddress(g.MAC), DstAddr: tcpip.LinkAddress(g.GatewayMAC), Type: n})
				b = append(b, packet...)
				f.Add(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
			}
		}
	}
	// Whatever port of the gateway the guest connects to, it gets these servers, so that a fuzzer does no harm.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { l.Close(); pc.Close() })
	go echoTCP(l)
	go echoUDP(pc)
	f.Fuzz(func(t *testing.T, stream []byte) {
		s := newStack(t, Config{AllowHostLoopback: true})
		s.dial = func(ctx context.Context, network string, _ netip.AddrPort) (net.Conn, error) {
			if network == "tcp" {
				return dialHost(ctx, network, l.Addr().(*net.TCPAddr).AddrPort())
			}
			return dialHost(ctx, network, pc.LocalAddr().(*net.UDPAddr).AddrPort())
		}
		s.gate.policy.subnets = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")} // no ping
		s.askBy()
		ours, theirs := socketPair(t)
		go func() {
			theirs.Write(stream)
			theirs.(*net.UnixConn).CloseWrite()
			io.Copy(io.Discard, theirs)
			theirs.Close()
		}()
		err := s.Serve(t.Context(), ours)
		if err != nil && !errors.As(err, new(*FramingError)) {
			t.Errorf("Serve: %v", err)
		}
	})
}

func (c Config) mustAddresses(t testing.TB) Addresses {
	c, err := c.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	return c.addresses()
}
