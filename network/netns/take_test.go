package netns

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"manis/api/agent"
)

// An empty namespace gives an empty network.
func TestEmpty(t *testing.T) {
	taken := take(t, newSpace(t))
	if len(taken.Interfaces) != 0 || len(taken.Guest.Interfaces) != 0 || len(taken.Guest.Routes) != 0 || len(taken.Guest.Rules) != 0 {
		t.Errorf("%+v, %v", taken.Interfaces, taken.Guest)
	}
}

// Everything that a plugin may have set is told.
func TestDescription(t *testing.T) {
	outside, box := newSpace(t), newSpace(t)
	outside.join("up0", box, "eth0")
	outside.join("up1", box, "net1")
	outside.join("up2", box, "later")
	outside.ip("link set up0 up\nlink set up1 up")
	box.ip(boxLines)
	box.ip(`
		link set net1 address 02:aa:bb:cc:dd:02 mtu 9000
		addr add 10.1.0.2/32 peer 10.1.0.1/32 dev net1
		addr add 10.2.0.2/24 dev net1 metric 77
		addr add 10.3.0.2/24 dev net1 noprefixroute
		addr add 10.4.0.2/24 dev net1
		addr add 192.0.2.1/32 dev lo
		link set net1 up
		route del 10.4.0.0/24 dev net1
		route add 172.16.0.0/12 via 10.88.0.2 src 10.88.0.7 metric 50 mtu 1300
		route add 198.51.100.0/24 dev net1 scope link
		route add blackhole 203.0.113.0/24
		route add default via 10.1.0.1 dev net1 table 100 onlink
		route add 100.64.0.0/10 nexthop via 10.88.0.3 weight 2 nexthop via 10.1.0.1 dev net1
		-6 route add 2001:db8::/32 via fd00:88::2 metric 9
		-6 route add unreachable 2001:db8:1::/48
		rule add from 10.1.0.2/32 table 100 priority 1000
		-6 rule add fwmark 0x10/0xff table 100 priority 1001
		neigh add 10.88.0.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent
		neigh add proxy 10.88.0.10 dev eth0`)
	box.run("sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_ra; echo 2 >/proc/sys/net/ipv4/conf/net1/rp_filter; echo 0 >/proc/sys/net/ipv4/conf/eth0/rp_filter")
	taken := take(t, box)
	got := taken.Guest
	for _, i := range got.Interfaces {
		var addresses []*agent.Address
		for _, a := range i.Addresses {
			if !strings.HasPrefix(a.Prefix, "fe80:") {
				addresses = append(addresses, a)
			}
		}
		i.Addresses = addresses
	}
	var want agent.Network
	if err := prototext.Unmarshal([]byte(description), &want); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got, &want) {
		t.Errorf("got:\n%s\nwant:\n%s", prototext.Format(got), prototext.Format(&want))
	}
	if len(taken.Interfaces) != 2 || taken.Interfaces[0].Name != "eth0" || taken.Interfaces[1].Name != "net1" {
		t.Errorf("%+v", taken.Interfaces)
	}
}

const description = `
	interfaces { name: "lo" addresses { prefix: "192.0.2.1/32" } }
	interfaces {
		name: "eth0" mac: "02:aa:bb:cc:dd:01" mtu: 1500
		addresses { prefix: "10.88.0.7/16" broadcast: "10.88.255.255" }
		addresses { prefix: "fd00:88::7/64" flags: 2 }
		neighbors { address: "10.88.0.9" mac: "02:00:00:00:00:09" }
		neighbors { address: "10.88.0.10" proxy: true }
		sysctls { key: "net/ipv6/conf/eth0/accept_ra" value: "0" }
	}
	interfaces {
		name: "net1" mac: "02:aa:bb:cc:dd:02" mtu: 9000 plugged: true
		addresses { prefix: "10.1.0.2/32" peer: "10.1.0.1/32" }
		addresses { prefix: "10.2.0.2/24" metric: 77 }
		addresses { prefix: "10.3.0.2/24" flags: 512 }
		addresses { prefix: "10.4.0.2/24" flags: 512 }
		sysctls { key: "net/ipv4/conf/net1/rp_filter" value: "2" }
	}
	routes { destination: "198.51.100.0/24" type: 1 device: "net1" table: 254 scope: 253 protocol: 3 }
	routes { destination: "203.0.113.0/24" type: 6 table: 254 protocol: 3 }
	routes { destination: "2001:db8:1::/48" type: 7 table: 254 metric: 1024 protocol: 3 }
	routes { destination: "0.0.0.0/0" gateway: "10.1.0.1" type: 1 device: "net1" table: 100 protocol: 3 flags: 4 }
	routes { destination: "0.0.0.0/0" gateway: "10.88.0.1" type: 1 device: "eth0" table: 254 protocol: 3 }
	routes {
		destination: "100.64.0.0/10" type: 1 table: 254 protocol: 3
		next_hops { device: "eth0" gateway: "10.88.0.3" weight: 2 }
		next_hops { device: "net1" gateway: "10.1.0.1" weight: 1 }
	}
	routes { destination: "172.16.0.0/12" gateway: "10.88.0.2" type: 1 device: "eth0" source: "10.88.0.7" table: 254 metric: 50 protocol: 3 mtu: 1300 }
	routes { destination: "2001:db8::/32" gateway: "fd00:88::2" type: 1 device: "eth0" table: 254 metric: 9 protocol: 3 }
	routes { destination: "::/0" gateway: "fd00:88::1" type: 1 device: "eth0" table: 254 metric: 1024 protocol: 3 }
	rules { family: 2 priority: 1000 action: 1 table: 100 source: "10.1.0.2/32" suppress_prefix_length: -1 }
	rules { family: 10 priority: 1001 action: 1 table: 100 mark: 16 mask: 255 suppress_prefix_length: -1 }`

// A Take after one whose process was killed has everything in order again.
func TestAfterDeath(t *testing.T) {
	outside, box, guest := newSpace(t), newSpace(t), newSpace(t)
	outside.join("up0", box, "eth0")
	outside.ip(outsideLines)
	box.ip(boxLines)
	before := box.run("tc", "qdisc")
	dead := take(t, box)
	// The machine may still be ending when the namespace is used again.
	if again := take(t, box); len(again.Interfaces) != 1 {
		t.Errorf("taken as well: %+v", again.Interfaces)
	} else if err := again.Release(); err != nil {
		t.Error(err)
	}
	// As the kernel does it for a process that ends.
	dead.Interfaces[0].Tap.Close()
	if out := box.run("ip", "link"); strings.Contains(out, "manis") {
		t.Errorf("the tap lives on:\n%s", out)
	}
	taken := take(t, box)
	connect(t, guest, &taken.Interfaces[0])
	guest.ip("addr add 10.88.0.7/16 dev eth0")
	exchange(t, outside, guest, "10.88.0.7:9")
	if err := taken.Release(); err != nil {
		t.Error(err)
	}
	if after := box.run("tc", "qdisc"); after != before {
		t.Errorf("qdiscs before:\n%s\nafter:\n%s", before, after)
	}
}

// The ingress qdisc that an engine has made stays, with its filters.
func TestForeignQdisc(t *testing.T) {
	outside, box := newSpace(t), newSpace(t)
	outside.join("up0", box, "eth0")
	box.ip(boxLines)
	box.run("tc", "qdisc", "add", "dev", "eth0", "clsact")
	box.run("tc", "filter", "add", "dev", "eth0", "ingress", "prio", "9", "protocol", "ip", "u32", "match", "ip", "src", "192.0.2.1", "action", "mirred", "egress", "mirror", "dev", "lo")
	before := box.run("tc", "filter", "show", "dev", "eth0", "ingress") + box.run("tc", "qdisc")
	taken := take(t, box)
	if during := box.run("tc", "filter", "show", "dev", "eth0", "ingress"); !strings.Contains(during, "pref 3 ") || !strings.Contains(during, "pref 9 ") {
		t.Error(during)
	}
	if err := taken.Release(); err != nil {
		t.Error(err)
	}
	if after := box.run("tc", "filter", "show", "dev", "eth0", "ingress") + box.run("tc", "qdisc"); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

const rootlessEnv = "MANIS_TEST_NETNS_ROOTLESS"

// The root of a user namespace takes network namespaces that were made in it.
func TestRootless(t *testing.T) {
	if os.Getenv(rootlessEnv) != "" {
		TestTraffic(t)
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(exe, "-test.run=^TestRootless$", "-test.v", "-test.count=1")
	child.Env = append(os.Environ(), rootlessEnv+"=1")
	child.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	var out bytes.Buffer
	child.Stdout, child.Stderr = &out, &out
	if err := child.Start(); err != nil {
		t.Skip("no user namespace to be had here: ", err)
	}
	switch err := child.Wait(); {
	case err != nil:
		t.Fatalf("in a user namespace: %v\n%s", err, out.Bytes())
	case bytes.Contains(out.Bytes(), []byte("--- SKIP")):
		t.Skipf("in a user namespace:\n%s", out.Bytes())
	}
}
