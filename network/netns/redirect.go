package netns

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The priorities of our filters, the first of all: an engine's own filters would see frames that are none of this
// host's.
const (
	spared      = 1 // of one that leaves frames to the namespace
	sparedOuter = 2 // the same, for frames with the outer one of two VLAN tags
	stolen      = 3 // of the one that steals all others
)

// goesOn is the class that frames are given which are left to the namespace: without an action they go on.
var goesOn = netlink.MakeHandle(1, 1)

// The handle of an ingress qdisc, and the parent of its filters, which clsact has as well.
const (
	ingress  = 0xffff0000
	arriving = netlink.HANDLE_MIN_INGRESS
)

// redirect has every frame that arrives at one interface sent by another, before the namespace's own stack
// sees it. The filter is u32, since kernels have it that have no matchall. It reports whether the
// interface's ingress qdisc has been made for it.
func redirect(h *netlink.Handle, from, to int) (owned bool, err error) {
	owned = true
	q := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: from, Handle: ingress, Parent: netlink.HANDLE_INGRESS}}
	err = h.QdiscAdd(q)
	if errors.Is(err, unix.EEXIST) {
		// That of a process which has died, or somebody else's.
		if owned, err = vacate(h, from); err != nil {
			return owned, err
		}
	}
	if err != nil {
		return owned, fmt.Errorf("add an ingress qdisc: %w", err)
	}
	err = h.FilterAdd(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: from, Parent: arriving, Priority: stolen, Protocol: unix.ETH_P_ALL},
		Actions: []netlink.Action{&netlink.MirredAction{
			ActionAttrs:  netlink.ActionAttrs{Action: netlink.TC_ACT_STOLEN},
			MirredAction: netlink.TCA_EGRESS_REDIR, Ifindex: to,
		}},
	})
	if err != nil {
		return owned, fmt.Errorf("redirect the frames (does the kernel have cls_u32 and act_mirred?): %w", err)
	}
	return owned, nil
}

// restore removes the filter, and the qdisc if it is ours. An interface that is gone needs nothing.
func restore(h *netlink.Handle, index int, owned bool) error {
	if !owned {
		_, err := vacate(h, index)
		return ignoreGone(err)
	}
	q := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: ingress, Parent: netlink.HANDLE_INGRESS}}
	if err := ignoreGone(h.QdiscDel(q)); err != nil {
		return fmt.Errorf("remove the ingress qdisc: %w", err)
	}
	return nil
}

// vacate removes our filter from an interface's ingress and reports whether nobody else's is there.
func vacate(h *netlink.Handle, index int) (alone bool, err error) {
	link, err := h.LinkByIndex(index)
	if err != nil {
		return false, err
	}
	filters, err := h.FilterList(link, arriving)
	if err != nil {
		return false, fmt.Errorf("list the ingress filters: %w", err)
	}
	found := map[uint16]uint16{}
	for _, f := range filters {
		if isOurs(f) {
			found[f.Attrs().Priority] = f.Attrs().Protocol
		}
	}
	alone = !slices.ContainsFunc(filters, func(f netlink.Filter) bool {
		_, ours := found[f.Attrs().Priority]
		return !ours || f.Type() != "u32"
	})
	if len(found) == 0 {
		return false, nil // an empty qdisc is somebody's who still means to fill it
	}
	for priority, protocol := range found {
		if err := removeFilters(h, index, priority, protocol); err != nil {
			return false, fmt.Errorf("remove an old ingress filter: %w", err)
		}
	}
	return alone, nil
}

// isOurs reports whether a filter is one that this package makes.
func isOurs(f netlink.Filter) bool {
	u, ok := f.(*netlink.U32)
	if !ok {
		return false
	}
	switch u.Priority {
	case spared, sparedOuter:
		return len(u.Actions) == 0 && u.ClassId == goesOn
	case stolen:
		if len(u.Actions) != 1 {
			return false
		}
		m, ok := u.Actions[0].(*netlink.MirredAction)
		return ok && m.MirredAction == netlink.TCA_EGRESS_REDIR
	}
	return false
}

// removeFilters removes all of a priority: without a handle all are meant.
func removeFilters(h *netlink.Handle, index int, priority, protocol uint16) error {
	return h.FilterDel(&netlink.U32{FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: arriving, Priority: priority, Protocol: protocol}})
}

func ignoreGone(err error) error {
	var notFound netlink.LinkNotFoundError
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) || errors.As(err, &notFound) {
		return nil
	}
	return err
}
