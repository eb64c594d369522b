package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
)

func loopbackOf(family string) netip.Addr {
	if family == "IPv6" {
		return netip.IPv6Loopback()
	}
	return netip.MustParseAddr("127.0.0.1")
}

// portOf returns the actual host port of a published port.
func portOf(t *testing.T, s *Stack, proto Proto, v6 bool) uint16 {
	t.Helper()
	for _, p := range s.Ports() {
		if p.Proto == proto && p.HostIP.Is6() == v6 {
			return p.HostPort
		}
	}
	t.Fatalf("no published %s port (IPv6: %v) in %v", proto, v6, s.Ports())
	return 0
}

func TestPublishedPorts(t *testing.T) {
	for _, proto := range []Proto{TCP, UDP} {
		for _, family := range []string{"IPv4", "IPv6"} {
			t.Run(fmt.Sprint(proto, " ", family), func(t *testing.T) {
				s, g := boot(t, Config{Publish: []PortMapping{{GuestPort: 80, Proto: proto}}})
				v6 := family == "IPv6"
				if proto == TCP {
					go echoTCP(g.listen(80, v6))
				} else {
					go echoUDP(g.listenUDP(80, v6))
				}
				at := netip.AddrPortFrom(loopbackOf(family), portOf(t, s, proto, v6))
				for range 3 {
					c, err := net.Dial(string(proto), at.String())
					if err != nil {
						t.Fatal(err)
					}
					c.SetDeadline(time.Now().Add(patience))
					if _, err := c.Write([]byte("hello")); err != nil {
						t.Fatal(err)
					}
					got := make([]byte, 5)
					if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
						t.Fatalf("got %q, %v", got, err)
					}
					c.Close()
				}
			})
		}
	}
}

func TestPublishedPortListensOnBothFamiliesAtOnePort(t *testing.T) {
	s := newStack(t, Config{Publish: []PortMapping{{GuestPort: 80}}})
	ports := s.Ports()
	if len(ports) != 2 || ports[0].HostIP != netip.IPv4Unspecified() || ports[1].HostIP != netip.IPv6Unspecified() {
		t.Fatalf("ports %v: want 0.0.0.0 and [::]", ports)
	}
	if ports[0].HostPort == 0 || ports[0].HostPort != ports[1].HostPort {
		t.Errorf("ports %v: want the same port for both", ports)
	}
}

// A client that comes while the VM still boots is served as soon as the guest listens.
func TestPublishedPortBeforeBoot(t *testing.T) {
	s := newStack(t, Config{Publish: []PortMapping{{HostIP: loopbackOf("IPv4"), GuestPort: 80}}})
	c, err := net.Dial("tcp", netip.AddrPortFrom(loopbackOf("IPv4"), portOf(t, s, TCP, false)).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	c.Write([]byte("early"))
	connect(t, s, func(g *guest) { go echoTCP(g.listen(80, false)) })
	got := make([]byte, 5)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "early" {
		t.Fatalf("got %q, %v", got, err)
	}
}

func TestPublishedPortRefusedByGuest(t *testing.T) {
	s, _ := boot(t, Config{Publish: []PortMapping{{HostIP: loopbackOf("IPv4"), GuestPort: 80}}})
	c, err := net.Dial("tcp", netip.AddrPortFrom(loopbackOf("IPv4"), portOf(t, s, TCP, false)).String())
	if err == nil { // the reset may come before Dial looks
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read from a port nobody listens at in the guest: %v, want a reset", err)
	}
}

// The guest's answer to one UDP client does not reach another, and both are told apart.
func TestPublishedUDPKeepsClientsApart(t *testing.T) {
	s, g := boot(t, Config{Publish: []PortMapping{{HostIP: loopbackOf("IPv4"), GuestPort: 53, Proto: UDP}}})
	go echoUDP(g.listenUDP(53, false))
	at := netip.AddrPortFrom(loopbackOf("IPv4"), portOf(t, s, UDP, false)).String()
	var clients []net.Conn
	for range 8 {
		c, err := net.Dial("udp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		clients = append(clients, c)
	}
	for i, c := range clients {
		fmt.Fprintf(c, "client %d", i)
	}
	for i, c := range clients {
		got := make([]byte, 64)
		n, err := c.Read(got)
		if want := fmt.Sprintf("client %d", i); err != nil || string(got[:n]) != want {
			t.Errorf("client %d got %q, %v", i, got[:n], err)
		}
	}
}

func TestPortClash(t *testing.T) {
	for _, proto := range []Proto{TCP, UDP} {
		for _, host := range []string{"127.0.0.1", "::1"} {
			t.Run(fmt.Sprint(proto, " ", host), func(t *testing.T) {
				ip := netip.MustParseAddr(host)
				first := newStack(t, Config{Publish: []PortMapping{{HostIP: ip, GuestPort: 80, Proto: proto}}})
				taken := first.Ports()[0].HostPort
				free := PortMapping{HostIP: ip, GuestPort: 81, Proto: proto}
				_, err := New(context.Background(), Config{Publish: []PortMapping{
					free, {HostIP: ip, HostPort: taken, GuestPort: 80, Proto: proto},
				}})
				var portErr *PortError
				if !errors.As(err, &portErr) || !errors.Is(err, syscall.EADDRINUSE) {
					t.Fatalf("a port twice: %v, want a PortError", err)
				}
				want := fmt.Sprintf("bind for %s failed: port is already allocated", netip.AddrPortFrom(ip, taken))
				if err.Error() != want {
					t.Errorf("error %q, want %q", err, want)
				}
				first.Close()
				again, err := New(context.Background(), Config{Publish: []PortMapping{
					{HostIP: ip, HostPort: taken, GuestPort: 80, Proto: proto},
				}})
				if err != nil {
					t.Fatalf("the port after Close: %v", err)
				}
				again.Close()
			})
		}
	}
}

func TestPortFromRange(t *testing.T) {
	ip := loopbackOf("IPv4")
	first := newStack(t, Config{Publish: []PortMapping{{HostIP: ip, GuestPort: 80}}})
	taken := first.Ports()[0].HostPort
	if taken > 65000 {
		t.Skip("the kernel chose a port at the end of the range")
	}
	second := newStack(t, Config{Publish: []PortMapping{{HostIP: ip, HostPort: taken, HostPortEnd: taken + 200, GuestPort: 80}}})
	if got := second.Ports()[0].HostPort; got <= taken || got > taken+200 {
		t.Errorf("port %d, want one of %d-%d", got, taken+1, taken+200)
	}
	_, err := New(context.Background(), Config{Publish: []PortMapping{
		{HostIP: ip, HostPort: taken - 1, HostPortEnd: taken, GuestPort: 80},
		{HostIP: ip, HostPort: taken - 1, HostPortEnd: taken, GuestPort: 81},
	}})
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), fmt.Sprintf("%d-%d", taken-1, taken)) {
		t.Errorf("a range without a free port: %v", err)
	}
}

// A guest sees clients of other machines under their own address and those of the host under the gateway's.
func TestClientAddressInGuest(t *testing.T) {
	s := newStack(t, Config{})
	for client, want := range map[string]string{
		"127.0.0.1":            "192.168.127.1",
		"::1":                  "fd6d:616e:6973::1",
		"203.0.113.7":          "203.0.113.7",
		"10.1.2.3":             "10.1.2.3",
		"::ffff:203.0.113.7":   "203.0.113.7",
		"2001:db8::7":          "2001:db8::7",
		"169.254.1.1":          "192.168.127.1",
		"fe80::1%eth0":         "fd6d:616e:6973::1",
		"192.168.127.2":        "192.168.127.1", // a host that uses the link's own addresses
		"fd6d:616e:6973::dead": "fd6d:616e:6973::1",
	} {
		if _, got := s.guestAddr(netip.MustParseAddr(client)); got.String() != want {
			t.Errorf("client %s is seen as %s, want %s", client, got, want)
		}
	}
}

// The spoofed source that TestClientAddressInGuest is about does work through the stack.
func TestDialGuestFromForeignAddress(t *testing.T) {
	for _, from := range []string{"203.0.113.7", "2001:db8::7"} {
		t.Run(from, func(t *testing.T) {
			s, g := boot(t, Config{})
			src := netip.MustParseAddr(from)
			l := g.listen(80, src.Is6())
			seen := make(chan string, 1)
			go func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				seen <- c.RemoteAddr().(*net.TCPAddr).IP.String()
				c.Write([]byte("hi"))
				c.Close()
			}()
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			guest, _ := s.guestAddr(src)
			c, err := s.dialGuest(ctx, src, netip.AddrPortFrom(guest, 80))
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if err := c.copyTo(ctx, &got, &tightChunks); err != nil || got.String() != "hi" {
				t.Errorf("got %q, %v", got.String(), err)
			}
			c.ep.Close()
			if a := <-seen; a != from {
				t.Errorf("the guest saw %s", a)
			}
		})
	}
}

func TestPublishNothingSane(t *testing.T) {
	for name, m := range map[string]PortMapping{
		"no guest port":    {HostPort: 1},
		"unknown protocol": {GuestPort: 80, Proto: "sctp"},
		"foreign address":  {GuestPort: 80, HostIP: netip.MustParseAddr("203.0.113.7")},
	} {
		if s, err := New(context.Background(), Config{Publish: []PortMapping{m}}); err == nil {
			s.Close()
			t.Errorf("%s: no error", name)
		}
	}
}
