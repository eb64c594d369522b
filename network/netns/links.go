package netns

import (
	"fmt"
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
