package main

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var network = []check{
	{"links", links},
	{"IPv4 and IPv6", func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
			l, err := net.Listen("tcp", address)
			if err != nil {
				return err
			}
			l.Close()
		}
		return nil
	}},
	{"packet and diagnostic sockets", func() error {
		for _, s := range []struct{ domain, kind, protocol int }{
			{unix.AF_PACKET, unix.SOCK_RAW, 0},
			{unix.AF_UNIX, unix.SOCK_SEQPACKET, 0},
			{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_SOCK_DIAG},
			{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER},
		} {
			fd, err := unix.Socket(s.domain, s.kind, s.protocol)
			if err != nil {
				return fmt.Errorf("%+v: %w", s, err)
			}
			unix.Close(fd)
		}
		return nil
	}},
	{"congestion control", func() error {
		return holds("/proc/sys/net/ipv4/tcp_available_congestion_control", "cubic", "bbr")
	}},
	{"legacy iptables", func() error {
		// A table exists from the first look at it on.
		for _, family := range []struct {
			domain, level, getInfo int
		}{{unix.AF_INET, unix.SOL_IP, 64}, {unix.AF_INET6, unix.SOL_IPV6, 64}} {
			fd, err := unix.Socket(family.domain, unix.SOCK_RAW, unix.IPPROTO_RAW)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			for _, table := range []string{"filter", "nat", "mangle", "raw"} {
				if err := tableInfo(fd, family.level, family.getInfo, table); err != nil {
					return fmt.Errorf("table %s: %w", table, err)
				}
			}
		}
		for _, prefix := range []string{"/proc/net/ip", "/proc/net/ip6"} {
			matches := []string{"addrtype", "cgroup", "comment", "connlimit", "conntrack", "hashlimit", "iprange", "limit", "mark", "multiport", "owner", "physdev", "recent", "set", "state", "statistic", "string", "tcp", "u32", "udp"}
			if err := holds(prefix+"_tables_matches", matches...); err != nil {
				return err
			}
			targets := []string{"CT", "DNAT", "LOG", "MARK", "MASQUERADE", "NFLOG", "NFQUEUE", "REDIRECT", "REJECT", "SNAT", "TCPMSS", "TPROXY"}
			if err := holds(prefix+"_tables_targets", targets...); err != nil {
				return err
			}
		}
		return nil
	}},
	{"connection tracking", exists("/proc/net/nf_conntrack", "/proc/sys/net/netfilter/nf_conntrack_max", "/proc/sys/net/bridge/bridge-nf-call-iptables")},
}

// links makes one network device of every kind that containers make.
func links() error {
	if err := os.MkdirAll("/dev/net", 0o755); err != nil {
		return err
	}
	attributes := func(name string) netlink.LinkAttrs {
		a := netlink.NewLinkAttrs()
		a.Name = name
		return a
	}
	dummy := &netlink.Dummy{LinkAttrs: attributes("dummy")}
	if err := netlink.LinkAdd(dummy); err != nil {
		return fmt.Errorf("dummy: %w", err)
	}
	below := func(name string) netlink.LinkAttrs {
		a := attributes(name)
		a.ParentIndex = dummy.Index
		return a
	}
	second := &netlink.Dummy{LinkAttrs: attributes("dummy2")}
	if err := netlink.LinkAdd(second); err != nil {
		return err
	}
	aboveSecond := attributes("ipvlan")
	aboveSecond.ParentIndex = second.Index
	var failed []error
	for _, link := range []netlink.Link{
		&netlink.Bridge{LinkAttrs: attributes("bridge")},
		&netlink.Veth{LinkAttrs: attributes("veth"), PeerName: "peer"},
		&netlink.Vlan{LinkAttrs: below("vlan"), VlanId: 7},
		&netlink.Macvlan{LinkAttrs: below("macvlan"), Mode: netlink.MACVLAN_MODE_BRIDGE},
		&netlink.IPVlan{LinkAttrs: aboveSecond, Mode: netlink.IPVLAN_MODE_L2},
		&netlink.Vxlan{LinkAttrs: attributes("vxlan"), VxlanId: 7, Port: 4789},
		&netlink.Wireguard{LinkAttrs: attributes("wireguard")},
		&netlink.Tuntap{LinkAttrs: attributes("tap"), Mode: netlink.TUNTAP_MODE_TAP},
	} {
		if err := netlink.LinkAdd(link); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", link.Attrs().Name, err))
		}
	}
	return errors.Join(failed...)
}

// tableInfo asks for a table of xtables, which creates it.
func tableInfo(fd, level, option int, table string) error {
	var info [84]byte
	copy(info[:32], table)
	return getsockopt(fd, level, option, info[:])
}
