package network

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// linuxGuest is a real kernel's network stack on the other end of the link: a network namespace with a TAP
// device in it. A thread lives there and does what the test asks.
type linuxGuest struct {
	t     testing.TB
	work  chan func()
	addrs Addresses
}

// do runs f in the guest.
func (g *linuxGuest) do(f func()) {
	done := make(chan struct{})
	g.work <- func() { defer close(done); f() }
	<-done
}

func (g *linuxGuest) ip(args ...string) {
	g.t.Helper()
	g.do(func() {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			g.t.Errorf("ip %v: %v\n%s", args, err, out)
		}
	})
}

// dial connects a socket of the guest's kernel.
func (g *linuxGuest) dial(network string, to netip.AddrPort) (c net.Conn, err error) {
	g.do(func() {
		c, err = net.DialTimeout(network, to.String(), patience)
	})
	if err == nil {
		c.SetDeadline(time.Now().Add(patience))
	}
	return c, err
}

func connectLinux(t testing.TB, s *Stack) *linuxGuest {
	t.Helper()
	g := &linuxGuest{t: t, work: make(chan func()), addrs: s.Guest()}
	begun := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		begun <- unix.Unshare(unix.CLONE_NEWNET)
		for f := range g.work {
			f()
		}
	}()
	if err := <-begun; err != nil {
		close(g.work)
		t.Skip("no network namespace to be had here: ", err)
	}
	var tap *os.File
	g.do(func() {
		var fd int
		var ifr *unix.Ifreq
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err == nil {
			ifr, err = unix.NewIfreq("eth0")
		}
		if err == nil {
			ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
		}
		if err != nil {
			t.Log("TAP: ", err)
			return
		}
		tap = os.NewFile(uintptr(fd), "tap")
	})
	if tap == nil {
		close(g.work)
		t.Skip("no TAP device to be had here")
	}
	a := g.addrs
	g.ip("link", "set", "eth0", "address", a.MAC.String(), "mtu", fmt.Sprint(a.MTU), "up")
	g.ip("addr", "add", a.IPv4.String(), "dev", "eth0")
	g.ip("route", "add", "default", "via", a.Gateway4.String())
	g.ip("addr", "add", a.IPv6.String(), "dev", "eth0", "nodad")
	g.ip("-6", "route", "add", "default", "via", a.Gateway6.String())

	ours, theirs := socketPair(t)
	ctx, cancel := context.WithCancel(context.Background())
	served, sent, received := make(chan error, 1), make(chan struct{}), make(chan struct{})
	go func() { served <- s.Serve(ctx, ours) }()
	go func() {
		defer close(sent)
		buf := make([]byte, lengthBytes+maxFrameBytes)
		for {
			n, err := tap.Read(buf[lengthBytes:])
			if err != nil {
				return
			}
			binary.BigEndian.PutUint32(buf, uint32(n))
			if _, err := theirs.Write(buf[:lengthBytes+n]); err != nil {
				return
			}
		}
	}()
	go func() {
		defer close(received)
		frames := newFrameReader(theirs)
		for {
			v, err := frames.next()
			if err != nil {
				return
			}
			tap.Write(v.AsSlice())
			v.Release()
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-served
		theirs.Close()
		tap.Close()
		<-sent
		<-received
		close(g.work)
	})
	return g
}

// A real kernel as the guest: TCP both ways, large datagrams in fragments, names, published ports, and the
// errors that programs get.
func TestLinuxGuest(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	addAddress(t, "203.0.113.9")
	addAddress(t, "2001:db8::9")
	for _, mtu := range []int{1500, 9000, DefaultMTU} {
		t.Run(fmt.Sprint("mtu ", mtu), func(t *testing.T) {
			s := newStack(t, Config{MTU: mtu, Publish: []PortMapping{{GuestPort: 80}, {GuestPort: 80, Proto: UDP}}})
			server := startNameServer(t, "127.0.0.1")
			s.askBy(server.addr)
			g := connectLinux(t, s)
			for _, host := range []string{"203.0.113.9", "2001:db8::9"} {
				l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
				if err != nil {
					t.Fatal(err)
				}
				at := l.Addr().(*net.TCPAddr).AddrPort()
				go echoTCP(l)
				c, err := g.dial("tcp", at)
				if err != nil {
					t.Fatal(err)
				}
				data := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
				go func() {
					c.Write(data)
					c.(*net.TCPConn).CloseWrite()
				}()
				if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, data) {
					t.Errorf("%s: got %d of %d bytes, %v", host, len(got), len(data), err)
				}
				c.Close()
				l.Close()
				if _, err := g.dial("tcp", at); err == nil || !strings.Contains(err.Error(), "refused") {
					t.Errorf("%s: nobody listens: %v", host, err)
				}

				pc, err := net.ListenPacket("udp", net.JoinHostPort(host, "0"))
				if err != nil {
					t.Fatal(err)
				}
				go echoUDP(pc)
				u, err := g.dial("udp", pc.LocalAddr().(*net.UDPAddr).AddrPort())
				if err != nil {
					t.Fatal(err)
				}
				for _, size := range []int{1, 1472, 9000, 60000} {
					buf := make([]byte, 64<<10)
					if _, err := u.Write(data[:size]); err != nil {
						t.Fatal(err)
					}
					if n, err := u.Read(buf); err != nil || !bytes.Equal(buf[:n], data[:size]) {
						t.Errorf("%s: datagram of %d bytes: got %d, %v", host, size, n, err)
					}
				}
				pc.Close()
				u.Write([]byte("x"))
				if _, err := u.Read(make([]byte, 8)); err == nil || !strings.Contains(err.Error(), "refused") {
					t.Errorf("%s: datagram to nobody: %v", host, err)
				}
				u.Close()
			}
			for _, denied := range []string{"169.254.169.254:80", "[fd00:ec2::254]:80"} {
				_, err := g.dial("tcp", netip.MustParseAddrPort(denied))
				if err == nil || !strings.Contains(err.Error(), "no route to host") && !strings.Contains(err.Error(), "permission denied") {
					t.Errorf("%s: %v", denied, err)
				}
			}
			n, err := g.dial("udp", netip.AddrPortFrom(g.addrs.DNS[0], dnsPort))
			if err != nil {
				t.Fatal(err)
			}
			defer n.Close()
			n.Write(query(t, 5, "name.example.", dnsmessage.TypeA, nil))
			buf := make([]byte, 512)
			if k, err := n.Read(buf); err != nil || len(unpack(t, buf[:k]).Answers) != 1 {
				t.Errorf("DNS: %x, %v", buf[:k], err)
			}
			g.do(func() {
				l, err := net.Listen("tcp", ":80")
				if err != nil {
					t.Error(err)
					return
				}
				pc, err := net.ListenPacket("udp4", ":80")
				if err != nil {
					t.Error(err)
					return
				}
				t.Cleanup(func() { l.Close(); pc.Close() })
				go echoTCP(l)
				go echoUDP(pc)
			})
			for _, p := range s.Ports() {
				if p.Proto == UDP && p.HostIP.Is6() {
					continue
				}
				host := loopbackOf("IPv4")
				if p.HostIP.Is6() {
					host = loopbackOf("IPv6")
				}
				c, err := net.Dial(string(p.Proto), netip.AddrPortFrom(host, p.HostPort).String())
				if err != nil {
					t.Fatal(err)
				}
				c.SetDeadline(time.Now().Add(patience))
				c.Write([]byte("hello"))
				got := make([]byte, 5)
				if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
					t.Errorf("published %v: %q, %v", p, got, err)
				}
				c.Close()
			}
		})
	}
}

// Ping of what is outside goes out and comes back; of what is not there, it does not come back.
func TestPing(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0); err != nil {
		t.Skip("ping sockets cannot be allowed here: ", err)
	}
	addAddress(t, "203.0.113.9")
	addAddress(t, "2001:db8::9")
	s := newStack(t, Config{})
	g := connectRaw(t, s)
	for i, host := range addrs("203.0.113.9", "2001:db8::9", "203.0.113.9") {
		// Nobody is at these two; an answer would be made up.
		for _, nobody := range addrs("203.0.113.10", "2001:db8::a", "127.0.0.1", "169.254.169.254") {
			proto, echo := echoRequest(nobody, 99)
			g.ip(proto, g.source(nobody), nobody, echo)
		}
		ident := uint16(0x100 + i)
		proto, echo := echoRequest(host, ident)
		echo[echoHeader] = 'x'
		g.ip(proto, g.source(host), host, echo)
		a := g.next()
		if a.kind != "echo reply" || a.src != host || a.dst != g.source(host) ||
			binary.BigEndian.Uint16(a.payload[echoIdent:]) != ident || a.payload[echoHeader] != 'x' {
			t.Errorf("ping %s: %+v", host, a)
		}
	}
}

// BenchmarkLinuxGuest is BenchmarkThroughput with a real kernel as the guest, on a TAP device. It needs root.
func BenchmarkLinuxGuest(b *testing.B) {
	for _, mtu := range []int{1500, 9000, 16000, 32000, DefaultMTU} {
		for _, up := range []bool{true, false} {
			name := "to guest"
			if up {
				name = "from guest"
			}
			b.Run(fmt.Sprintf("mtu %d/%s", mtu, name), func(b *testing.B) {
				s := newStack(b, Config{AllowHostLoopback: true, MTU: mtu})
				g := connectLinux(b, s)
				at, l, _ := outside(b, "tcp", s.Guest().Gateway4)
				src, err := g.dial("tcp", at)
				if err != nil {
					b.Fatal(err)
				}
				dst, err := l.Accept()
				if err != nil {
					b.Fatal(err)
				}
				src.SetDeadline(time.Time{})
				if !up {
					src, dst = dst, src
				}
				measure(b, src, dst)
			})
		}
	}
}
