package egress

import (
	"net/netip"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"any":                          "any",
		"any,tcp/443":                  "any,tcp/443",
		"any;tcp/443;udp/53":           "any,tcp/443,udp/53",
		"10.0.0.0/8,tcp/443,udp/53":    "10.0.0.0/8,tcp/443,udp/53",
		"192.0.2.1":                    "192.0.2.1",
		"192.0.2.1/32,icmp":            "192.0.2.1,icmp",
		"::ffff:192.0.2.1,tcp":         "192.0.2.1,tcp",
		"2001:db8::/32,tcp/8000-8100":  "2001:db8::/32,tcp/8000-8100",
		"2001:db8::1,tcp/80-80":        "2001:db8::1,tcp/80",
		"Example.COM.,tcp/443":         "example.com,tcp/443",
		"*.example.com,lookup,tcp/443": "*.example.com,lookup,tcp/443",
		"*,lookup":                     "*,lookup",
		"_sip._tcp.example.com,lookup": "_sip._tcp.example.com,lookup",
	} {
		r, err := Parse(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if r.String() != want {
			t.Errorf("%s is %s, want %s", text, r, want)
		}
	}
	for text, says := range map[string]string{
		"":                       "neither any, an address",
		"10.0.0.1/8":             "an address within the network 10.0.0.0/8",
		"10.0.0.0/33":            "not a network",
		"::ffff:10.0.0.0/104":    "write IPv4",
		"fe80::1%eth0":           "zone",
		"10.0.0":                 "neither a name nor a whole address",
		"256.1.1.1":              "neither a name nor a whole address",
		"exa mple.com":           "neither any",
		"www.*.com":              "a star stands for whole names",
		"*example.com":           "a star stands for whole names",
		"example..com":           "not a name",
		"any,sctp/1":             "not one of tcp",
		"any,tcp/0":              "not a port",
		"any,tcp/90-80":          "not a port",
		"any,tcp/65536":          "not a port",
		"any,tcp/+1":             "not a port",
		"any,icmp/8":             "no ports",
		"any,lookup":             "lookup is for names",
		"any,":                   "not one of tcp",
		strings.Repeat("a", 600): "longer than",
	} {
		if r, err := Parse(text); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, %v, want an error that says %q", text, r, err, says)
		}
	}
}

func TestParseAll(t *testing.T) {
	if l, err := ParseAll("none"); err != nil || l == nil || len(l) != 0 || l.String() != "none" {
		t.Errorf("none is %v, %v", l, err)
	}
	if l, err := ParseAll(" any,udp/53\n\t192.0.2.0/24 "); err != nil || l.String() != "any,udp/53 192.0.2.0/24" {
		t.Errorf("two rules are %v, %v", l, err)
	}
	for _, text := range []string{"", "  ", "none any", strings.Repeat("any ", 257)} {
		if l, err := ParseAll(text); err == nil {
			t.Errorf("%.20q is %v, want an error", text, l)
		}
	}
}

// What is read once and written is read as the same.
func FuzzParseAll(f *testing.F) {
	for _, s := range []string{"none", "any", "10.0.0.0/8,tcp/443 *.example.com,lookup,tcp/1-2", "::/0,icmp", "2001:db8::1,udp/53"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		l, err := ParseAll(text)
		if err != nil {
			return
		}
		again, err := ParseAll(l.String())
		if err != nil || again.String() != l.String() {
			t.Errorf("%q is written as %q, which is read as %v, %v", text, l, again, err)
		}
		NewGuard([]Rules{l}).Allows(TCP, netip.MustParseAddrPort("192.0.2.1:80"))
	})
}
