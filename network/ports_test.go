package network

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func TestParsePort(t *testing.T) {
	v4, v6 := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")
	one := func(m PortMapping) []PortMapping { return []PortMapping{m} }
	for value, want := range map[string][]PortMapping{
		"80":                     one(PortMapping{GuestPort: 80, Proto: TCP}),
		":80":                    one(PortMapping{GuestPort: 80, Proto: TCP}),
		"::80":                   one(PortMapping{GuestPort: 80, Proto: TCP}),
		"80/udp":                 one(PortMapping{GuestPort: 80, Proto: UDP}),
		"80/TCP":                 one(PortMapping{GuestPort: 80, Proto: TCP}),
		"8080:80":                one(PortMapping{HostPort: 8080, GuestPort: 80, Proto: TCP}),
		"127.0.0.1:8080:80/udp":  one(PortMapping{HostIP: v4, HostPort: 8080, GuestPort: 80, Proto: UDP}),
		"127.0.0.1::80":          one(PortMapping{HostIP: v4, GuestPort: 80, Proto: TCP}),
		"0.0.0.0:1:2":            one(PortMapping{HostIP: netip.IPv4Unspecified(), HostPort: 1, GuestPort: 2, Proto: TCP}),
		"[::1]:8080:80":          one(PortMapping{HostIP: v6, HostPort: 8080, GuestPort: 80, Proto: TCP}),
		"[::1]::80":              one(PortMapping{HostIP: v6, GuestPort: 80, Proto: TCP}),
		"[::]:8080:80":           one(PortMapping{HostIP: netip.IPv6Unspecified(), HostPort: 8080, GuestPort: 80, Proto: TCP}),
		"[::ffff:127.0.0.1]:1:2": one(PortMapping{HostIP: v4, HostPort: 1, GuestPort: 2, Proto: TCP}),
		"8000-8001:9000-9001": {
			{HostPort: 8000, GuestPort: 9000, Proto: TCP}, {HostPort: 8001, GuestPort: 9001, Proto: TCP},
		},
		"9000-9001/udp":          {{GuestPort: 9000, Proto: UDP}, {GuestPort: 9001, Proto: UDP}},
		"127.0.0.1:8000-8010:80": one(PortMapping{HostIP: v4, HostPort: 8000, HostPortEnd: 8010, GuestPort: 80, Proto: TCP}),
		"65535:65535":            one(PortMapping{HostPort: 65535, GuestPort: 65535, Proto: TCP}),
	} {
		if got, err := ParsePort(value); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q:\n got %+v, %v\nwant %+v", value, got, err, want)
		}
	}
	for value, why := range map[string]string{
		"":                    "no container port",
		":":                   "no container port",
		"8080:":               "no container port",
		"http":                "not a port number",
		"0":                   "not a port number",
		"65536":               "not a port number",
		"-1":                  "not a port number",
		"+80":                 "not a port number",
		"80-":                 "not a port number",
		"0:80":                "not a port number",
		"8080:80/sctp":        "want tcp or udp",
		"80/":                 "want tcp or udp",
		"90-80":               "ends before it begins",
		"8000-8001:9000-9002": "ranges of the same length",
		"8000:9000-9001":      "ranges of the same length",
		"localhost:80:80":     "not an IP address",
		"127.0.0.1:80":        "not a port number",
		"1.2.3:80:80":         "not an IP address",
		"::1:8080:80":         "in brackets",
		"[127.0.0.1]:8080:80": "in brackets",
		"[::1:8080:80":        "not an IP address",
	} {
		_, err := ParsePort(value)
		if err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: error %v, want one with %q", value, err, why)
		}
	}
}

func FuzzParsePort(f *testing.F) {
	for _, s := range []string{"80", "8080:80", "127.0.0.1:8080:80/udp", "[::1]:8080:80", "8000-8010:9000-9010", ":80", "1-65535"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		mappings, err := ParsePort(value)
		if err != nil {
			return
		}
		for _, m := range mappings {
			if m.GuestPort == 0 || m.Proto != TCP && m.Proto != UDP || m.HostPortEnd != 0 && m.HostPortEnd < m.HostPort {
				t.Errorf("%q: %+v", value, m)
			}
		}
	})
}

func TestParseHost(t *testing.T) {
	v4 := netip.MustParseAddr("10.0.0.1")
	for value, want := range map[string]Host{
		"db:10.0.0.1":           {"db", v4},
		"db=10.0.0.1":           {"db", v4},
		"db:::1":                {"db", netip.IPv6Loopback()},
		"db:[::1]":              {"db", netip.IPv6Loopback()},
		"db=[fd00::2]":          {"db", netip.MustParseAddr("fd00::2")},
		"host:host-gateway":     {Name: "host"},
		"a.b-c_d.test:10.0.0.1": {"a.b-c_d.test", v4},
	} {
		if got, err := ParseHost(value); err != nil || got != want {
			t.Errorf("%q: %+v, %v, want %+v", value, got, err, want)
		}
	}
	for _, value := range []string{"", "db", "db:", ":10.0.0.1", "db:10.0.0", "a b:10.0.0.1", "a\nb:10.0.0.1", "db:fe80::1%eth0", "#:10.0.0.1"} {
		if got, err := ParseHost(value); err == nil {
			t.Errorf("%q: %+v, want an error", value, got)
		}
	}
}

func TestGuestAddresses(t *testing.T) {
	s := newStack(t, Config{
		Hosts:  []Host{{Name: "db", Addr: netip.MustParseAddr("10.0.0.1")}, {Name: "host"}},
		DNS:    []netip.Addr{netip.MustParseAddr("9.9.9.9")},
		Search: []string{"example.test"},
	})
	a := s.Guest()
	if a.IPv4.String() != "192.168.127.2/30" || a.Gateway4.String() != "192.168.127.1" ||
		a.IPv6.String() != "fd6d:616e:6973::2/64" || a.Gateway6.String() != "fd6d:616e:6973::1" {
		t.Errorf("addresses %+v", a)
	}
	if len(a.DNS) != 1 || a.DNS[0] != a.Gateway4 || a.Search[0] != "example.test" {
		t.Errorf("dns %v, search %v", a.DNS, a.Search)
	}
	if a.Hosts[1].Addr != a.Gateway4 {
		t.Errorf("hosts %v: host-gateway is the gateway", a.Hosts)
	}
	if b := newStack(t, Config{NoIPv6: true}).Guest(); b.IPv6.IsValid() || b.Gateway6.IsValid() {
		t.Errorf("without IPv6: %+v", b)
	}
}

func TestBadConfig(t *testing.T) {
	for name, c := range map[string]Config{
		"small mtu":         {MTU: 1279},
		"large mtu":         {MTU: 65521},
		"IPv6 as subnet":    {Subnet: netip.MustParsePrefix("fd00::/64")},
		"tiny subnet":       {Subnet: netip.MustParsePrefix("10.0.0.0/31")},
		"IPv4 as subnet6":   {Subnet6: netip.MustParsePrefix("10.0.0.0/24")},
		"multicast mac":     {MAC: []byte{1, 2, 3, 4, 5, 6}},
		"gateway's mac":     {MAC: DefaultGatewayMAC},
		"short mac":         {MAC: []byte{2, 2, 3}},
		"negative limit":    {MaxConnections: -1},
		"dns on loopback":   {DNS: addrs("127.0.0.53")},
		"dns on metadata":   {DNS: addrs("169.254.169.253")},
		"dns on the link":   {DNS: addrs("192.168.127.2")},
		"dns is no address": {DNS: []netip.Addr{{}}},
	} {
		if s, err := New(t.Context(), c); err == nil {
			s.Close()
			t.Errorf("%s: no error", name)
		}
	}
	if s, err := New(t.Context(), Config{DNS: addrs("169.254.169.253"), AllowLinkLocal: true}); err != nil {
		t.Error(err)
	} else {
		s.Close()
	}
}
