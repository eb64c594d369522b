package netns

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// receiveAll has an interface receive the frames of every multicast group, if it is of a kind that drops those of groups that
// the namespace's own stack has not joined: who joins is in the guest. It reports whether that was to be done.
func receiveAll(h *netlink.Handle, l netlink.Link) (bool, error) {
	switch l.Type() {
	case "macvlan", "macvtap", "ipvlan", "ipvtap", "vlan", "device":
	default:
		return false, nil
	}
	if l.Attrs().RawFlags&unix.IFF_ALLMULTI != 0 {
		return false, nil
	}
	if err := h.LinkSetAllmulticastOn(l); err != nil {
		return false, fmt.Errorf("receive all multicasts: %w", err)
	}
	return true, nil
}

// receiveLess takes back what receiveAll has done.
func (i *Interface) receiveLess(h *netlink.Handle) error {
	if !i.allmulti {
		return nil
	}
	l, err := h.LinkByIndex(i.index)
	if err == nil {
		err = h.LinkSetAllmulticastOff(l)
	}
	return ignoreGone(err)
}
