package network

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"manis/network/egress"
)

func addrs(list ...string) []netip.Addr {
	out := make([]netip.Addr, len(list))
	for i, s := range list {
		out[i] = netip.MustParseAddr(s)
	}
	return out
}

// What no guest reaches unless a flag opens it, and what is in the way of each.
var (
	loopbacks = addrs("127.0.0.1", "127.1.2.3", "127.255.255.254", "0.0.0.0", "0.1.2.3", "::1", "::",
		"::ffff:127.0.0.1", "::ffff:0.0.0.0", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "64:ff9b:1::127.0.0.1", "::ffff:0:127.0.0.1")
	linkLocals = addrs("169.254.169.254", "169.254.0.1", "169.254.255.255", "fd00:ec2::254", "fe80::1", "febf::1",
		"::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "168.63.129.16", "100.100.100.200", "192.0.0.192", "fd20:ce::254")
	groups = addrs("224.0.0.1", "239.255.255.250", "255.255.255.255", "ff02::1", "ff05::2", "::ffff:224.0.0.1")
	onLink = addrs("192.168.127.0", "192.168.127.2", "192.168.127.3", "fd6d:616e:6973::", "fd6d:616e:6973::2", "fd6d:616e:6973:0:1::9",
		"::ffff:192.168.127.1")
	outsiders = addrs("1.1.1.1", "10.0.0.1", "192.168.1.1", "172.17.0.1", "100.64.0.1", "126.255.255.255", "128.0.0.1", "1.0.0.0",
		"169.253.255.255", "169.255.0.0", "223.255.255.255", "192.168.127.4", "2606:4700::1111", "fd00::1", "fec0::1", "64:ff9b::101:101")
)

func TestPolicy(t *testing.T) {
	s := newStack(t, Config{})
	closed := s.gate.policy
	local := closed
	local.linkLocal = true
	loop := closed
	loop.hostLoopback = true
	for name, c := range map[string]struct {
		addrs  []netip.Addr
		denied denial // by default
		opened *policy
	}{
		"loopback":   {loopbacks, deniedLoopback, nil}, // only ever under the gateway's address
		"link-local": {linkLocals, deniedLinkLocal, &local},
		"group":      {groups, deniedGroup, nil},
		"link":       {onLink, deniedLink, nil},
		"outside":    {outsiders, allowed, nil},
	} {
		for _, a := range c.addrs {
			if got := closed.check(a); got != c.denied {
				t.Errorf("%s: %s is %q, want %q", name, a, got, c.denied)
			}
			for _, p := range []*policy{&local, &loop} {
				want := c.denied
				if p == c.opened {
					want = allowed
				}
				if got := p.check(a); got != want {
					t.Errorf("%s, opened: %s is %q, want %q", name, a, got, want)
				}
			}
		}
	}
	for _, gateway := range addrs("192.168.127.1", "fd6d:616e:6973::1") {
		at := netip.AddrPortFrom(gateway, 80)
		if to, why := closed.target(egress.TCP, at); why != deniedLoopback {
			t.Errorf("gateway %s: %v, %q", gateway, to, why)
		}
		if to, why := loop.target(egress.TCP, at); why != allowed || !to.Addr().IsLoopback() || to.Port() != 80 {
			t.Errorf("gateway %s, opened: %v, %q", gateway, to, why)
		}
	}
}

// trap is a service of the host that must not be reached.
type trap struct {
	at  netip.AddrPort
	tcp *net.TCPListener
	udp *net.UDPConn
}

func setTrap(t *testing.T, at string, port uint16) *trap {
	t.Helper()
	a := netip.AddrPortFrom(netip.MustParseAddr(at), port)
	l, err := net.Listen("tcp", a.String())
	if err != nil {
		t.Fatal(err)
	}
	a = l.Addr().(*net.TCPAddr).AddrPort()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(a))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); c.Close() })
	return &trap{a, l.(*net.TCPListener), c}
}

// reached reports what has come to the trap so far.
func (tr *trap) reached() string {
	now := time.Now()
	tr.tcp.SetDeadline(now)
	if c, err := tr.tcp.Accept(); err == nil {
		c.Close()
		return "TCP"
	}
	tr.udp.SetDeadline(now)
	if n, _, err := tr.udp.ReadFromUDPAddrPort(make([]byte, 64)); err == nil {
		return fmt.Sprintf("UDP (%d bytes)", n)
	}
	return ""
}

// Listeners at every kind of address, a guest that sends TCP, UDP and ICMP to all of them by hand, past its own
// kernel: none of what is denied arrives, all of what is allowed does.
func TestDeniedDestinations(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	const port = 8080
	for _, a := range []string{"169.254.169.254", "fd00:ec2::254", "168.63.129.16", "203.0.113.9", "2001:db8::9"} {
		addAddress(t, a)
	}
	for _, c := range []struct {
		name           string
		config         Config
		denied, opened []string
	}{
		{"default", Config{},
			[]string{"127.0.0.1", "::1", "169.254.169.254", "fd00:ec2::254", "168.63.129.16", "gateway4", "gateway6"}, nil},
		{"link-local allowed", Config{AllowLinkLocal: true},
			[]string{"127.0.0.1", "::1", "gateway4", "gateway6"}, []string{"169.254.169.254", "fd00:ec2::254", "168.63.129.16"}},
		{"host loopback allowed", Config{AllowHostLoopback: true},
			[]string{"127.0.0.1", "::1", "169.254.169.254", "fd00:ec2::254"}, []string{"gateway4", "gateway6"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			traps := []*trap{
				setTrap(t, "127.0.0.1", port), setTrap(t, "::1", port), setTrap(t, "169.254.169.254", port),
				setTrap(t, "fd00:ec2::254", port), setTrap(t, "168.63.129.16", port),
			}
			outside := []*trap{setTrap(t, "203.0.113.9", port), setTrap(t, "2001:db8::9", port)}
			s := newStack(t, c.config)
			g := connectRaw(t, s)
			named := func(name string) netip.AddrPort {
				switch name {
				case "gateway4":
					return netip.AddrPortFrom(g.addrs.Gateway4, port)
				case "gateway6":
					return netip.AddrPortFrom(g.addrs.Gateway6, port)
				}
				return netip.AddrPortFrom(netip.MustParseAddr(name), port)
			}
			sport := uint16(40000)
			probe := func(dst netip.AddrPort) (tcp, udp string) {
				sport++
				src := netip.AddrPortFrom(g.source(dst.Addr()), sport)
				g.ip(header.TCPProtocolNumber, src.Addr(), dst.Addr(), tcpSYN(src, dst))
				tcp = g.next().kind
				g.ip(header.UDPProtocolNumber, src.Addr(), dst.Addr(), udpDatagram(src, dst, []byte("x")))
				return tcp, ""
			}
			refusal := map[bool]string{false: "prohibited", true: "rst"}
			for _, name := range c.denied {
				dst := named(name)
				gateway := s.gate.policy.isGateway(dst.Addr())
				if tcp, _ := probe(dst); tcp != refusal[gateway] {
					t.Errorf("TCP to %s is answered by %q, want %q", name, tcp, refusal[gateway])
				}
				want := map[bool]string{false: "prohibited", true: "port unreachable"}[gateway]
				if udp := g.next().kind; udp != want {
					t.Errorf("UDP to %s is answered by %q, want %q", name, udp, want)
				}
			}
			// What can have no answer: everything else that is denied, in every form.
			for _, a := range append(append(append([]netip.Addr{}, loopbacks...), groups...), onLink...) {
				if s.isGuest(a) {
					continue
				}
				sport++
				src, dst := netip.AddrPortFrom(g.source(a), sport), netip.AddrPortFrom(a, port)
				g.ip(header.TCPProtocolNumber, src.Addr(), a, tcpSYN(src, dst))
				g.ip(header.UDPProtocolNumber, src.Addr(), a, udpDatagram(src, dst, []byte("x")))
				proto, echo := echoRequest(a, sport)
				g.ip(proto, src.Addr(), a, echo)
			}
			for {
				// Frames are judged in order: when the gateway answers, all the others have been.
				proto, echo := echoRequest(g.addrs.Gateway4, 7)
				g.ip(proto, g.addrs.IPv4.Addr(), g.addrs.Gateway4, echo)
				a := g.next()
				for a.kind == "prohibited" {
					a = g.next()
				}
				if a.kind == "echo reply" && a.src == g.addrs.Gateway4 {
					break
				}
				t.Errorf("answer %q from %s", a.kind, a.src)
			}
			open := append([]*trap{}, outside...)
			for _, name := range c.opened {
				at := named(name)
				for _, tr := range traps {
					if tr.at.Addr() == at.Addr() ||
						name == "gateway4" && tr.at.Addr() == netip.MustParseAddr("127.0.0.1") ||
						name == "gateway6" && tr.at.Addr() == netip.IPv6Loopback() {
						open = append(open, &trap{at, tr.tcp, tr.udp})
					}
				}
			}
			for _, tr := range traps {
				if what := tr.reached(); what != "" {
					t.Errorf("%s reached %s", what, tr.at)
				}
			}
			for _, tr := range open {
				if tcp, _ := probe(tr.at); tcp != "syn-ack" {
					t.Errorf("TCP to %s is answered by %q", tr.at, tcp)
				}
				tr.tcp.SetDeadline(time.Now().Add(patience))
				if conn, err := tr.tcp.Accept(); err != nil {
					t.Errorf("TCP to %s: %v", tr.at, err)
				} else {
					conn.Close()
				}
				tr.udp.SetDeadline(time.Now().Add(patience))
				if _, _, err := tr.udp.ReadFromUDPAddrPort(make([]byte, 8)); err != nil {
					t.Errorf("UDP to %s: %v", tr.at, err)
				}
				for len(g.got) > 0 { // retransmissions of what this guest never acknowledges
					<-g.got
				}
			}
			s.Close()
			for _, tr := range traps {
				for _, o := range open {
					if o.tcp == tr.tcp {
						tr = nil
						break
					}
				}
				if tr == nil {
					continue
				}
				if what := tr.reached(); what != "" {
					t.Errorf("%s reached %s", what, tr.at)
				}
			}
		})
	}
}

// No service but DNS is at the gateway: no control API, no DHCP, nothing on the ports of either.
func TestGatewayServesNothing(t *testing.T) {
	s := newStack(t, Config{})
	g := connectRaw(t, s)
	for _, gateway := range []netip.Addr{g.addrs.Gateway4, g.addrs.Gateway6} {
		for _, port := range []uint16{1, 22, 67, 80, 443, 547, 1024, 2375, 5353, 8080, 65535} {
			src, dst := netip.AddrPortFrom(g.source(gateway), 50000), netip.AddrPortFrom(gateway, port)
			g.ip(header.TCPProtocolNumber, src.Addr(), gateway, tcpSYN(src, dst))
			if a := g.next(); a.kind != "rst" {
				t.Errorf("TCP port %d of the gateway: %s", port, a.kind)
			}
			g.ip(header.UDPProtocolNumber, src.Addr(), gateway, udpDatagram(src, dst, []byte("x")))
			if a := g.next(); a.kind != "port unreachable" {
				t.Errorf("UDP port %d of the gateway: %s", port, a.kind)
			}
		}
	}
}
