package network

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// nameServer is a DNS server on the host's loopback that knows A records of what is asked.
type nameServer struct {
	t    *testing.T
	addr netip.AddrPort
	// reply answers a query; nil for the default, which gives 192.0.2.1 to every name.
	reply func(q dnsmessage.Message, network string) []byte

	mu      sync.Mutex
	queries []dnsmessage.Message
	raw     [][]byte
}

func startNameServer(t *testing.T, host string) *nameServer {
	t.Helper()
	// One port for both protocols: what the one got may be somebody's of the other.
	var pc net.PacketConn
	l, err := net.Listener(nil), error(nil)
	for range 20 {
		if pc, err = net.ListenPacket("udp", net.JoinHostPort(host, "0")); err != nil {
			t.Fatal(err)
		}
		if l, err = net.Listen("tcp", pc.LocalAddr().String()); err == nil {
			break
		}
		pc.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	n := &nameServer{t: t, addr: pc.LocalAddr().(*net.UDPAddr).AddrPort()}
	var work sync.WaitGroup
	work.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			k, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			if a := n.answer(append([]byte(nil), buf[:k]...), "udp"); a != nil {
				pc.WriteTo(a, from)
			}
		}
	})
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			var length [2]byte
			for {
				if _, err := io.ReadFull(c, length[:]); err != nil {
					break
				}
				q := make([]byte, binary.BigEndian.Uint16(length[:]))
				if _, err := io.ReadFull(c, q); err != nil {
					break
				}
				a := n.answer(q, "tcp")
				c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...))
			}
			c.Close()
		}
	})
	t.Cleanup(func() {
		pc.Close()
		l.Close()
		work.Wait()
	})
	return n
}

func (n *nameServer) answer(raw []byte, network string) []byte {
	var q dnsmessage.Message
	if err := q.Unpack(raw); err != nil {
		n.t.Errorf("the name server got what is no DNS message: %x", raw)
		return nil
	}
	n.mu.Lock()
	n.queries = append(n.queries, q)
	n.raw = append(n.raw, raw)
	reply := n.reply
	n.mu.Unlock()
	if reply != nil {
		return reply(q, network)
	}
	return records(q, 1)
}

func (n *nameServer) setReply(f func(q dnsmessage.Message, network string) []byte) {
	n.mu.Lock()
	n.reply = f
	n.mu.Unlock()
}

func (n *nameServer) asked() []dnsmessage.Message {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]dnsmessage.Message(nil), n.queries...)
}

// records answers with count A records.
func records(q dnsmessage.Message, count int) []byte {
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: q.ID, Response: true, RecursionAvailable: true},
		Questions: q.Questions,
	}
	for i := range count {
		m.Answers = append(m.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: q.Questions[0].Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET, TTL: 60},
			Body:   &dnsmessage.AResource{A: [4]byte{192, 0, byte(2 + i/256), byte(i + 1)}},
		})
	}
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

// askBy makes the stack ask the given servers, all at the port of the first.
func (s *Stack) askBy(servers ...netip.AddrPort) {
	s.names.servers = []netip.Addr{}
	for _, a := range servers {
		s.names.servers = append(s.names.servers, a.Addr())
		s.names.port = a.Port()
	}
}

// resolver is Go's own, in the guest.
func (g *guest) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(_ context.Context, network, _ string) (net.Conn, error) {
		at := netip.AddrPortFrom(g.addrs.DNS[0], dnsPort)
		if strings.HasPrefix(network, "tcp") {
			return g.dial(at)
		}
		return g.dialUDP(at), nil
	}}
}

// ask sends one raw message and returns the raw answer, or nil if the stack says nothing before it answers a
// later, good query.
func (g *guest) ask(message []byte) []byte {
	g.t.Helper()
	c := g.dialUDP(netip.AddrPortFrom(g.addrs.Gateway4, dnsPort))
	defer c.Close()
	if _, err := c.Write(message); err != nil {
		g.t.Fatal(err)
	}
	buf := make([]byte, 64<<10)
	n, err := c.Read(buf)
	if err != nil {
		g.t.Fatal(err)
	}
	return buf[:n]
}

func query(t testing.TB, id uint16, name string, typ dnsmessage.Type, edit func(*dnsmessage.Message)) []byte {
	t.Helper()
	m := dnsmessage.Message{
		Header: dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{
			Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET,
		}},
	}
	if edit != nil {
		edit(&m)
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func unpack(t testing.TB, b []byte) (m dnsmessage.Message) {
	t.Helper()
	if err := m.Unpack(b); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestNames(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			server := startNameServer(t, host)
			s, g := boot(t, Config{})
			s.askBy(server.addr)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			got, err := g.resolver().LookupNetIP(ctx, "ip4", "name.example.")
			if err != nil || len(got) != 1 || got[0].String() != "192.0.2.1" {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}

// An answer that does not fit is asked for again by TCP, as everywhere.
func TestLargeAnswerByTCP(t *testing.T) {
	server := startNameServer(t, "127.0.0.1")
	var mu sync.Mutex
	used := map[string]bool{}
	server.setReply(func(q dnsmessage.Message, network string) []byte {
		mu.Lock()
		used[network] = true
		mu.Unlock()
		if network == "udp" {
			m := dnsmessage.Message{Header: dnsmessage.Header{ID: q.ID, Response: true, Truncated: true}, Questions: q.Questions}
			b, _ := m.Pack()
			return b
		}
		return records(q, 1000)
	})
	s, g := boot(t, Config{})
	s.askBy(server.addr)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	got, err := g.resolver().LookupNetIP(ctx, "ip4", "many.example.")
	if err != nil || len(got) != 1000 {
		t.Errorf("got %d addresses, %v", len(got), err)
	}
	if !used["udp"] || !used["tcp"] {
		t.Errorf("asked by %v", used)
	}
}

// What reaches the server is a question made anew: none of the guest's other bytes, not its id, no other kind
// of request.
func TestQueryIsMadeAnew(t *testing.T) {
	server := startNameServer(t, "127.0.0.1")
	s, g := boot(t, Config{})
	s.askBy(server.addr)
	const id = 0x1234
	smuggled := query(t, id, "Name.example.", dnsmessage.TypeTXT, func(m *dnsmessage.Message) {
		m.AuthenticData = true
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Type: dnsmessage.TypeTXT, Class: dnsmessage.ClassINET},
			Body:   &dnsmessage.TXTResource{TXT: []string{"SMUGGLED"}},
		}}
		var opt dnsmessage.ResourceHeader
		opt.SetEDNS0(65535, dnsmessage.RCodeSuccess, true)
		m.Additionals = []dnsmessage.Resource{{Header: opt, Body: &dnsmessage.OPTResource{
			Options: []dnsmessage.Option{{Code: 65001, Data: []byte("SMUGGLED")}},
		}}}
	})
	server.setReply(func(q dnsmessage.Message, _ string) []byte { return records(q, 1) })
	if a := unpack(t, g.ask(append(smuggled, "SMUGGLED"...))); a.ID != id || !a.Response {
		t.Errorf("answer %+v", a.Header)
	}
	got := server.asked()
	if len(got) != 1 {
		t.Fatalf("%d queries", len(got))
	}
	q := got[0]
	if q.ID == id {
		t.Error("the guest's id was passed on") // by chance in one of 65536 runs
	}
	if len(q.Answers) != 0 || len(q.Authorities) != 0 || q.AuthenticData || strings.Contains(string(server.raw[0]), "SMUGGLED") {
		t.Errorf("passed on: %+v", q)
	}
	if q.Questions[0].Name.String() != "Name.example." || q.Questions[0].Type != dnsmessage.TypeTXT {
		t.Errorf("question %v", q.Questions)
	}
	if len(q.Additionals) != 1 || int(q.Additionals[0].Header.Class) != maxQueryBytes || !q.Additionals[0].Header.DNSSECAllowed() {
		t.Errorf("EDNS %+v", q.Additionals)
	}
}

func TestRefusedQueries(t *testing.T) {
	server := startNameServer(t, "127.0.0.1")
	s, g := boot(t, Config{})
	s.askBy(server.addr)
	for name, c := range map[string]struct {
		message []byte
		want    dnsmessage.RCode
	}{
		"zone transfer":        {query(t, 1, "example.", dnsmessage.TypeAXFR, nil), dnsmessage.RCodeRefused},
		"incremental transfer": {query(t, 1, "example.", 251, nil), dnsmessage.RCodeRefused},
		"chaos class": {query(t, 1, "version.bind.", dnsmessage.TypeTXT, func(m *dnsmessage.Message) {
			m.Questions[0].Class = dnsmessage.ClassCHAOS
		}), dnsmessage.RCodeRefused},
		"update": {query(t, 1, "example.", dnsmessage.TypeSOA, func(m *dnsmessage.Message) { m.OpCode = 5 }), dnsmessage.RCodeNotImplemented},
		"notify": {query(t, 1, "example.", dnsmessage.TypeSOA, func(m *dnsmessage.Message) { m.OpCode = 4 }), dnsmessage.RCodeNotImplemented},
	} {
		if a := unpack(t, g.ask(c.message)); a.RCode != c.want || a.ID != 1 || !a.Response {
			t.Errorf("%s: %v, want %v", name, a.Header, c.want)
		}
	}
	// What is no query gets no answer: the next one does, and is the first to.
	c := g.dialUDP(netip.AddrPortFrom(g.addrs.Gateway4, dnsPort))
	defer c.Close()
	for _, junk := range [][]byte{
		{}, {0}, make([]byte, 12), []byte("GET / HTTP/1.1\r\n\r\n"), make([]byte, 1000), make([]byte, maxQueryBytes+1),
		query(t, 2, "example.", dnsmessage.TypeA, func(m *dnsmessage.Message) { m.Response = true }),
		query(t, 3, "example.", dnsmessage.TypeA, func(m *dnsmessage.Message) { m.Questions = append(m.Questions, m.Questions[0]) }),
		query(t, 4, "example.", dnsmessage.TypeA, func(m *dnsmessage.Message) { m.Questions = nil }),
	} {
		c.Write(junk)
	}
	c.Write(query(t, 99, "example.", dnsmessage.TypeA, nil))
	buf := make([]byte, 512)
	n, err := c.Read(buf)
	if err != nil || unpack(t, buf[:n]).ID != 99 {
		t.Errorf("answer %x, %v", buf[:n], err)
	}
	if got := server.asked(); len(got) != 1 || got[0].Questions[0].Name.String() != "example." {
		t.Errorf("the server was asked %v", got)
	}
}

// Answers with another id, of another question, or that are none, are waited past.
func TestForgedAnswers(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			var q dnsmessage.Message
			if q.Unpack(buf[:n]) != nil {
				continue
			}
			wrongID, other := q, q
			wrongID.ID++
			other.Questions = []dnsmessage.Question{{Name: dnsmessage.MustNewName("evil."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}
			for _, b := range [][]byte{[]byte("junk"), records(wrongID, 3), records(other, 3), buf[:n], records(q, 2)} {
				pc.WriteTo(b, from)
			}
		}
	}()
	s, g := boot(t, Config{})
	s.askBy(pc.LocalAddr().(*net.UDPAddr).AddrPort())
	if a := unpack(t, g.ask(query(t, 7, "good.", dnsmessage.TypeA, nil))); len(a.Answers) != 2 || a.ID != 7 {
		t.Errorf("answer %+v", a)
	}
}

func TestSecondServerAndNone(t *testing.T) {
	server := startNameServer(t, "127.0.0.1")
	s, g := boot(t, Config{})
	// Nothing listens at 127.0.0.2 at that port.
	s.askBy(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), server.addr.Port()), server.addr)
	if a := unpack(t, g.ask(query(t, 1, "a.", dnsmessage.TypeA, nil))); a.RCode != dnsmessage.RCodeSuccess || len(a.Answers) != 1 {
		t.Errorf("by the second server: %+v", a)
	}
	s.askBy(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), server.addr.Port()))
	if a := unpack(t, g.ask(query(t, 2, "a.", dnsmessage.TypeA, nil))); a.RCode != dnsmessage.RCodeServerFailure {
		t.Errorf("by no server: %+v", a)
	}
}

// A name that leads to a denied address is answered, and leads nowhere.
func TestNameOfDeniedAddress(t *testing.T) {
	server := startNameServer(t, "127.0.0.1")
	trap := setTrap(t, "127.0.0.1", 0)
	server.setReply(func(q dnsmessage.Message, _ string) []byte {
		b := records(q, 1)
		copy(b[len(b)-4:], []byte{127, 0, 0, 1})
		return b
	})
	s := newStack(t, Config{})
	s.askBy(server.addr)
	g := connect(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	got, err := g.resolver().LookupNetIP(ctx, "ip4", "rebound.example.")
	if err != nil || len(got) != 1 || !got[0].IsLoopback() {
		t.Fatalf("got %v, %v", got, err)
	}
	g.close()
	raw := connectRaw(t, s)
	dst := netip.AddrPortFrom(got[0], trap.at.Port())
	src := netip.AddrPortFrom(raw.source(dst.Addr()), 40000)
	raw.ip(6, src.Addr(), dst.Addr(), tcpSYN(src, dst))
	if a := raw.next(); a.kind != "prohibited" {
		t.Errorf("answer %q", a.kind)
	}
	s.Close()
	if what := trap.reached(); what != "" {
		t.Errorf("%s reached the host's loopback", what)
	}
}

// A guest that asks without end does not make the host ask without end.
func TestQueryRateIsBounded(t *testing.T) {
	server := startNameServer(t, "127.0.0.1")
	s, g := boot(t, Config{})
	s.askBy(server.addr)
	s.names.limit.SetLimit(0)
	s.names.limit.SetBurst(50)
	c := g.dialUDP(netip.AddrPortFrom(g.addrs.Gateway4, dnsPort))
	defer c.Close()
	for i := range 2000 {
		c.Write(query(t, uint16(i), "flood.", dnsmessage.TypeA, nil))
	}
	s.Close() // waits for the queries on their way
	if n := len(server.asked()); n == 0 || n > 50 {
		t.Errorf("%d queries reached the server, want 1 to 50", n)
	}
}

func TestResolvConf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	r := resolvConf{path: path}
	if servers, search := r.load(); servers != nil || search != nil {
		t.Errorf("no file: %v, %v", servers, search)
	}
	for i, c := range []struct{ content, servers, search string }{
		{"nameserver 127.0.0.53\nsearch a.test b.test\n", "[127.0.0.53]", "[a.test b.test]"},
		{"# comment\ndomain x.test\nnameserver fe80::1%eth0\nnameserver nonsense\nnameserver\noptions ndots:5\n", "[fe80::1%eth0]", "[x.test]"},
		{"nameserver 1.1.1.1\nnameserver 2.2.2.2\nnameserver ::ffff:3.3.3.3\nnameserver 4.4.4.4", "[1.1.1.1 2.2.2.2 3.3.3.3]", "[]"},
		{"", "[]", "[]"},
		{strings.Repeat("x", 1<<20), "[]", "[]"},
	} {
		if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		stamp := time.Unix(int64(1000+i), 0)
		if err := os.Chtimes(path, stamp, stamp); err != nil {
			t.Fatal(err)
		}
		if servers, search := r.load(); fmt.Sprint(servers) != c.servers || fmt.Sprint(search) != c.search {
			t.Errorf("%.40q: %v, %v, want %s, %s", c.content, servers, search, c.servers, c.search)
		}
	}
}

func FuzzQuestion(f *testing.F) {
	f.Add(query(f, 1, "example.", dnsmessage.TypeA, nil))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, message []byte) {
		q, err := parseQuestion(message)
		if err != nil {
			return
		}
		if reply := q.reply(dnsmessage.RCodeRefused); reply == nil {
			t.Error("no reply can be made")
		}
		b, err := q.query(7)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > 512 {
			t.Errorf("a query of %d bytes", len(b))
		}
		again, err := parseQuestion(b)
		if err != nil || again.name != q.name {
			t.Errorf("made anew: %+v, %v, want %+v", again, err, q)
		}
		q.answeredBy(message, q.id)
	})
}
