package network

import (
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

func TestGate(t *testing.T) {
	s := newStack(t, Config{})
	a := s.Guest()
	world4, world6 := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")
	guest4, guest6 := a.IPv4.Addr(), a.IPv6.Addr()
	build := func(proto tcpip.TransportProtocolNumber, src, dst netip.Addr, payload []byte, edit func(p []byte)) (tcpip.NetworkProtocolNumber, []byte) {
		n, p := ipPacket(proto, src, dst, payload)
		if edit != nil {
			edit(p)
		}
		return n, p
	}
	options := func(p []byte) { p[0] = 0x46 }
	more := func(p []byte) { p[6] |= 0x20 }
	later := func(p []byte) { p[7] = 1 }
	longer := func(p []byte) { p[3]++ }
	fragmentOf := func(proto byte) []byte { return append([]byte{proto, 0, 0, 1, 0, 0, 0, 9}, make([]byte, 16)...) }
	body := make([]byte, 24)
	_, ping4 := echoRequest(world4, 1)
	_, ping6 := echoRequest(world6, 1)
	redirect4 := append([]byte(nil), ping4...)
	redirect4[0] = byte(header.ICMPv4Redirect)
	advert6 := append(make([]byte, 24), 1, 2)
	advert6[0] = byte(header.ICMPv6RouterAdvert)
	for _, c := range []struct {
		name  string
		want  verdict
		proto tcpip.TransportProtocolNumber
		src   netip.Addr
		dst   netip.Addr
		body  []byte
		edit  func(p []byte)
	}{
		{"TCP", pass, 6, guest4, world4, body, nil},
		{"UDP", pass, 17, guest4, world4, body, nil},
		{"TCP over IPv6", pass, 6, guest6, world6, body, nil},
		{"UDP over IPv6", pass, 17, guest6, world6, body, nil},
		{"ping", ping, 1, guest4, world4, ping4, nil},
		{"ping over IPv6", ping, 58, guest6, world6, ping6, nil},
		{"first fragment", pass, 17, guest4, world4, body, more},
		{"later fragment", pass, 17, guest4, world4, body, later},
		{"fragment of UDP over IPv6", pass, 44, guest6, world6, fragmentOf(17), nil},
		{"refused TCP", refuse, 6, guest4, netip.MustParseAddr("127.0.0.1"), body, nil},
		{"refused UDP over IPv6", refuse, 17, guest6, netip.IPv6Loopback(), body, nil},
		{"later fragment to a denied address", drop, 17, guest4, netip.MustParseAddr("127.0.0.1"), body, later},
		{"refused ping", drop, 1, guest4, netip.MustParseAddr("127.0.0.1"), ping4, nil},
		{"ping of the gateway", answer, 1, guest4, a.Gateway4, ping4, nil},
		{"IP options", drop, 6, guest4, world4, body, options},
		{"longer than the frame", drop, 6, guest4, world4, body, longer},
		{"ping in fragments", drop, 1, guest4, world4, ping4, more},
		{"ICMP that is no ping", drop, 1, guest4, world4, redirect4, nil},
		{"router advertisement", drop, 58, guest6, a.Gateway6, advert6, nil},
		{"fragment of ICMPv6", drop, 44, guest6, a.Gateway6, fragmentOf(58), nil},
		{"fragment of a fragment", drop, 44, guest6, a.Gateway6, fragmentOf(44), nil},
		{"hop-by-hop options", drop, 0, guest6, world6, body, nil},
		{"routing header", drop, 43, guest6, world6, body, nil},
		{"SCTP", drop, 132, guest4, world4, body, nil},
		{"IP in IP", drop, 4, guest4, world4, body, nil},
		{"IPv6 in IPv4", drop, 41, guest4, world4, body, nil},
		{"GRE", drop, 47, guest4, world4, body, nil},
		{"IGMP", drop, 2, guest4, netip.MustParseAddr("224.0.0.22"), body, nil},
		{"DHCP", drop, 17, netip.IPv4Unspecified(), netip.MustParseAddr("255.255.255.255"), body, nil},
		{"broadcast of the link", refuse, 17, guest4, netip.MustParseAddr("192.168.127.3"), body, nil},
	} {
		n, p := build(c.proto, c.src, c.dst, c.body, c.edit)
		frame := make([]byte, ethernetBytes, ethernetBytes+len(p))
		header.Ethernet(frame).Encode(&header.EthernetFields{SrcAddr: tcpip.LinkAddress(a.MAC), DstAddr: tcpip.LinkAddress(a.GatewayMAC), Type: n})
		got, _, _ := s.gate.inspect(append(frame, p...))
		if got != c.want {
			t.Errorf("%s: verdict %d, want %d", c.name, got, c.want)
		}
	}
}
