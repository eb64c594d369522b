package network

import (
	"net/netip"

	"manis/network/egress"
)

// policy decides which destinations the guest may reach. It is the only place that does, and it is asked
// twice: by the gate for every packet, and again before a socket of the host is opened.
type policy struct {
	hostLoopback bool
	linkLocal    bool
	subnets      []netip.Prefix // of the link itself
	gateways     []netip.Addr
	// egress narrows what is left: it decides by port and protocol, so it is asked where a socket is opened.
	egress *egress.Guard
}

// denial says why a destination is out of reach. Empty means that it is not.
type denial string

const (
	allowed         denial = ""
	deniedLoopback  denial = "the host's loopback (--allow-host-loopback opens it under the gateway's address)"
	deniedLinkLocal denial = "a link-local or metadata address (--allow-link-local opens it)"
	deniedLink      denial = "an address of the sandbox's own link"
	deniedGroup     denial = "a multicast, broadcast or unspecified address"
	deniedEgress    denial = "not in the sandbox's egress rules"
)

// metadata are the addresses clouds serve credentials and instance data at, outside of link-local space.
var metadata = map[netip.Addr]bool{
	netip.MustParseAddr("fd00:ec2::254"):      true, // AWS
	netip.MustParseAddr("fd20:ce::254"):       true, // Google Cloud
	netip.MustParseAddr("fd00:c1::a9fe:a9fe"): true, // Oracle Cloud
	netip.MustParseAddr("192.0.0.192"):        true, // Oracle Cloud, classic
	netip.MustParseAddr("168.63.129.16"):      true, // Azure's wire server
	netip.MustParseAddr("100.100.100.200"):    true, // Alibaba Cloud
	netip.MustParseAddr("fd00:42::42"):        true, // Scaleway
	netip.MustParseAddr("fd00:a9fe:a9fe::1"):  true, // Akamai (Linode)
}

var (
	thisHost  = netip.MustParsePrefix("0.0.0.0/8") // Linux takes 0.0.0.0 for loopback
	broadcast = netip.MustParseAddr("255.255.255.255")
	sixToFour = netip.MustParsePrefix("2002::/16")
	compat4   = netip.MustParsePrefix("::/96")
	// translated are the prefixes whose last four bytes are an IPv4 address that a translator on the way
	// goes on to.
	translated = []netip.Prefix{
		netip.MustParsePrefix("64:ff9b::/96"),
		netip.MustParsePrefix("::ffff:0:0:0/96"),
	}
	localNAT64 = netip.MustParsePrefix("64:ff9b:1::/48")
)

// check returns why the guest may not reach dst, or allowed. The gateway itself is not a destination here:
// what is served there is decided by target and by the gate.
func (p *policy) check(dst netip.Addr) denial {
	dst = dst.Unmap().WithZone("")
	for _, n := range p.subnets {
		if n.Contains(dst) {
			return deniedLink
		}
	}
	switch {
	case dst.IsLoopback():
		return deniedLoopback
	case dst.IsUnspecified(), thisHost.Contains(dst):
		return deniedLoopback
	case dst.IsMulticast(), dst == broadcast:
		return deniedGroup
	case dst.IsLinkLocalUnicast(), metadata[dst]:
		if p.linkLocal {
			return allowed
		}
		return deniedLinkLocal
	}
	if dst.Is6() {
		if v4, ok := embedded4(dst); ok {
			return p.check(v4)
		}
	}
	return allowed
}

// embedded4 returns the IPv4 address that packets to dst end up at when a translator or tunnel of the host
// is on the way.
func embedded4(dst netip.Addr) (netip.Addr, bool) {
	b := dst.As16()
	switch {
	case compat4.Contains(dst):
		return netip.AddrFrom4([4]byte(b[12:16])), true
	case sixToFour.Contains(dst):
		return netip.AddrFrom4([4]byte(b[2:6])), true
	case localNAT64.Contains(dst):
		return netip.AddrFrom4([4]byte(b[12:16])), true
	}
	for _, n := range translated {
		if n.Contains(dst) {
			return netip.AddrFrom4([4]byte(b[12:16])), true
		}
	}
	return netip.Addr{}, false
}

// target returns the address to dial on the host for a destination of the guest: the same one, but for the
// gateway, which stands for the host's loopback when that is allowed. The protocol is TCP or UDP.
func (p *policy) target(protocol egress.Protocol, dst netip.AddrPort) (netip.AddrPort, denial) {
	if p.isGateway(dst.Addr()) {
		if !p.hostLoopback {
			return netip.AddrPort{}, deniedLoopback
		}
		if !p.egress.Allows(protocol, dst) {
			return netip.AddrPort{}, deniedEgress
		}
		loopback := netip.IPv6Loopback()
		if dst.Addr().Is4() {
			loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
		return netip.AddrPortFrom(loopback, dst.Port()), allowed
	}
	if why := p.check(dst.Addr()); why != allowed {
		return netip.AddrPort{}, why
	}
	if !p.egress.Allows(protocol, dst) {
		return netip.AddrPort{}, deniedEgress
	}
	return netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port()), allowed
}

// echo returns why the guest may not send an echo request to dst, or allowed.
func (p *policy) echo(dst netip.Addr) denial {
	if why := p.check(dst); why != allowed {
		return why
	}
	if !p.egress.Allows(egress.ICMP, netip.AddrPortFrom(dst, 0)) {
		return deniedEgress
	}
	return allowed
}

func (p *policy) isGateway(a netip.Addr) bool {
	for _, g := range p.gateways {
		if a == g {
			return true
		}
	}
	return false
}
