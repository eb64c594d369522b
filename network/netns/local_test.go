package netns

import (
	"net"
	"testing"

	"manis/api/agent"
)

func TestSpareAddress(t *testing.T) {
	for own, want := range map[string]string{
		"10.0.2.100/24":   "10.0.2.254",
		"10.0.2.254/24":   "10.0.2.253",
		"10.88.3.4/16":    "10.88.255.254",
		"192.168.0.2/29":  "192.168.0.6",
		"192.168.0.2/30":  "", // too small to find one that is nobody's
		"192.168.0.2/32":  "",
		"2001:db8::1/64":  "",
		"172.16.0.253/24": "172.16.0.252", // .254 is the gateway
	} {
		ip, network, err := net.ParseCIDR(own)
		if err != nil {
			t.Fatal(err)
		}
		network.IP = ip
		got, ok := spareAddress(network, &agent.Network{Routes: []*agent.Route{{Destination: "0.0.0.0/0", Gateway: "172.16.0.254"}}})
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("%s: %v, want %q", own, got, want)
		}
	}
}
