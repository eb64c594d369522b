package netns

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ours is the priority of the filter that steals an interface's frames, the first of all: an engine's own
// filters would see frames that are none of this host's.
const ours = 1

// The handle of an ingress qdisc, and the parent of its filters, which clsact has as well.
const (
	ingress  = 0xffff0000
	arriving = netlink.HANDLE_MIN_INGRESS
)

// redirect has every frame that arrives at one interface sent by another, before the namespace's own stack
// sees it. The filter is u32, since kernels have it that have no matchall. It reports whether the
// interface's ingress qdisc has been made for it.
func redirect(h *netlink.Handle, from, to int, priority uint16) (owned bool, err error) {
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
		FilterAttrs: netlink.FilterAttrs{LinkIndex: from, Parent: arriving, Priority: priority, Protocol: unix.ETH_P_ALL},
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
	alone, found := true, false
	for _, f := range filters {
		if f.Type() == "u32" && f.Attrs().Priority == ours {
			found = true
		} else {
			alone = false
		}
	}
	if !found {
		return false, nil // an empty qdisc is somebody's who still means to fill it
	}
	// Without a handle all of the priority are meant.
	all := &netlink.U32{FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: arriving, Priority: ours, Protocol: unix.ETH_P_ALL}}
	if err := h.FilterDel(all); err != nil {
		return false, fmt.Errorf("remove an old ingress filter: %w", err)
	}
	return alone, nil
}

func ignoreGone(err error) error {
	var notFound netlink.LinkNotFoundError
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) || errors.As(err, &notFound) {
		return nil
	}
	return err
}
