package network

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// ping takes an echo request of the guest to the world by a ping socket, which Linux gives to ordinary users
// whose group is in net.ipv4.ping_group_range. Without one the request is lost, as on a network that filters
// ping; nothing is answered in the name of others. Sessions of ping live in the table of the UDP sessions, with
// the identifier as the guest's port and no port of the peer.
func (s *Stack) ping(proto tcpip.NetworkProtocolNumber, packet []byte) {
	var message []byte
	var src, dst netip.Addr
	if proto == header.IPv4ProtocolNumber {
		ip := header.IPv4(packet)
		message = ip[header.IPv4MinimumSize:ip.TotalLength()]
		src, dst = addr4(ip.SourceAddress()), addr4(ip.DestinationAddress())
	} else {
		ip := header.IPv6(packet)
		message = ip[header.IPv6MinimumSize:][:ip.PayloadLength()]
		src, dst = addr6(ip.SourceAddress()), addr6(ip.DestinationAddress())
	}
	f := flow{
		guest: netip.AddrPortFrom(src, binary.BigEndian.Uint16(message[echoIdent:])),
		peer:  netip.AddrPortFrom(dst, 0),
	}
	e := s.sessions.find(f)
	if e == nil {
		if s.gate.policy.echo(dst) != allowed {
			return
		}
		socket, err := pingSocket(dst)
		if err != nil {
			return
		}
		if e = s.begin(f, socket, s.sendEcho); e == nil {
			return
		}
	}
	writeNow(e.socket, message)
}

const (
	echoIdent  = 4 // where the identifier is in an echo message
	echoHeader = 8 // bytes
)

// pingSocket returns a socket that sends echo requests to dst and receives its replies. The kernel puts an
// identifier of its own into them.
func pingSocket(dst netip.Addr) (*net.UDPConn, error) {
	family, proto := unix.AF_INET6, unix.IPPROTO_ICMPV6
	var to unix.Sockaddr = &unix.SockaddrInet6{Addr: dst.As16()}
	if dst.Is4() {
		family, proto = unix.AF_INET, unix.IPPROTO_ICMP
		to = &unix.SockaddrInet4{Addr: dst.As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "ping")
	defer f.Close()
	if err := unix.Connect(fd, to); err != nil {
		return nil, err
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil // the net package takes any datagram socket for UDP
}

// sendEcho takes a reply to the guest.
func (s *Stack) sendEcho(f flow, message []byte) {
	v4 := f.peer.Addr().Is4()
	size, reply := header.IPv6MinimumSize, byte(header.ICMPv6EchoReply)
	if v4 {
		size, reply = header.IPv4MinimumSize, byte(header.ICMPv4EchoReply)
	}
	if len(message) < echoHeader || message[0] != reply || size+len(message) > s.config.MTU {
		return
	}
	p := make([]byte, size+len(message))
	copy(p[size:], message)
	binary.BigEndian.PutUint16(p[size+echoIdent:], f.guest.Port())
	if v4 {
		finish4(p, f.peer.Addr(), f.guest.Addr())
		s.link.send(header.IPv4ProtocolNumber, p)
	} else {
		finish6(p, f.peer.Addr(), f.guest.Addr(), 64)
		s.link.send(header.IPv6ProtocolNumber, p)
	}
}
