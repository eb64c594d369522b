package netns

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// candidates are the interfaces that a machine is to have, and loopback, in the order of the namespace.
func candidates(h *netlink.Handle) ([]netlink.Link, error) {
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list the interfaces: %w", err)
	}
	var all []netlink.Link
	for _, l := range links {
		a := l.Attrs()
		up := a.RawFlags&unix.IFF_UP != 0
		switch {
		case a.RawFlags&unix.IFF_LOOPBACK != 0:
		case isTap(l):
			continue // of a machine that is still ending
		case a.MasterIndex != 0 && isMember(links, a.MasterIndex):
			continue // its frames come by its bridge
		case up && unfit(links, l) != "":
			return nil, fmt.Errorf("interface %s is of kind %s: %s", a.Name, l.Type(), unfit(links, l))
		case len(a.HardwareAddr) != 6 || a.EncapType != "ether":
			if up {
				return nil, fmt.Errorf("interface %s is of kind %s (%s): a machine's card carries Ethernet only", a.Name, l.Type(), a.EncapType)
			}
			continue
		case !up:
			addresses, err := h.AddrList(l, netlink.FAMILY_ALL)
			if err != nil {
				return nil, fmt.Errorf("list the addresses of %s: %w", a.Name, err)
			}
			if len(addresses) == 0 {
				continue
			}
		}
		all = append(all, l)
	}
	return all, nil
}

// unfit says why an interface cannot be handed over, which its frames or addresses would not tell: "" for one that can.
func unfit(links []netlink.Link, l netlink.Link) string {
	a := l.Attrs()
	switch v := l.(type) {
	case *netlink.IPVlan:
		if v.Mode == netlink.IPVLAN_MODE_L3S {
			return "in mode l3s its packets come to the namespace's own stack only (modes l2 and l3 work)"
		}
	case *netlink.Vrf:
		return "a machine has no VRF"
	}
	if len(a.HardwareAddr) == 6 && !slices.ContainsFunc(a.HardwareAddr, func(b byte) bool { return b != 0 }) {
		return "it has no hardware address (a netkit has one in mode l2)"
	}
	if a.NetNsID >= 0 {
		return "" // what it stands on is in another namespace
	}
	switch l.Type() {
	case "macvlan", "macvtap", "ipvlan", "ipvtap":
		for _, lower := range links {
			if lower.Attrs().Index == a.ParentIndex {
				return fmt.Sprintf("it stands on interface %s of the same namespace, whose frames are all the machine's", lower.Attrs().Name)
			}
		}
	case "vxlan", "geneve", "gretap", "ip6gretap", "erspan", "ip6erspan", "bareudp":
		return "its packets come by other interfaces of the same namespace, whose frames are all the machine's"
	}
	return ""
}

// tags are the protocols (ETH_P_*) by which frames that arrive at an interface belong to VLANs that are interfaces of their own.
func tags(links []netlink.Link, index int) map[uint16]bool {
	found := map[uint16]bool{}
	for _, l := range links {
		if v, ok := l.(*netlink.Vlan); ok && v.ParentIndex == index && v.NetNsID < 0 {
			protocol := uint16(v.VlanProtocol)
			if protocol == 0 {
				protocol = unix.ETH_P_8021Q
			}
			found[protocol] = true
		}
	}
	return found
}

// isTap reports whether a link is one of makeTap.
func isTap(l netlink.Link) bool {
	number, ok := strings.CutPrefix(l.Attrs().Name, strings.TrimSuffix(tapName, "%d"))
	_, err := strconv.Atoi(number)
	return ok && err == nil && l.Type() == "tuntap"
}

// isMember reports whether the link with this index takes frames of its members.
func isMember(links []netlink.Link, master int) bool {
	for _, l := range links {
		if l.Attrs().Index == master {
			return l.Type() != "vrf"
		}
	}
	return false
}
