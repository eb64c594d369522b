package network

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// icmpQuote bounds how much of a refused packet goes into the ICMP error, so that errors are never larger
// than what they answer by much.
const icmpQuote = 64

// prohibited4 tells the guest at once that it may not go there, instead of letting it wait.
func (g *gate) prohibited4(refused header.IPv4) []byte {
	quote := refused[:min(len(refused), icmpQuote)]
	p := make([]byte, header.IPv4MinimumSize+header.ICMPv4MinimumSize+len(quote))
	icmp := header.ICMPv4(p[header.IPv4MinimumSize:])
	icmp.SetType(header.ICMPv4DstUnreachable)
	icmp.SetCode(header.ICMPv4AdminProhibited)
	copy(icmp[header.ICMPv4MinimumSize:], quote)
	finish4(p, g.gateway4, g.guest4)
	return p
}

func (g *gate) prohibited6(refused header.IPv6) []byte {
	quote := refused[:min(len(refused), icmpQuote+header.IPv6MinimumSize)]
	p := make([]byte, header.IPv6MinimumSize+header.ICMPv6DstUnreachableMinimumSize+len(quote))
	icmp := header.ICMPv6(p[header.IPv6MinimumSize:])
	icmp.SetType(header.ICMPv6DstUnreachable)
	icmp.SetCode(header.ICMPv6Prohibited)
	copy(icmp[header.ICMPv6DstUnreachableMinimumSize:], quote)
	finish6(p, g.gateway6, g.guest6, 64)
	return p
}

func echoReply4(request header.IPv4) []byte {
	p := append([]byte(nil), request[:request.TotalLength()]...)
	icmp := header.ICMPv4(p[header.IPv4MinimumSize:])
	icmp.SetType(header.ICMPv4EchoReply)
	finish4(p, addr4(request.DestinationAddress()), addr4(request.SourceAddress()))
	return p
}

func echoReply6(request header.IPv6) []byte {
	p := append([]byte(nil), request[:header.IPv6MinimumSize+int(request.PayloadLength())]...)
	header.ICMPv6(p[header.IPv6MinimumSize:]).SetType(header.ICMPv6EchoReply)
	finish6(p, addr6(request.DestinationAddress()), addr6(request.SourceAddress()), 64)
	return p
}

// unreachable4 says that nothing listens at the flow's peer.
func unreachable4(f flow) []byte {
	const quote = header.IPv4MinimumSize + header.UDPMinimumSize
	p := make([]byte, header.IPv4MinimumSize+header.ICMPv4MinimumSize+quote)
	icmp := header.ICMPv4(p[header.IPv4MinimumSize:])
	icmp.SetType(header.ICMPv4DstUnreachable)
	icmp.SetCode(header.ICMPv4PortUnreachable)
	ip := header.IPv4(icmp[header.ICMPv4MinimumSize:])
	ip.Encode(&header.IPv4Fields{
		TotalLength: quote,
		TTL:         64,
		Protocol:    uint8(header.UDPProtocolNumber),
		SrcAddr:     tcpip.AddrFrom4(f.guest.Addr().As4()),
		DstAddr:     tcpip.AddrFrom4(f.peer.Addr().As4()),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	quoteUDP(ip[header.IPv4MinimumSize:], f)
	finish4(p, f.peer.Addr(), f.guest.Addr())
	return p
}

// unreachable6 is unreachable4 for IPv6.
func unreachable6(f flow) []byte {
	const quote = header.IPv6MinimumSize + header.UDPMinimumSize
	p := make([]byte, header.IPv6MinimumSize+header.ICMPv6DstUnreachableMinimumSize+quote)
	icmp := header.ICMPv6(p[header.IPv6MinimumSize:])
	icmp.SetType(header.ICMPv6DstUnreachable)
	icmp.SetCode(header.ICMPv6PortUnreachable)
	ip := header.IPv6(icmp[header.ICMPv6DstUnreachableMinimumSize:])
	ip.Encode(&header.IPv6Fields{
		PayloadLength:     header.UDPMinimumSize,
		TransportProtocol: header.UDPProtocolNumber,
		HopLimit:          64,
		SrcAddr:           tcpip.AddrFrom16(f.guest.Addr().As16()),
		DstAddr:           tcpip.AddrFrom16(f.peer.Addr().As16()),
	})
	quoteUDP(ip[header.IPv6MinimumSize:], f)
	finish6(p, f.peer.Addr(), f.guest.Addr(), 64)
	return p
}

func quoteUDP(b []byte, f flow) {
	header.UDP(b).Encode(&header.UDPFields{
		SrcPort: f.guest.Port(),
		DstPort: f.peer.Port(),
		Length:  header.UDPMinimumSize,
	})
}

// finish4 fills in the IPv4 header and both checksums of an ICMP packet.
func finish4(p []byte, src, dst netip.Addr) {
	icmp := header.ICMPv4(p[header.IPv4MinimumSize:])
	icmp.SetChecksum(0)
	icmp.SetChecksum(header.ICMPv4Checksum(icmp, 0))
	ip := header.IPv4(p)
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(len(p)),
		TTL:         64,
		Protocol:    uint8(header.ICMPv4ProtocolNumber),
		SrcAddr:     tcpip.AddrFrom4(src.As4()),
		DstAddr:     tcpip.AddrFrom4(dst.As4()),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
}

// finish6 is finish4 for ICMPv6.
func finish6(p []byte, src, dst netip.Addr, hops uint8) {
	icmp := header.ICMPv6(p[header.IPv6MinimumSize:])
	from, to := tcpip.AddrFrom16(src.As16()), tcpip.AddrFrom16(dst.As16())
	header.IPv6(p).Encode(&header.IPv6Fields{
		PayloadLength:     uint16(len(icmp)),
		TransportProtocol: header.ICMPv6ProtocolNumber,
		HopLimit:          hops,
		SrcAddr:           from,
		DstAddr:           to,
	})
	icmp.SetChecksum(0)
	icmp.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: icmp, Src: from, Dst: to}))
}

func addr4(a tcpip.Address) netip.Addr { return netip.AddrFrom4(a.As4()) }
func addr6(a tcpip.Address) netip.Addr { return netip.AddrFrom16(a.As16()) }

// addrOf converts an address of the stack, of either family.
func addrOf(a tcpip.Address) netip.Addr {
	if a.Len() == 4 {
		return addr4(a)
	}
	return addr6(a)
}

// stackAddr converts an address for the stack and names its protocol.
func stackAddr(a netip.Addr) (tcpip.Address, tcpip.NetworkProtocolNumber) {
	if a.Is4() {
		return tcpip.AddrFrom4(a.As4()), header.IPv4ProtocolNumber
	}
	return tcpip.AddrFrom16(a.As16()), header.IPv6ProtocolNumber
}
