package network

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// gate looks at every frame of the guest before the stack does. What passes is TCP, UDP or an echo request
// to the gateway, from the guest's own addresses, to a destination that policy allows. Address resolution
// for the gateway is answered here, so the stack never runs ARP or neighbour discovery on foreign input.
type gate struct {
	policy   policy
	mac      [6]byte // the guest's
	gateway  [6]byte
	guest4   netip.Addr
	gateway4 netip.Addr
	guest6   netip.Addr // invalid without IPv6
	gateway6 netip.Addr
}

// verdict is what to do with a frame.
type verdict int

const (
	drop   verdict = iota
	pass           // to the stack
	answer         // with the packet that inspect returned
	ping           // an echo request to the world
	refuse         // policy denies it: answer with the ICMP error that inspect returned
)

// inspect judges a frame. The returned packet, without Ethernet header, is what to send back for answer and
// refuse. It must not keep or change the frame.
func (g *gate) inspect(frame []byte) (v verdict, proto tcpip.NetworkProtocolNumber, reply []byte) {
	if len(frame) < ethernetBytes || [6]byte(frame[6:12]) != g.mac {
		return drop, 0, nil
	}
	if dst := [6]byte(frame[0:6]); dst != g.gateway && dst[0]&1 == 0 {
		return drop, 0, nil
	}
	proto = tcpip.NetworkProtocolNumber(binary.BigEndian.Uint16(frame[12:14]))
	packet := frame[ethernetBytes:]
	switch proto {
	case header.IPv4ProtocolNumber:
		v, reply = g.inspect4(packet)
	case header.IPv6ProtocolNumber:
		v, reply = g.inspect6(packet)
	case header.ARPProtocolNumber:
		v, reply = g.inspectARP(packet)
	}
	return v, proto, reply
}

func (g *gate) inspect4(p []byte) (verdict, []byte) {
	ip := header.IPv4(p)
	if len(p) < header.IPv4MinimumSize || ip.HeaderLength() != header.IPv4MinimumSize || !ip.IsValid(len(p)) {
		return drop, nil // also IP options: none is of use here, and source routes are not wanted
	}
	if netip.AddrFrom4([4]byte(p[12:16])) != g.guest4 {
		return drop, nil
	}
	dst := netip.AddrFrom4([4]byte(p[16:20]))
	first := ip.FragmentOffset() == 0
	echo := ip.Protocol() == uint8(header.ICMPv4ProtocolNumber)
	if echo {
		icmp := header.ICMPv4(p[header.IPv4MinimumSize:ip.TotalLength()])
		if !first || ip.More() || len(icmp) < header.ICMPv4MinimumSize || icmp.Type() != header.ICMPv4Echo {
			return drop, nil
		}
	}
	if dst == g.gateway4 {
		if echo {
			return answer, echoReply4(ip)
		}
		return transport(ip.Protocol()), nil
	}
	if why := g.policy.check(dst); why != allowed {
		if echo || !first || why == deniedGroup {
			return drop, nil
		}
		return refuse, g.prohibited4(ip)
	}
	if echo {
		return ping, nil
	}
	return transport(ip.Protocol()), nil
}

func (g *gate) inspect6(p []byte) (verdict, []byte) {
	ip := header.IPv6(p)
	if !g.guest6.IsValid() || len(p) < header.IPv6MinimumSize || !ip.IsValid(len(p)) {
		return drop, nil
	}
	payload := p[header.IPv6MinimumSize:][:ip.PayloadLength()]
	src, dst := netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40]))
	icmp := header.ICMPv6(payload)
	isICMP := ip.NextHeader() == uint8(header.ICMPv6ProtocolNumber)
	if isICMP && len(icmp) >= header.ICMPv6NeighborSolicitMinimumSize && icmp.Type() == header.ICMPv6NeighborSolicit {
		return g.neighbour6(src, payload)
	}
	if src != g.guest6 {
		return drop, nil
	}
	if isICMP && (len(icmp) < header.ICMPv6EchoMinimumSize || icmp.Type() != header.ICMPv6EchoRequest) {
		return drop, nil
	}
	if dst == g.gateway6 {
		if isICMP {
			return answer, echoReply6(ip)
		}
		return transport6(ip.NextHeader(), payload), nil
	}
	if why := g.policy.check(dst); why != allowed {
		if isICMP || why == deniedGroup {
			return drop, nil
		}
		return refuse, g.prohibited6(ip)
	}
	if isICMP {
		return ping, nil
	}
	return transport6(ip.NextHeader(), payload), nil
}

// transport lets only the protocols through that the stack turns into sockets.
func transport(protocol uint8) verdict {
	if protocol == uint8(header.TCPProtocolNumber) || protocol == uint8(header.UDPProtocolNumber) {
		return pass
	}
	return drop
}

// transport6 also lets fragments of them through, which large UDP datagrams need. The stack reassembles
// them; ICMPv6 in fragments never gets there.
func transport6(next uint8, payload []byte) verdict {
	if next == uint8(header.IPv6FragmentHeader) {
		if len(payload) < header.IPv6FragmentHeaderSize {
			return drop
		}
		next = payload[0]
	}
	return transport(next)
}

// inspectARP answers requests for the gateway.
func (g *gate) inspectARP(p []byte) (verdict, []byte) {
	arp := header.ARP(p)
	if !arp.IsValid() || arp.Op() != header.ARPRequest ||
		netip.AddrFrom4([4]byte(arp.ProtocolAddressTarget())) != g.gateway4 {
		return drop, nil
	}
	reply := header.ARP(make([]byte, header.ARPSize))
	reply.SetIPv4OverEthernet()
	reply.SetOp(header.ARPReply)
	copy(reply.HardwareAddressSender(), g.gateway[:])
	copy(reply.ProtocolAddressSender(), arp.ProtocolAddressTarget())
	copy(reply.HardwareAddressTarget(), g.mac[:])
	copy(reply.ProtocolAddressTarget(), arp.ProtocolAddressSender())
	return answer, reply
}

// neighbour6 answers neighbour solicitations for the gateway. One from the unspecified address asks whether
// an address is free (RFC 4862): the gateway's is not, but no guest of ours asks for it.
func (g *gate) neighbour6(src netip.Addr, icmp header.ICMPv6) (verdict, []byte) {
	ask := header.NDPNeighborSolicit(icmp.MessageBody())
	if netip.AddrFrom16(ask.TargetAddress().As16()) != g.gateway6 ||
		src != g.guest6 && !src.IsLinkLocalUnicast() {
		return drop, nil
	}
	const option = 8 // the target's link-layer address
	p := make([]byte, header.IPv6MinimumSize+header.ICMPv6NeighborAdvertMinimumSize+option)
	advert := header.ICMPv6(p[header.IPv6MinimumSize:])
	advert.SetType(header.ICMPv6NeighborAdvert)
	body := header.NDPNeighborAdvert(advert.MessageBody())
	body.SetTargetAddress(tcpip.AddrFrom16(g.gateway6.As16()))
	body.SetRouterFlag(true)
	body.SetSolicitedFlag(true)
	body.SetOverrideFlag(true)
	body.Options().Serialize(header.NDPOptionsSerializer{
		header.NDPTargetLinkLayerAddressOption(g.gateway[:]),
	})
	finish6(p, g.gateway6, src, header.NDPHopLimit)
	return answer, p
}
