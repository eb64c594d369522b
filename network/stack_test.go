package network

import (
	"bytes"
	"crypto/rand"
	"io"
	"net"
	"net/netip"
	"testing"
)

// outside is a service of the host as a guest with AllowHostLoopback sees it: loopback is the only network
// that every machine has. Paths to other addresses differ from it in nothing but the address that is dialed.
func outside(t testing.TB, network string, gateway netip.Addr) (netip.AddrPort, net.Listener, net.PacketConn) {
	t.Helper()
	host := "127.0.0.1:0"
	if gateway.Is6() {
		host = "[::1]:0"
	}
	if network == "udp" {
		c, err := net.ListenPacket("udp", host)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return netip.AddrPortFrom(gateway, c.LocalAddr().(*net.UDPAddr).AddrPort().Port()), nil, c
	}
	l, err := net.Listen("tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return netip.AddrPortFrom(gateway, l.Addr().(*net.TCPAddr).AddrPort().Port()), l, nil
}

func TestOutboundTCP(t *testing.T) {
	for _, mtu := range []int{1500, DefaultMTU} {
		for _, family := range []string{"IPv4", "IPv6"} {
			t.Run(family, func(t *testing.T) {
				s, g := boot(t, Config{AllowHostLoopback: true, MTU: mtu})
				gateway := s.Guest().Gateway4
				if family == "IPv6" {
					gateway = s.Guest().Gateway6
				}
				at, l, _ := outside(t, "tcp", gateway)
				go echoTCP(l)
				c := g.mustDial(at)
				defer c.Close()
				sent := make([]byte, 4<<20)
				rand.Read(sent)
				go func() {
					c.Write(sent)
					c.(interface{ CloseWrite() error }).CloseWrite()
				}()
				got, err := io.ReadAll(c)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, sent) {
					t.Fatalf("sent %d bytes, got %d back that differ", len(sent), len(got))
				}
			})
		}
	}
}

func TestOutboundUDP(t *testing.T) {
	for _, family := range []string{"IPv4", "IPv6"} {
		for _, size := range []int{0, 1, 1400, 9000, 60000} {
			t.Run(family, func(t *testing.T) {
				s, g := boot(t, Config{AllowHostLoopback: true, MTU: 1500})
				gateway := s.Guest().Gateway4
				if family == "IPv6" {
					gateway = s.Guest().Gateway6
				}
				at, _, pc := outside(t, "udp", gateway)
				go echoUDP(pc)
				c := g.dialUDP(at)
				defer c.Close()
				sent := make([]byte, size)
				rand.Read(sent)
				if _, err := c.Write(sent); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, 64<<10)
				n, err := c.Read(got)
				if err != nil || !bytes.Equal(got[:n], sent) {
					t.Fatalf("sent %d bytes, got %d, %v", size, n, err)
				}
			})
		}
	}
}
