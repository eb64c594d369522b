package agent_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	api "manis/api/agent"
)

// severalInterfaces are those of a machine with three cards: one is found by its address, the others by order, and
// they change names.
func severalInterfaces() *api.Network {
	return &api.Network{
		Interfaces: []*api.Interface{
			{Name: "lo", Addresses: []*api.Address{{Prefix: "192.0.2.1/32"}}},
			{Name: "eth1", Mac: "02:00:00:00:00:aa", Mtu: 1400, Addresses: []*api.Address{
				{Prefix: "10.1.0.7/16", Broadcast: "10.1.255.255"},
				{Prefix: "10.1.0.8/16", Broadcast: "10.1.255.255", Label: "eth1:8"},
				{Prefix: "fd01::7/64"}, {Prefix: "fd01::8/64"},
			}, Neighbors: []*api.Neighbor{{Address: "10.1.0.9", Mac: "02:00:00:00:00:09"}, {Address: "10.1.0.10", Proxy: true}}},
			{Name: "eth0", Mac: "02:00:00:00:00:01", Addresses: []*api.Address{
				{Prefix: "10.2.0.2/32", Peer: "10.2.0.1/32"}, {Prefix: "10.3.0.2/24", Flags: 0x200}, {Prefix: "10.4.0.2/24", Metric: 77},
			}, Sysctls: map[string]string{"net/ipv4/conf/eth0/rp_filter": "2"}},
			{Name: "a-name.of15char", Mac: "02:00:00:00:00:bb", Sysctls: map[string]string{"net/ipv6/conf/a-name.of15char/disable_ipv6": "1"}},
		},
		Routes: []*api.Route{
			{Destination: "198.51.100.0/24", Type: 1, Device: "eth0", Table: 254, Scope: 253, Protocol: 4},
			{Destination: "203.0.113.0/24", Type: 6, Table: 254, Protocol: 4},
			{Destination: "0.0.0.0/0", Gateway: "10.2.0.1", Type: 1, Device: "eth0", Table: 1000, Protocol: 4, Flags: 4},
			{Destination: "0.0.0.0/0", Gateway: "10.1.0.1", Type: 1, Device: "eth1", Table: 254, Protocol: 4, Metric: 5, Mtu: 1300, Source: "10.1.0.8"},
			{Destination: "100.64.0.0/10", Type: 1, Table: 254, Protocol: 4, NextHops: []*api.NextHop{
				{Device: "eth1", Gateway: "10.1.0.3", Weight: 2}, {Device: "eth0", Gateway: "10.2.0.1", Weight: 1},
			}},
			{Destination: "192.0.0.0/24", Gateway: "fd01::1", Type: 1, Device: "eth1", Table: 254, Protocol: 4},
			{Destination: "::/0", Gateway: "fd01::1", Type: 1, Device: "eth1", Table: 254, Protocol: 4, Metric: 1024},
			{Destination: "2001:db8::/32", Type: 7, Table: 254, Protocol: 4, Metric: 1024},
		},
		Rules: []*api.Rule{
			{Family: 2, Priority: 1000, Action: 1, Table: 1000, Source: "10.2.0.2/32", SuppressPrefixLength: -1},
			{Family: 10, Priority: 1001, Action: 1, Table: 1000, Mark: 16, Mask: 255, SuppressPrefixLength: -1},
			{Family: 2, Priority: 1002, Action: 1, Table: 254, IpProtocol: 6, DestinationPortFirst: 80, DestinationPortLast: 90, Invert: true, SuppressPrefixLength: 0},
		},
	}
}

const showNetwork = "ip addr; ip route show table all; ip -6 route show table all; ip rule; ip -6 rule; cat /proc/net/arp; cat /proc/sys/net/ipv4/conf/*/rp_filter"

func lacking(out string, wants ...string) (missing []string) {
	return slices.DeleteFunc(wants, func(w string) bool { return strings.Contains(out, w) })
}

func TestInterfaces(t *testing.T) {
	tree, root := filepath.Join(t.TempDir(), "tree"), filepath.Join(t.TempDir(), "root.erofs")
	busyboxTree(t, tree)
	mkerofs(t, tree, root)
	m := boot(t, hardware{disks: []disk{{serial: "root", file: root, readonly: true}}, cards: []string{"52:54:00:00:00:01", "02:00:00:00:00:01", "52:54:00:00:00:03"}})
	t.Cleanup(m.stop)
	if _, err := m.agent.Connect(deadline(t), &api.Network{}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("before the setup: %v", err)
	}
	r := setupRequest()
	r.Network = severalInterfaces()
	m.setUp(t, r)
	look := func() string {
		t.Helper()
		r := m.run(t, sh(showNetwork), nil)
		// An interface that has just come up is not yet called running: the kernel says so once a second (linkwatch).
		return strings.ReplaceAll(r.stdout+r.stderr, "<NO-CARRIER,", "<")
	}
	all := []string{
		"eth1: <BROADCAST,MULTICAST,UP", "mtu 1400", "link/ether 02:00:00:00:00:aa", "inet 10.1.0.7/16 brd 10.1.255.255 scope global eth1\n",
		"inet 10.1.0.8/16 brd 10.1.255.255 scope global secondary eth1:8", "inet6 fd01::7/64", "inet6 fd01::8/64",
		"eth0: <BROADCAST,MULTICAST,UP", "link/ether 02:00:00:00:00:01", "inet 10.2.0.2 peer 10.2.0.1/32", "10.4.0.0/24 dev eth0 scope link  src 10.4.0.2  metric 77",
		"a-name.of15char: <BROADCAST,MULTICAST,UP", "link/ether 02:00:00:00:00:bb", "inet 192.0.2.1/32 scope global lo",
		"198.51.100.0/24 dev eth0 scope link", "203.0.113.0/24", "default via 10.2.0.1 dev eth0 table 1000",
		"default via 10.1.0.1 dev eth1  src 10.1.0.8  metric 5", "100.64.0.0/10", "192.0.0.0/24", "default via fd01::1 dev eth1", "2001:db8::/32",
		"1000:\tfrom 10.2.0.2 lookup 1000", "1001:\tfrom all fwmark 0x10/0xff lookup 1000", "1002:\tfrom all", "02:00:00:00:00:09",
	}
	out := look()
	if missing := lacking(out, all...); len(missing) > 0 {
		t.Errorf("lacks %q:\n%s", missing, out)
	}
	if strings.Contains(out, "10.3.0.0/24 dev eth0") {
		t.Errorf("a route that was not asked for:\n%s", out)
	}
	if strings.Index(out, "fd01::7") > strings.Index(out, "fd01::8") {
		t.Errorf("the addresses have changed places:\n%s", out)
	}
	connect := func(n *api.Network) {
		t.Helper()
		if _, err := m.agent.Connect(deadline(t), n); err != nil {
			t.Fatalf("%v\nconsole:\n%s", err, m.log())
		}
	}
	gone := []string{"eth1", "10.1.0", "10.2.0", "198.51.100", "203.0.113", "1000:", "1002:", "192.0.2.1", "2001:db8"}
	// Only one, which is now called otherwise, as manis run has it; then none; then all again.
	connect(theNetwork())
	if out = look(); len(lacking(out, "eth0: <BROADCAST,MULTICAST,UP", "inet 10.9.8.7/24", "default via 10.9.8.1")) > 0 || len(lacking(out, gone...)) < len(gone) {
		t.Errorf("one device:\n%s", out)
	}
	connect(&api.Network{})
	if out = look(); strings.Contains(out, "eth0:") || strings.Contains(out, "10.9.8") {
		t.Errorf("no network:\n%s", out)
	}
	connect(severalInterfaces())
	out = look()
	if missing := lacking(out, all...); len(missing) > 0 {
		t.Errorf("again: lacks %q:\n%s", missing, out)
	}
	fewer := severalInterfaces()
	fewer.Interfaces[1].Name, fewer.Interfaces[2].Name = "eth0", "eth1"
	fewer.Routes, fewer.Rules = nil, nil
	connect(fewer)
	if out = look(); len(lacking(out, "scope global eth0\n", "secondary eth1:8")) > 0 || strings.Contains(out, "1000:") || strings.Contains(out, "203.0.113") {
		t.Errorf("changed places:\n%s", out)
	}
	many := severalInterfaces()
	many.Interfaces = append(many.Interfaces, &api.Interface{Name: "eth9"})
	if _, err := m.agent.Connect(deadline(t), many); err == nil || !strings.Contains(err.Error(), "4 network interfaces for a machine that has 3 cards") {
		t.Errorf("too many: %v", err)
	}
	for _, name := range []string{"", "sixteen-letters.", "a/b", ".."} {
		_, err := m.agent.Connect(deadline(t), &api.Network{Interfaces: []*api.Interface{{Name: name}}})
		if err == nil || !strings.Contains(err.Error(), "is not the name") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// Interfaces with one hardware address have the cards that they are known by, also when the network is set again, and one
// that resolves no addresses is so in the machine.
func TestOneHardwareAddress(t *testing.T) {
	tree, root := filepath.Join(t.TempDir(), "tree"), filepath.Join(t.TempDir(), "root.erofs")
	busyboxTree(t, tree)
	mkerofs(t, tree, root)
	m := boot(t, hardware{disks: []disk{{serial: "root", file: root, readonly: true}}, cards: []string{"52:54:00:00:00:01", "02:00:00:00:01:00", "02:00:00:00:01:01"}})
	t.Cleanup(m.stop)
	// In an order that is not that of the cards.
	network := &api.Network{Interfaces: []*api.Interface{
		{Name: "eth7", Mac: "02:00:00:00:00:aa", Card: "02:00:00:00:01:01", Plugged: true, NoArp: true},
		{Name: "eth0", Mac: "02:00:00:00:00:aa"},
		{Name: "eth1", Mac: "02:00:00:00:00:aa", Card: "02:00:00:00:01:00", Plugged: true},
	}}
	r := setupRequest()
	r.Network = network
	m.setUp(t, r)
	where := func() string {
		t.Helper()
		r := m.run(t, sh("for i in eth0 eth1 eth7; do echo $i $(readlink /sys/class/net/$i/device) $(cat /sys/class/net/$i/address); done; ip link show eth7 | grep -c NOARP"), nil)
		return r.stdout + r.stderr
	}
	before := where()
	if strings.Count(before, "02:00:00:00:00:aa") != 3 || !strings.HasSuffix(before, "\n1\n") {
		t.Fatalf("three cards with one address, of which one resolves none:\n%s", before)
	}
	// The machine's cards are in the order of their devices.
	lines := strings.Fields(before)
	if first, second, third := lines[1], lines[4], lines[7]; !(first < second && second < third) {
		t.Errorf("the cards are not the ones they are known by:\n%s", before)
	}
	network = proto.CloneOf(network)
	network.Interfaces[1].Mtu = 1400
	network.Interfaces[0].NoArp = false
	if _, err := m.agent.Connect(deadline(t), network); err != nil {
		t.Fatal(err)
	}
	if after := where(); after != strings.TrimSuffix(before, "1\n")+"0\n" {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}
