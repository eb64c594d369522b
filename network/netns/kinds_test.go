package netns

import (
	"fmt"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// kind is a way in which an engine may give a namespace an interface.
type kind struct {
	name string
	// lines are ip(8)'s for the other host, which has up0 with the first and second addresses, and for ours, which is at the
	// wire's other end with lower0.
	other, host string
	// moved are the interfaces of our host that go to the namespace, and box is what is configured there.
	moved, box string
	// at are the addresses of the namespace that the other host reaches, each under its peer's.
	at map[string]string
}

const otherLines = `
	addr add 10.88.0.1/16 dev up0
	addr add fd00:88::1/64 dev up0 nodad
	link set up0 up`

const eth0Lines = `
	addr add 10.88.0.7/16 broadcast 10.88.255.255 dev eth0
	addr add fd00:88::7/64 dev eth0 nodad
	link set eth0 up`

var both = map[string]string{"10.88.0.7": "10.88.0.1", "[fd00:88::7]": "[fd00:88::1]"}

var kinds = []kind{
	{name: "veth", other: otherLines, host: "link set lower0 name eth0", moved: "eth0", box: eth0Lines, at: both},
	{
		name: "only IPv6", other: otherLines, host: "link set lower0 name eth0", moved: "eth0",
		box: "addr add fd00:88::7/64 dev eth0 nodad\nlink set eth0 up\n-6 route add default via fd00:88::1",
		at:  map[string]string{"[fd00:88::7]": "[fd00:88::1]"},
	},
	{
		name: "a gateway outside the network", other: "addr add 10.88.0.1/32 dev up0\nlink set up0 up\nroute add 10.99.0.7/32 dev up0",
		host: "link set lower0 name eth0", moved: "eth0",
		box: "addr add 10.99.0.7/32 dev eth0\nlink set eth0 up\nroute add 10.88.0.1 dev eth0 scope link\nroute add default via 10.88.0.1",
		at:  map[string]string{"10.99.0.7": "10.88.0.1"},
	},
	{
		name: "port of a bridge", other: otherLines, host: "link set lower0 name port0", moved: "port0",
		box: "link add eth0 type bridge\nlink set port0 master eth0\nlink set port0 up" + eth0Lines, at: both,
	},
	{name: "macvlan", other: otherLines, host: "link set lower0 up\nlink add eth0 link lower0 type macvlan mode bridge", moved: "eth0", box: eth0Lines, at: both},
	{name: "macvlan, private", other: otherLines, host: "link set lower0 up\nlink add eth0 link lower0 type macvlan mode private", moved: "eth0", box: eth0Lines, at: both},
	{name: "ipvlan in mode l2", other: otherLines, host: "link set lower0 up\nlink add eth0 link lower0 type ipvlan mode l2", moved: "eth0", box: eth0Lines, at: both},
	{
		name:  "ipvlan in mode l3",
		other: otherLines + "\nroute add 10.99.0.0/16 via 10.88.0.2\n-6 route add fd00:99::/64 via fd00:88::2",
		host: `addr add 10.88.0.2/16 dev lower0
			addr add fd00:88::2/64 dev lower0 nodad
			link set lower0 up
			link add eth0 link lower0 type ipvlan mode l3`,
		moved: "eth0",
		box:   "addr add 10.99.0.7/16 dev eth0\naddr add fd00:99::7/64 dev eth0 nodad\nlink set eth0 up\nroute add default dev eth0\n-6 route add default dev eth0",
		at:    map[string]string{"10.99.0.7": "10.88.0.1", "[fd00:99::7]": "[fd00:88::1]"},
	},
	{
		name: "two ipvlans with one hardware address", other: otherLines + "\naddr add 10.89.0.1/16 dev up0",
		host:  "link set lower0 up\nlink add eth0 link lower0 type ipvlan mode l2\nlink add eth1 link lower0 type ipvlan mode l2",
		moved: "eth0 eth1", box: eth0Lines + "\naddr add 10.89.0.7/16 dev eth1\nlink set eth1 up",
		at: map[string]string{"10.88.0.7": "10.88.0.1", "[fd00:88::7]": "[fd00:88::1]", "10.89.0.7": "10.89.0.1"},
	},
	{
		name: "VLAN of the host's", other: "link set up0 up\nlink add link up0 name up0.5 type vlan id 5\naddr add 10.88.0.1/16 dev up0.5\naddr add fd00:88::1/64 dev up0.5 nodad\nlink set up0.5 up",
		host: "link set lower0 up\nlink add link lower0 name eth0 type vlan id 5", moved: "eth0", box: eth0Lines, at: both,
	},
	{
		name: "interface with VLANs",
		other: otherLines + `
			link add link up0 name up0.5 type vlan id 5
			addr add 10.85.0.1/16 dev up0.5
			link set up0.5 up
			link add link up0 name up0.6 type vlan id 6
			addr add fd00:86::1/64 dev up0.6 nodad
			link set up0.6 up`,
		host: "link set lower0 name eth0", moved: "eth0",
		box: eth0Lines + `
			link add link eth0 name eth0.5 type vlan id 5
			addr add 10.85.0.7/16 dev eth0.5
			link set eth0.5 up
			link add link eth0 name eth0.6 type vlan id 6
			addr add fd00:86::7/64 dev eth0.6 nodad
			link set eth0.6 up`,
		at: map[string]string{"10.88.0.7": "10.88.0.1", "[fd00:88::7]": "[fd00:88::1]", "10.85.0.7": "10.85.0.1", "[fd00:86::7]": "[fd00:86::1]"},
	},
	{
		name: "macvlan beside veth", other: otherLines + "\naddr add 10.89.0.1/16 dev up0",
		host:  "link add port0 type veth peer name eth1\nlink add br0 type bridge\nlink set br0 up\nlink set port0 master br0\nlink set lower0 master br0\nlink set port0 up\nlink set lower0 up\nlink add eth0 link br0 type macvlan mode bridge",
		moved: "eth0 eth1", box: eth0Lines + "\naddr add 10.89.0.7/16 dev eth1\nlink set eth1 up",
		at: map[string]string{"10.88.0.7": "10.88.0.1", "10.89.0.7": "10.89.0.1"},
	},
	{name: "dummy", host: "link add eth0 type dummy", moved: "eth0", box: eth0Lines},
	{
		name: "netkit in mode l2", other: otherLines, moved: "eth0", box: eth0Lines, at: both,
		host: "link add port0 type netkit mode l2 peer name eth0\nlink add br0 type bridge\nlink set br0 up\nlink set port0 master br0\nlink set lower0 master br0\nlink set port0 up\nlink set lower0 up",
	},
}

// stage makes the two hosts and the namespace of a kind, and skips the test where the kernel lacks it.
func (k kind) stage(t *testing.T) (other, box *space) {
	t.Helper()
	other, host, box := newSpace(t), newSpace(t), newSpace(t)
	other.join("up0", host, "lower0")
	host.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	other.make(k.other)
	host.make(k.host)
	for _, name := range strings.Fields(k.moved) {
		host.do(func() {
			l, err := netlink.LinkByName(name)
			if err == nil {
				err = netlink.LinkSetNsFd(l, int(box.file.Fd()))
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	box.make(k.box)
	return other, box
}

// make is ip, but skips the test where the kernel has no interfaces of a kind.
func (s *space) make(lines string) {
	s.t.Helper()
	for line := range strings.Lines(lines) {
		args := strings.Fields(line)
		if len(args) == 0 {
			continue
		}
		if out, err := s.try("ip", args...); err != nil {
			if strings.Contains(out, "Unknown device type") || strings.Contains(out, "Operation not supported") ||
				strings.Contains(line, "netkit") && strings.Contains(out, "Garbage") {
				s.t.Skipf("not to be had here: ip %s: %s", strings.TrimSpace(line), out)
			}
			s.t.Fatalf("ip %s: %v\n%s", strings.TrimSpace(line), err, out)
		}
	}
}

// play gives a namespace that stands at the end of all interfaces what the agent would give a guest.
func (s *space) play(t *testing.T, taken *Taken) (disconnect func()) {
	t.Helper()
	var all []func()
	for n := range taken.Interfaces {
		all = append(all, connect(t, s, &taken.Interfaces[n]))
	}
	for _, i := range taken.Guest.Interfaces {
		if i.Name == "lo" {
			continue
		}
		if i.NoArp {
			s.run("ip", "link", "set", i.Name, "arp", "off")
		}
		for _, a := range i.Addresses {
			args := []string{"addr", "add", a.Prefix, "dev", i.Name}
			if strings.Contains(a.Prefix, ":") {
				args = append(args, "nodad")
			}
			if out, err := s.try("ip", args...); err != nil && !strings.Contains(out, "File exists") && !strings.Contains(out, "already assigned") {
				t.Fatalf("ip %v: %s", args, out)
			}
		}
	}
	for _, r := range taken.Guest.Routes {
		args := []string{"route", "replace", r.Destination, "dev", r.Device}
		if r.Gateway != "" {
			args = append(args, "via", r.Gateway)
		}
		s.run("ip", args...)
	}
	return func() {
		for _, f := range all {
			f()
		}
	}
}

// state is what a Take changes and a Release takes back.
func state(s *space) string {
	return strings.Join(regexp.MustCompile(`\d+: \S+:|promiscuity \d+|allmulti \d+`).FindAllString(s.run("ip", "-d", "link"), -1), "\n") + "\n" + s.run("tc", "qdisc")
}

// Interfaces of every kind lead into a machine, both ways, as they were before when they are given back.
func TestKinds(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			other, box := k.stage(t)
			guest := newSpace(t)
			before := state(box)
			taken := take(t, box)
			disconnect := guest.play(t, taken)
			port := 10
			for at, peer := range k.at {
				exchange(t, other, guest, fmt.Sprint(at, ":", port))
				exchange(t, guest, other, fmt.Sprint(peer, ":", port+1))
				port += 2
			}
			cards := map[string]bool{}
			for _, i := range taken.Interfaces {
				cards[i.Card] = true
			}
			if len(cards) != len(taken.Interfaces) || len(cards) == 0 {
				t.Errorf("the cards cannot be told apart: %+v", taken.Interfaces)
			}
			disconnect()
			if err := taken.Release(); err != nil {
				t.Error(err)
			}
			if after := state(box); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
			if len(k.at) > 0 {
				for at := range k.at {
					other.ip("neigh flush all")
					exchange(t, other, box, fmt.Sprint(at, ":", port))
					port++
				}
			}
		})
	}
}

// A VLAN that comes and goes while the machine runs changes what becomes of tagged frames.
func TestVLANFollowed(t *testing.T) {
	k := kind{
		other: otherLines + "\nlink add link up0 name up0.5 type vlan id 5\naddr add 10.85.0.1/16 dev up0.5\nlink set up0.5 up",
		host:  "link set lower0 name eth0", moved: "eth0", box: eth0Lines,
	}
	other, box := k.stage(t)
	guest := newSpace(t)
	taken := take(t, box)
	guest.play(t, taken)
	follow := func() Change {
		t.Helper()
		c, changed, err := taken.Follow()
		if err != nil || !changed {
			t.Fatal(changed, err)
		}
		return c
	}
	exchange(t, other, guest, "10.88.0.7:9")
	box.make("link add link eth0 name eth0.5 type vlan id 5\naddr add 10.85.0.7/16 dev eth0.5\nlink set eth0.5 up")
	if c := follow(); len(c.Added) != 1 || c.Added[0].Card == c.Added[0].MAC || c.Added[0].MAC != taken.Interfaces[0].MAC {
		t.Errorf("%+v", c)
	}
	disconnect := connect(t, guest, &taken.Interfaces[1])
	guest.ip("addr add 10.85.0.7/16 dev eth0.5")
	exchange(t, other, guest, "10.85.0.7:9")
	exchange(t, other, guest, "10.88.0.7:10")
	disconnect()
	box.ip("link del eth0.5")
	follow()
	exchange(t, other, guest, "10.88.0.7:11")
	// The machine may have VLANs of its own, now that the namespace has none.
	guest.ip("link add link eth0 name own type vlan id 5\naddr add 10.85.0.8/16 dev own\nlink set own up")
	exchange(t, other, guest, "10.85.0.8:9")
}

// A guest receives what is sent to a group that it has joined, though the namespace has not.
func TestMulticast(t *testing.T) {
	for _, k := range kinds {
		if k.name != "veth" && k.name != "macvlan" && k.name != "ipvlan in mode l2" && k.name != "VLAN of the host's" {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			other, box := k.stage(t)
			guest := newSpace(t)
			guest.play(t, take(t, box))
			group := &net.UDPAddr{IP: net.IPv4(239, 1, 2, 3), Port: 99}
			var in, out *net.UDPConn
			var err error
			guest.do(func() {
				var i *net.Interface
				if i, err = net.InterfaceByName("eth0"); err == nil {
					in, err = net.ListenMulticastUDP("udp4", i, group)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			other.do(func() { out, err = net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 88, 0, 1)}, group) })
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			heard := make(chan error, 1)
			go func() {
				in.SetReadDeadline(time.Now().Add(patience))
				_, _, err := in.ReadFrom(make([]byte, 16))
				heard <- err
			}()
			for {
				out.Write([]byte("all"))
				select {
				case err := <-heard:
					if err != nil {
						t.Error(err)
					}
					return
				case <-time.After(100 * time.Millisecond):
				}
			}
		})
	}
}

// What could not work is refused with the reason, and left as it was.
func TestUnfit(t *testing.T) {
	for _, k := range []struct {
		kind
		want string
	}{
		{kind{name: "ipvlan in mode l3s", host: "link set lower0 up\nlink add eth0 link lower0 type ipvlan mode l3s", moved: "eth0", box: eth0Lines}, "mode l3s"},
		{kind{name: "VRF", host: "link set lower0 name eth0", moved: "eth0", box: "link add red type vrf table 10\nlink set red up" + eth0Lines}, "no VRF"},
		{kind{name: "macvlan on an interface of the namespace", host: "link set lower0 name eth0", moved: "eth0", box: eth0Lines + "\nlink add top link eth0 type macvlan\nlink set top up"}, "it stands on interface eth0"},
		{kind{name: "VXLAN by an interface of the namespace", host: "link set lower0 name eth0", moved: "eth0", box: eth0Lines + "\nlink add top type vxlan id 5 remote 10.88.0.1 dstport 4789\nlink set top up"}, "other interfaces"},
		{kind{name: "netkit in mode l3", host: "link add port0 type netkit mode l3 peer name eth0", moved: "eth0", box: "link set eth0 up"}, "no hardware address"},
		{kind{name: "tun", host: "tuntap add eth0 mode tun", moved: "eth0", box: "link set eth0 up"}, "Ethernet only"},
	} {
		t.Run(k.name, func(t *testing.T) {
			_, box := k.stage(t)
			before := state(box)
			taken, err := Take(box.file)
			if err == nil {
				taken.Release()
			}
			if err == nil || !strings.Contains(err.Error(), k.want) {
				t.Errorf("%v, want %q", err, k.want)
			}
			if after := state(box); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
		})
	}
}

// A VXLAN whose packets come by another namespace's interfaces is like any other.
func TestVXLANFromElsewhere(t *testing.T) {
	k := kind{
		name: "VXLAN",
		other: `addr add 192.0.2.1/24 dev up0
			link set up0 up
			link add vx type vxlan id 5 remote 192.0.2.2 dstport 4789
			addr add 10.88.0.1/16 dev vx
			link set vx up`,
		host:  "addr add 192.0.2.2/24 dev lower0\nlink set lower0 up\nlink add eth0 type vxlan id 5 remote 192.0.2.1 dstport 4789",
		moved: "eth0", box: eth0Lines,
	}
	other, box := k.stage(t)
	guest := newSpace(t)
	guest.play(t, take(t, box))
	exchange(t, other, guest, "10.88.0.7:9")
	exchange(t, guest, other, "10.88.0.1:9")
}
