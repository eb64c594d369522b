package network

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// guest stands for a VM: a TCP/IP stack of its own behind a socket pair with QEMU's framing, configured with
// the addresses that the agent would configure.
type guest struct {
	t     testing.TB
	stack *stack.Stack
	card  *channel.Endpoint
	conn  net.Conn
	addrs Addresses

	serve chan error // what Serve returned
	stop  context.CancelFunc
	work  sync.WaitGroup
}

// socketPair returns two connected stream sockets, as QEMU and the monitor have them.
func socketPair(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		conns[i], err = net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	return conns[0], conns[1]
}

// newStack is New, closed at the end of the test.
func newStack(t testing.TB, c Config) *Stack {
	t.Helper()
	s, err := New(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// boot makes a stack and a guest on it.
func boot(t testing.TB, c Config) (*Stack, *guest) {
	t.Helper()
	s := newStack(t, c)
	return s, connect(t, s)
}

// connect attaches a new guest to s. What prepare does is done before the first frame reaches the guest.
func connect(t testing.TB, s *Stack, prepare ...func(*guest)) *guest {
	t.Helper()
	ours, theirs := socketPair(t)
	g := &guest{t: t, conn: theirs, addrs: s.Guest(), serve: make(chan error, 1)}
	g.card = channel.New(1024, uint32(g.addrs.MTU+ethernetBytes), tcpip.LinkAddress(g.addrs.MAC))
	g.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{arp.NewProtocol, ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	must := func(err tcpip.Error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(g.stack.CreateNIC(1, ethernet.New(g.card)))
	add := func(p netip.Prefix, gateway netip.Addr) {
		a, proto := stackAddr(p.Addr())
		must(g.stack.AddProtocolAddress(1, tcpip.ProtocolAddress{
			Protocol:          proto,
			AddressWithPrefix: tcpip.AddressWithPrefix{Address: a, PrefixLen: p.Bits()},
		}, stack.AddressProperties{}))
		gw, _ := stackAddr(gateway)
		all := header.IPv4EmptySubnet
		if gateway.Is6() {
			all = header.IPv6EmptySubnet
		}
		g.stack.AddRoute(tcpip.Route{
			Destination: tcpip.AddressWithPrefix{Address: a, PrefixLen: p.Bits()}.Subnet(), NIC: 1,
		})
		g.stack.AddRoute(tcpip.Route{Destination: all, Gateway: gw, NIC: 1})
	}
	add(g.addrs.IPv4, g.addrs.Gateway4)
	if g.addrs.IPv6.IsValid() {
		add(g.addrs.IPv6, g.addrs.Gateway6)
	}

	for _, f := range prepare {
		f(g)
	}
	ctx, cancel := context.WithCancel(context.Background())
	g.stop = cancel
	go func() { g.serve <- s.Serve(ctx, ours) }()
	g.work.Go(func() { g.transmit(ctx) })
	g.work.Go(g.receive)
	t.Cleanup(g.close)
	return g
}

func (g *guest) transmit(ctx context.Context) {
	for {
		p := g.card.ReadContext(ctx)
		if p == nil {
			return
		}
		v := p.ToView()
		p.DecRef()
		if g.send(v.AsSlice()) != nil {
			return
		}
		v.Release()
	}
}

// send puts one raw frame on the wire.
func (g *guest) send(frame []byte) error {
	b := append(binary.BigEndian.AppendUint32(make([]byte, 0, lengthBytes+len(frame)), uint32(len(frame))), frame...)
	_, err := g.conn.Write(b)
	return err
}

func (g *guest) receive() {
	frames := newFrameReader(g.conn)
	for {
		v, err := frames.next()
		if err != nil {
			return
		}
		p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(v)})
		g.card.InjectInbound(0, p)
		p.DecRef()
	}
}

// close turns the VM off.
func (g *guest) close() {
	g.stop()
	g.conn.Close()
	g.work.Wait()
	if err := <-g.serve; err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, ErrClosed) {
		g.t.Errorf("Serve: %v", err)
	}
	g.serve <- nil
	g.stack.Close()
	g.stack.Wait()
}

func full(a netip.AddrPort) (tcpip.FullAddress, tcpip.NetworkProtocolNumber) {
	addr, proto := stackAddr(a.Addr())
	return tcpip.FullAddress{NIC: 1, Addr: addr, Port: a.Port()}, proto
}

// patience bounds what a test waits for; nothing depends on its length but how long a failure takes.
const patience = 20 * time.Second

// dial connects from the guest.
func (g *guest) dial(to netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	addr, proto := full(to)
	c, err := gonet.DialContextTCP(ctx, g.stack, addr, proto)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(patience))
	return c, nil
}

func (g *guest) mustDial(to netip.AddrPort) net.Conn {
	g.t.Helper()
	c, err := g.dial(to)
	if err != nil {
		g.t.Fatalf("dial %s from the guest: %v", to, err)
	}
	return c
}

// dialUDP opens a connected UDP socket in the guest.
func (g *guest) dialUDP(to netip.AddrPort) net.Conn {
	g.t.Helper()
	addr, proto := full(to)
	c, err := gonet.DialUDP(g.stack, nil, &addr, proto)
	if err != nil {
		g.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// listen opens a TCP listener in the guest.
func (g *guest) listen(port uint16, v6 bool) net.Listener {
	g.t.Helper()
	a := g.addrs.IPv4.Addr()
	if v6 {
		a = g.addrs.IPv6.Addr()
	}
	addr, proto := full(netip.AddrPortFrom(a, port))
	l, err := gonet.ListenTCP(g.stack, addr, proto)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { l.Close() })
	return l
}

// listenUDP opens an unconnected UDP socket in the guest.
func (g *guest) listenUDP(port uint16, v6 bool) net.PacketConn {
	g.t.Helper()
	a := g.addrs.IPv4.Addr()
	if v6 {
		a = g.addrs.IPv6.Addr()
	}
	addr, proto := full(netip.AddrPortFrom(a, port))
	c, err := gonet.DialUDP(g.stack, &addr, nil, proto)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { c.Close() })
	return c
}

// echoTCP serves connections by sending back what they send, until the listener is closed.
func echoTCP(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			io.Copy(c, c)
			if h, ok := c.(interface{ CloseWrite() error }); ok {
				h.CloseWrite()
			}
		}()
	}
}

// echoUDP sends datagrams back to where they come from.
func echoUDP(c net.PacketConn) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		c.WriteTo(buf[:n], from)
	}
}
