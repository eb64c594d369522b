package netns

import (
	"fmt"
	"maps"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A VLAN that stands on an interface of the same namespace has a card of its own, and its frames come by that interface: with
// their tags they would be stolen there. So tagged frames are left to the namespace, which takes the tag off and has them
// arrive at the VLAN, where they are stolen. Tagged frames of other VLANs go nowhere then.

// spareTagged leaves frames with the tags of VLANs to the namespace where there are any, and nowhere else.
func (t *Taken) spareTagged(h *netlink.Handle, links []netlink.Link) error {
	for n := range t.Interfaces {
		i := &t.Interfaces[n]
		wanted := tags(links, i.index)
		for protocol := range i.tags {
			if !wanted[protocol] {
				if err := ignoreGone(removeFilters(h, i.index, tagPriority(protocol), protocol)); err != nil {
					return fmt.Errorf("interface %s: steal tagged frames again: %w", i.Name, err)
				}
			}
		}
		for protocol := range wanted {
			if i.tags[protocol] {
				continue
			}
			err := h.FilterAdd(&netlink.U32{
				FilterAttrs: netlink.FilterAttrs{LinkIndex: i.index, Parent: arriving, Priority: tagPriority(protocol), Protocol: protocol},
				ClassId:     goesOn,
			})
			if err != nil {
				return fmt.Errorf("interface %s: leave tagged frames to the namespace: %w", i.Name, err)
			}
		}
		i.tags = maps.Clone(wanted)
	}
	return nil
}

func tagPriority(protocol uint16) uint16 {
	if protocol == unix.ETH_P_8021AD {
		return sparedOuter
	}
	return spared
}
