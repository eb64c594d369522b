package network

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"manis/network/egress"
)

func rulesOf(t *testing.T, texts ...string) []egress.Rules {
	t.Helper()
	var lists []egress.Rules
	for _, text := range texts {
		l, err := egress.ParseAll(text)
		if err != nil {
			t.Fatal(err)
		}
		lists = append(lists, l)
	}
	return lists
}

// Sockets of the host are opened to what the rules open, and to nothing else; the same connections work without
// rules.
func TestEgress(t *testing.T) {
	gateway := DefaultSubnet.Addr().Next().String()
	for name, c := range map[string]struct {
		rules    []string
		tcp, udp bool
	}{
		"no rules":           {nil, true, true},
		"none":               {[]string{"none"}, false, false},
		"all":                {[]string{"any"}, true, true},
		"by protocol":        {[]string{gateway + ",tcp"}, true, false},
		"another address":    {[]string{"192.0.2.0/24"}, false, false},
		"another port":       {[]string{gateway + ",tcp/1,udp/1"}, false, false},
		"two lists":          {[]string{"any,udp", gateway}, false, true},
		"nothing in common":  {[]string{"any,udp", "any,tcp"}, false, false},
		"a name, unresolved": {[]string{"*"}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			s, g := boot(t, Config{AllowHostLoopback: true, Egress: rulesOf(t, c.rules...)})
			at, l, _ := outside(t, "tcp", s.Guest().Gateway4)
			go echoTCP(l)
			conn, err := g.dial(at)
			if (err == nil) != c.tcp {
				t.Errorf("tcp: %v, want it open: %v", err, c.tcp)
			}
			if err == nil {
				conn.Close()
			} else if s.Stats().Refused == 0 {
				t.Error("what was refused is not counted")
			}
			at, _, pc := outside(t, "udp", s.Guest().Gateway4)
			go echoUDP(pc)
			u := g.dialUDP(at)
			defer u.Close()
			if _, err := u.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			if !c.udp {
				// Frames are handled in turn: by the answer to this one the datagram has been.
				g.ask(query(t, 1, "example.test.", dnsmessage.TypeAXFR, nil))
				s.sessions.mu.Lock()
				defer s.sessions.mu.Unlock()
				for f := range s.sessions.table {
					if f.peer == at {
						t.Error("udp: there is a socket for it")
					}
				}
				return
			}
			buf := make([]byte, 16)
			if n, err := u.Read(buf); err != nil || string(buf[:n]) != "hello" {
				t.Errorf("udp: got %q, %v", buf[:n], err)
			}
		})
	}
}

// Echo requests are a protocol of the rules, and what is closed by default stays closed whatever they say.
func TestEgressOpensNothing(t *testing.T) {
	p := &policy{egress: egress.NewGuard(rulesOf(t, "any"))}
	for _, a := range append(append([]netip.Addr{}, loopbacks...), linkLocals...) {
		if _, why := p.target(egress.TCP, netip.AddrPortFrom(a, 80)); why == allowed {
			t.Errorf("%s is open", a)
		}
	}
	ping := netip.MustParseAddr("192.0.2.1")
	for text, want := range map[string]denial{"any,icmp": allowed, "any,tcp,udp": deniedEgress, "192.0.2.0/24": allowed} {
		p.egress = egress.NewGuard(rulesOf(t, text))
		if got := p.echo(ping); got != want {
			t.Errorf("%s: an echo request is %q, want %q", text, got, want)
		}
	}
}

// Names are looked up only where a rule says so, and open the addresses that they have, also by aliases.
func TestEgressNames(t *testing.T) {
	server := startNameServer(t, "127.0.0.1")
	gateway := DefaultSubnet.Addr().Next()
	server.setReply(func(q dnsmessage.Message, _ string) []byte {
		m := dnsmessage.Message{Header: dnsmessage.Header{ID: q.ID, Response: true, RecursionAvailable: true}, Questions: q.Questions}
		if q.Questions[0].Type == dnsmessage.TypeA {
			alias := dnsmessage.MustNewName("real.elsewhere.test.")
			header := func(name dnsmessage.Name, kind dnsmessage.Type) dnsmessage.ResourceHeader {
				return dnsmessage.ResourceHeader{Name: name, Type: kind, Class: dnsmessage.ClassINET, TTL: 60}
			}
			m.Answers = []dnsmessage.Resource{
				{Header: header(q.Questions[0].Name, dnsmessage.TypeCNAME), Body: &dnsmessage.CNAMEResource{CNAME: alias}},
				{Header: header(alias, dnsmessage.TypeA), Body: &dnsmessage.AResource{A: gateway.As4()}},
				// Of another name than was asked for: it opens nothing.
				{Header: header(dnsmessage.MustNewName("stray.test."), dnsmessage.TypeA), Body: &dnsmessage.AResource{A: [4]byte{192, 0, 2, 9}}},
			}
		}
		b, err := m.Pack()
		if err != nil {
			panic(err)
		}
		return b
	})
	s, g := boot(t, Config{AllowHostLoopback: true, Egress: rulesOf(t, "*.example.test,tcp")})
	s.askBy(server.addr)
	at, l, _ := outside(t, "tcp", gateway)
	go echoTCP(l)
	if c, err := g.dial(at); err == nil {
		c.Close()
		t.Fatal("the address is open before a name has it")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if got, err := g.resolver().LookupNetIP(ctx, "ip4", "www.other.test"); err == nil {
		t.Errorf("a name that no rule has leads to %v", got)
	}
	if n := len(server.asked()); n != 0 {
		t.Errorf("%d questions for a name that no rule has went to the name server", n)
	}
	got, err := g.resolver().LookupNetIP(ctx, "ip4", "www.example.test")
	if err != nil || len(got) == 0 || got[0].Unmap() != gateway {
		t.Fatalf("look up: %v, %v", got, err)
	}
	c, err := g.dial(at)
	if err != nil {
		t.Fatalf("the name's address is closed: %v", err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	c.(interface{ CloseWrite() error }).CloseWrite()
	if b, err := io.ReadAll(net.Conn(c)); err != nil || string(b) != "hello" {
		t.Errorf("got %q, %v", b, err)
	}
	if _, why := s.gate.policy.target(egress.TCP, netip.MustParseAddrPort("192.0.2.9:80")); why != deniedEgress {
		t.Errorf("an address of a name that was not asked for is %q", why)
	}
}
