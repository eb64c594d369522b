package egress

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

func rules(t *testing.T, text string) Rules {
	t.Helper()
	l, err := ParseAll(text)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestAllows(t *testing.T) {
	for _, c := range []struct {
		lists    []string
		protocol Protocol
		to       string
		want     bool
	}{
		{nil, TCP, "192.0.2.1:80", true},
		{[]string{"none"}, TCP, "192.0.2.1:80", false},
		{[]string{"any"}, ICMP, "192.0.2.1:0", true},
		{[]string{"any,tcp"}, ICMP, "192.0.2.1:0", false},
		{[]string{"any,tcp"}, UDP, "192.0.2.1:53", false},
		{[]string{"192.0.2.0/24,tcp/80"}, TCP, "192.0.2.1:80", true},
		{[]string{"192.0.2.0/24,tcp/80"}, TCP, "[::ffff:192.0.2.1]:80", true},
		{[]string{"192.0.2.0/24,tcp/80"}, TCP, "192.0.2.1:81", false},
		{[]string{"192.0.2.0/24,tcp/80"}, TCP, "192.0.3.1:80", false},
		{[]string{"192.0.2.0/24,tcp/80-90,udp/53"}, TCP, "192.0.2.1:90", true},
		{[]string{"192.0.2.0/24,tcp/80-90,udp/53"}, UDP, "192.0.2.1:90", false},
		{[]string{"0.0.0.0/0"}, TCP, "[2001:db8::1]:80", false},
		{[]string{"198.51.100.1 192.0.2.1"}, TCP, "192.0.2.1:80", true},
		// Every list has to allow it.
		{[]string{"any,tcp", "192.0.2.1"}, TCP, "192.0.2.1:80", true},
		{[]string{"any,tcp", "192.0.2.1"}, UDP, "192.0.2.1:80", false},
		{[]string{"any,tcp", "192.0.2.1"}, TCP, "192.0.2.2:80", false},
		{[]string{"*.example.com"}, TCP, "192.0.2.1:80", false},
	} {
		var lists []Rules
		for _, l := range c.lists {
			lists = append(lists, rules(t, l))
		}
		if got := NewGuard(lists).Allows(c.protocol, netip.MustParseAddrPort(c.to)); got != c.want {
			t.Errorf("%q: %s to %s: %v, want %v", c.lists, c.protocol, c.to, got, c.want)
		}
	}
}

func TestMayLookUp(t *testing.T) {
	for _, c := range []struct {
		list, name string
		want       bool
	}{
		{"none", "example.com.", false}, {"any,tcp/443", "example.com.", true}, {"10.0.0.0/8", "example.com.", false},
		{"example.com", "EXAMPLE.com.", true}, {"example.com", "www.example.com.", false}, {"*.example.com", "a.b.example.com.", true},
		{"*.example.com", "example.com.", false}, {"*.example.com", "badexample.com.", false}, {"*,lookup", "whatever.", true},
	} {
		if got := NewGuard([]Rules{rules(t, c.list)}).MayLookUp(c.name); got != c.want {
			t.Errorf("%s: look up %s: %v, want %v", c.list, c.name, got, c.want)
		}
	}
}

// A name's addresses are open as long as its answer said, at least for a moment, and for what covers the name alone.
func TestBind(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	g := NewGuard([]Rules{rules(t, "*.example.com,tcp/443 other.test,lookup")})
	g.now = func() time.Time { return now }
	web, zero, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")
	check := func(when string, addr netip.Addr, port uint16, want bool) {
		t.Helper()
		if got := g.Allows(TCP, netip.AddrPortFrom(addr, port)); got != want {
			t.Errorf("%s: %s:%d is open: %v, want %v", when, addr, port, got, want)
		}
	}
	check("unknown", web, 443, false)
	g.Bind("WWW.example.com.", web, time.Minute)
	g.Bind("www.example.com.", zero, 0)
	g.Bind("other.test.", other, time.Minute)
	check("bound", web, 443, true)
	check("bound", web, 80, false)
	check("bound for no time", zero, 443, true)
	check("to be looked up only", other, 443, false)
	now = now.Add(leastTime)
	check("later", web, 443, true)
	check("later", zero, 443, false)
	now = now.Add(time.Minute)
	check("run out", web, 443, false)
}

// What a name server says cannot take memory without end, and what was said last counts.
func TestBindIsBounded(t *testing.T) {
	g := NewGuard([]Rules{rules(t, "*,tcp")})
	addr := netip.MustParseAddr("10.0.0.0")
	for range 2 * maxAddresses {
		addr = addr.Next()
		g.Bind("a.test", addr, time.Minute)
	}
	if len(g.bound) > maxAddresses {
		t.Errorf("%d addresses are remembered", len(g.bound))
	}
	if !g.Allows(TCP, netip.AddrPortFrom(addr, 1)) {
		t.Error("the last address is not open")
	}
	for i := range 2 * maxNames {
		g.Bind(fmt.Sprintf("n%d.test", i), addr, time.Hour)
	}
	if n := len(g.bound[addr]); n > maxNames {
		t.Errorf("an address has %d names", n)
	}
}
