package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// rawGuest is a guest that sends whatever frames it likes.
type rawGuest struct {
	t     testing.TB
	conn  net.Conn
	addrs Addresses
	mac   net.HardwareAddr
	got   chan []byte // packets from the stack, Ethernet header included
	serve chan error
}

func connectRaw(t testing.TB, s *Stack) *rawGuest {
	t.Helper()
	ours, theirs := socketPair(t)
	g := &rawGuest{t: t, conn: theirs, addrs: s.Guest(), mac: s.Guest().MAC, got: make(chan []byte, 4096), serve: make(chan error, 1)}
	ended := make(chan struct{})
	go func() { g.serve <- s.Serve(context.Background(), ours) }()
	go func() {
		defer close(ended)
		frames := newFrameReader(theirs)
		for {
			v, err := frames.next()
			if err != nil {
				return
			}
			b := append([]byte(nil), v.AsSlice()...)
			v.Release()
			select {
			case g.got <- b:
			default:
			}
		}
	}()
	t.Cleanup(func() {
		theirs.Close()
		<-ended
	})
	return g
}

// frame sends an Ethernet frame of any length and content.
func (g *rawGuest) frame(b []byte) {
	g.t.Helper()
	gg := guest{conn: g.conn}
	if err := gg.send(b); err != nil && !errors.Is(err, net.ErrClosed) {
		g.t.Fatal(err)
	}
}

// packet wraps an IP packet or ARP message.
func (g *rawGuest) packet(proto tcpip.NetworkProtocolNumber, p []byte) {
	g.t.Helper()
	b := make([]byte, ethernetBytes+len(p))
	header.Ethernet(b).Encode(&header.EthernetFields{
		SrcAddr: tcpip.LinkAddress(g.mac), DstAddr: tcpip.LinkAddress(g.addrs.GatewayMAC), Type: proto,
	})
	copy(b[ethernetBytes:], p)
	g.frame(b)
}

// ip builds and sends an IP packet with a payload whose checksum does not matter.
func (g *rawGuest) ip(proto tcpip.TransportProtocolNumber, src, dst netip.Addr, payload []byte) {
	g.t.Helper()
	n, p := ipPacket(proto, src, dst, payload)
	g.packet(n, p)
}

func ipPacket(proto tcpip.TransportProtocolNumber, src, dst netip.Addr, payload []byte) (tcpip.NetworkProtocolNumber, []byte) {
	from, _ := stackAddr(src)
	to, network := stackAddr(dst)
	if dst.Is4() {
		p := append(make([]byte, header.IPv4MinimumSize), payload...)
		h := header.IPv4(p)
		h.Encode(&header.IPv4Fields{TotalLength: uint16(len(p)), TTL: 64, Protocol: uint8(proto), SrcAddr: from, DstAddr: to})
		h.SetChecksum(^h.CalculateChecksum())
		return network, p
	}
	p := append(make([]byte, header.IPv6MinimumSize), payload...)
	header.IPv6(p).Encode(&header.IPv6Fields{
		PayloadLength: uint16(len(payload)), TransportProtocol: proto, HopLimit: 64, SrcAddr: from, DstAddr: to,
	})
	return network, p
}

func tcpSYN(src, dst netip.AddrPort) []byte {
	b := make([]byte, header.TCPMinimumSize)
	header.TCP(b).Encode(&header.TCPFields{
		SrcPort: src.Port(), DstPort: dst.Port(), SeqNum: 1000, DataOffset: header.TCPMinimumSize,
		Flags: header.TCPFlagSyn, WindowSize: 65535,
	})
	return b
}

func udpDatagram(src, dst netip.AddrPort, data []byte) []byte {
	b := append(make([]byte, header.UDPMinimumSize), data...)
	header.UDP(b).Encode(&header.UDPFields{SrcPort: src.Port(), DstPort: dst.Port(), Length: uint16(len(b))})
	return b
}

func echoRequest(dst netip.Addr, ident uint16) (tcpip.TransportProtocolNumber, []byte) {
	b := make([]byte, echoHeader+4)
	if dst.Is4() {
		header.ICMPv4(b).SetType(header.ICMPv4Echo)
		header.ICMPv4(b).SetIdent(ident)
		header.ICMPv4(b).SetChecksum(header.ICMPv4Checksum(b, 0))
		return header.ICMPv4ProtocolNumber, b
	}
	header.ICMPv6(b).SetType(header.ICMPv6EchoRequest)
	header.ICMPv6(b).SetIdent(ident)
	return header.ICMPv6ProtocolNumber, b
}

// reply is what the stack sent, as far as the tests look at it.
type reply struct {
	kind     string // "rst", "syn-ack", "prohibited", "port unreachable", "echo reply", "udp", "other"
	src, dst netip.Addr
	about    netip.Addr // the destination of the packet that an ICMP error is about
	payload  []byte     // behind the IP header
}

// next returns the next packet from the stack.
func (g *rawGuest) next() reply {
	g.t.Helper()
	select {
	case b := <-g.got:
		return parseReply(b)
	case <-time.After(patience):
		g.t.Fatal("no answer from the stack")
		return reply{}
	}
}

func parseReply(b []byte) (a reply) {
	a.kind = "other"
	p := b[ethernetBytes:]
	var proto tcpip.TransportProtocolNumber
	switch header.Ethernet(b).Type() {
	case header.IPv4ProtocolNumber:
		h := header.IPv4(p)
		a.src, a.dst, a.payload, proto = addr4(h.SourceAddress()), addr4(h.DestinationAddress()), h.Payload(), h.TransportProtocol()
	case header.IPv6ProtocolNumber:
		h := header.IPv6(p)
		a.src, a.dst, a.payload, proto = addr6(h.SourceAddress()), addr6(h.DestinationAddress()), h.Payload(), h.TransportProtocol()
	default:
		return a
	}
	switch proto {
	case header.TCPProtocolNumber:
		switch f := header.TCP(a.payload).Flags(); {
		case f.Contains(header.TCPFlagRst):
			a.kind = "rst"
		case f.Contains(header.TCPFlagSyn | header.TCPFlagAck):
			a.kind = "syn-ack"
		}
	case header.UDPProtocolNumber:
		a.kind = "udp"
	case header.ICMPv4ProtocolNumber:
		m := header.ICMPv4(a.payload)
		if checksum.Checksum(m, 0) != 0xffff {
			a.kind = "bad checksum"
			return a
		}
		switch {
		case m.Type() == header.ICMPv4EchoReply:
			a.kind = "echo reply"
		case m.Type() == header.ICMPv4DstUnreachable:
			a.about = addr4(header.IPv4(m[header.ICMPv4MinimumSize:]).DestinationAddress())
			a.kind = map[header.ICMPv4Code]string{header.ICMPv4AdminProhibited: "prohibited", header.ICMPv4PortUnreachable: "port unreachable"}[m.Code()]
		}
	case header.ICMPv6ProtocolNumber:
		m := header.ICMPv6(a.payload)
		from, _ := stackAddr(a.src)
		to, _ := stackAddr(a.dst)
		if header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: m, Src: from, Dst: to}) != m.Checksum() {
			a.kind = "bad checksum"
			return a
		}
		switch {
		case m.Type() == header.ICMPv6EchoReply:
			a.kind = "echo reply"
		case m.Type() == header.ICMPv6DstUnreachable:
			a.about = addr6(header.IPv6(m[header.ICMPv6DstUnreachableMinimumSize:]).DestinationAddress())
			a.kind = map[header.ICMPv6Code]string{header.ICMPv6Prohibited: "prohibited", header.ICMPv6PortUnreachable: "port unreachable"}[m.Code()]
		}
	}
	return a
}

// source is the guest's address of dst's family.
func (g *rawGuest) source(dst netip.Addr) netip.Addr {
	if dst.Is4() {
		return g.addrs.IPv4.Addr()
	}
	return g.addrs.IPv6.Addr()
}
