package e2e

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// Addresses of the lab: a world with a server, its IPv6, a cloud's metadata, and a
// loopback of its own.
const (
	labServer  = "203.0.113.1"
	labServer6 = "2001:db8::1"
	labNames   = "203.0.113.53"
	metadata   = "169.254.169.254"
)

// lab is a network namespace that stands for the host's network: the product runs in it, with
// servers at addresses that no test machine has, and nothing leads out.
type lab struct {
	t    testing.TB
	work chan func()
}

// newLabWorld is a world whose host network is a lab of its own.
func newLabWorld(t testing.TB) *world {
	t.Helper()
	l := newLab(t) // outlives the world
	w := newWorld(t)
	w.net = l
	return w
}

// newLab makes a network namespace that ends with the test.
func newLab(t testing.TB) *lab {
	t.Helper()
	needRoot(t, "make a network namespace")
	l := &lab{t: t, work: make(chan func())}
	ready := make(chan error)
	go func() {
		// The thread is in the namespace for good: it ends with this goroutine.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		ready <- err
		if err != nil {
			return
		}
		for f := range l.work {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Skipf("no network namespace on this machine: %v", err)
	}
	t.Cleanup(func() { close(l.work) })
	for _, args := range []string{
		"link set lo up",
		// Not every kernel has cards that lead nowhere; addresses are this host's on any.
		"addr add " + labServer + "/24 dev lo",
		"addr add " + labNames + "/24 dev lo",
		"addr add " + metadata + "/32 dev lo",
		"addr add " + labServer6 + "/128 dev lo nodad",
	} {
		cmd := exec.Command("ip", strings.Fields(args)...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		err := l.do(cmd.Start)
		if err == nil {
			err = cmd.Wait()
		}
		if err != nil {
			t.Skipf("no network of one's own on this machine: ip %s: %v: %s", args, err, out.String())
		}
	}
	return l
}

// do runs f in the namespace. Sockets that it makes and processes that it starts stay
// there.
func (l *lab) do(f func() error) error {
	done := make(chan error)
	l.work <- func() { done <- f() }
	return <-done
}

// dial connects from the namespace.
func (l *lab) dial(network, address string) (c net.Conn, err error) {
	err = l.do(func() error {
		c, err = net.Dial(network, address)
		return err
	})
	return c, err
}

// serve answers at network/address ("tcp/127.0.0.1:80") with a name.
func (l *lab) serve(name string, at ...string) {
	l.t.Helper()
	for _, a := range at {
		network, address, _ := strings.Cut(a, "/")
		err := l.do(func() error {
			if network == "udp" {
				c, err := net.ListenPacket("udp", address)
				if err == nil {
					l.t.Cleanup(func() { c.Close() })
					go answerUDP(c, name)
				}
				return err
			}
			s, err := net.Listen("tcp", address)
			if err == nil {
				l.t.Cleanup(func() { s.Close() })
				go answerTCP(s, name)
			}
			return err
		})
		if err != nil {
			l.t.Fatal(err)
		}
	}
}

func answerTCP(l net.Listener, name string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			line, _ := bufio.NewReader(c).ReadString('\n')
			fmt.Fprintf(c, "%s got %s", name, line)
		}()
	}
}

func answerUDP(c net.PacketConn, name string) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		c.WriteTo(fmt.Appendf(nil, "%s got %s", name, buf[:n]), from)
	}
}

// serveNames is a DNS server on port 53 of an address, over UDP and TCP. It knows the
// IPv4 addresses and texts of some names.
func (l *lab) serveNames(address string, hosts map[string][4]byte, texts map[string]string) {
	l.t.Helper()
	answer := func(query []byte) []byte {
		var m dnsmessage.Message
		if m.Unpack(query) != nil || len(m.Questions) != 1 {
			return nil
		}
		m.Response, m.RecursionAvailable = true, true
		m.Additionals = nil
		q := m.Questions[0]
		name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
		header := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: dnsmessage.ClassINET, TTL: 60}
		a, isHost := hosts[name]
		text, isText := texts[name]
		switch {
		case q.Type == dnsmessage.TypeA && isHost:
			m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AResource{A: a}}}
		case q.Type == dnsmessage.TypeTXT && isText:
			m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.TXTResource{TXT: []string{text}}}}
		case !isHost && !isText:
			m.RCode = dnsmessage.RCodeNameError
		}
		b, err := m.Pack()
		if err != nil {
			return nil
		}
		return b
	}
	at := net.JoinHostPort(address, "53")
	err := l.do(func() error {
		c, err := net.ListenPacket("udp", at)
		if err != nil {
			return err
		}
		l.t.Cleanup(func() { c.Close() })
		go func() {
			buf := make([]byte, 64<<10)
			for {
				n, from, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				if b := answer(buf[:n]); b != nil {
					c.WriteTo(b, from)
				}
			}
		}()
		s, err := net.Listen("tcp", at)
		if err != nil {
			return err
		}
		l.t.Cleanup(func() { s.Close() })
		go func() {
			for {
				c, err := s.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					var length uint16
					if binary.Read(c, binary.BigEndian, &length) != nil {
						return
					}
					query := make([]byte, length)
					if _, err := c.Read(query); err != nil {
						return
					}
					b := answer(query)
					binary.Write(c, binary.BigEndian, uint16(len(b)))
					c.Write(b)
				}()
			}
		}()
		return nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
}
