package agent

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	api "manis/api/agent"
)

// card is a network card of the machine, by whatever name.
type card struct {
	index uint32
	name  string
	mac   string
}

// attributeBytes bounds what a file of sysfs says of a device.
const attributeBytes = 4096

// cards returns the machine's network cards in its own order.
func cards() ([]card, error) {
	names, err := readDir("/sys/class/net")
	if err != nil {
		return nil, fmt.Errorf("list the network cards: %w", err)
	}
	var all []card
	for _, name := range names {
		if unix.Access("/sys/class/net/"+name+"/device", unix.F_OK) != nil {
			continue // made by software
		}
		index, err := linkIndex(name)
		if err != nil {
			return nil, fmt.Errorf("find network card %s: %w", name, err)
		}
		mac, err := readFile("/sys/class/net/"+name+"/address", attributeBytes)
		if err != nil {
			return nil, fmt.Errorf("read the address of network card %s: %w", name, err)
		}
		all = append(all, card{index, name, strings.TrimSpace(string(mac))})
	}
	slices.SortFunc(all, func(a, b card) int { return int(a.index) - int(b.index) })
	return all, nil
}

// claim finds a card for each interface but loopback, gives it the interface's name, leaves it down, and takes
// those that are left over away. The result has an index for each interface.
func claim(r *rtnetlink, interfaces []*api.Interface) ([]uint32, error) {
	wanted := 0
	for _, i := range interfaces {
		if i.Name == "" || len(i.Name) >= unix.IFNAMSIZ || strings.ContainsAny(i.Name, "/ \t\n:") || i.Name == "." || i.Name == ".." {
			return nil, fmt.Errorf("%q is not the name of a network interface: want 1 to %d characters", i.Name, unix.IFNAMSIZ-1)
		}
		if i.Name != loopback {
			wanted++
		}
	}
	for _, i := range interfaces {
		if i.Plugged {
			if err := awaitCard(i); err != nil {
				return nil, err
			}
		}
	}
	all, err := enoughCards(wanted)
	if err != nil {
		return nil, err
	}
	took := make([]*card, len(interfaces))
	free := func(wants func(*card) bool) *card {
		for n := range all {
			if c := &all[n]; !slices.Contains(took, c) && wants(c) {
				return c
			}
		}
		return nil
	}
	// Several interfaces may have one hardware address, and so have the cards once they were given it: those that are known by
	// another one come first, and names tell what was claimed before.
	for _, match := range []func(*api.Interface, *card) bool{
		func(i *api.Interface, c *card) bool { return i.Card != "" && isCard(i, c) },
		func(i *api.Interface, c *card) bool { return strings.EqualFold(c.mac, i.Mac) && c.name == i.Name },
		func(i *api.Interface, c *card) bool { return i.Card == "" && isCard(i, c) },
	} {
		for n, i := range interfaces {
			if i.Name != loopback && i.Mac != "" && took[n] == nil {
				took[n] = free(func(c *card) bool { return match(i, c) })
			}
		}
	}
	for n, i := range interfaces {
		if i.Name != loopback && took[n] == nil && !i.Plugged {
			took[n] = free(func(*card) bool { return true })
		}
	}
	for n := range all {
		if c := &all[n]; !slices.Contains(took, c) {
			if err := withdraw(c.name); err != nil {
				return nil, err
			}
		}
	}
	// Names may have to change places.
	for n, i := range interfaces {
		c := took[n]
		if c == nil || c.name == i.Name {
			continue
		}
		if there, err := linkIndex(i.Name); err != nil {
			return nil, fmt.Errorf("look for %s: %w", i.Name, err)
		} else if there != 0 {
			if err := r.rename(there, fmt.Sprintf("card%d", there)); err != nil {
				return nil, fmt.Errorf("rename %s: %w", i.Name, err)
			}
		}
		if err := r.rename(c.index, i.Name); err != nil {
			return nil, fmt.Errorf("rename %s to %s: %w", c.name, i.Name, err)
		}
		for m := range all {
			if all[m].name == i.Name {
				all[m].name = ""
			}
		}
		c.name = i.Name
	}
	indices := make([]uint32, len(interfaces))
	for n := range interfaces {
		if indices[n] = 1; took[n] != nil {
			indices[n] = took[n].index
		}
	}
	return indices, nil
}

// isCard reports whether a card is the one by whose hardware address an interface is found.
func isCard(i *api.Interface, c *card) bool {
	if i.Card == "" {
		return strings.EqualFold(c.mac, i.Mac)
	}
	return strings.EqualFold(c.mac, i.Card) || strings.EqualFold(c.mac, i.Mac) && c.name == i.Name
}

// awaitCard waits for the card that is plugged in for an interface.
func awaitCard(i *api.Interface) error {
	_, err := awaitDevice(func() (string, error) {
		all, err := cards()
		if err != nil {
			return "", err
		}
		for _, c := range all {
			if isCard(i, &c) {
				return c.name, nil
			}
		}
		return "", nil
	})
	if err != nil {
		return fmt.Errorf("find the network card %s that is plugged in for %s: %w", cmp.Or(i.Card, i.Mac), i.Name, err)
	}
	return nil
}

// enoughCards returns the cards when there are as many, having restored those that were withdrawn.
func enoughCards(wanted int) ([]card, error) {
	all, err := cards()
	if err != nil || len(all) >= wanted {
		return all, err
	}
	if err := cardCloset.empty(); err != nil {
		return nil, err
	}
	_, err = awaitDevice(func() (string, error) {
		if all, err = cards(); err != nil || len(all) < wanted {
			return "", err
		}
		return "all", nil
	})
	if errors.Is(err, errNoDevice) {
		return nil, fmt.Errorf("%d network interfaces for a machine that has %d cards", wanted, len(all))
	}
	return all, err
}

// rename gives a link another name, for which it has to be down.
func (r *rtnetlink) rename(index uint32, name string) error {
	m := newLinkMessage(index, unix.IFF_UP, 0)
	m.attr(unix.IFLA_IFNAME, append([]byte(name), 0))
	return r.request(m)
}

// takeDown brings a link down, and with it what depends on it.
func (r *rtnetlink) takeDown(index uint32) error {
	return r.request(newLinkMessage(index, unix.IFF_UP, 0))
}

func newLinkMessage(index, change, flags uint32) message {
	m := newMessage(unix.RTM_NEWLINK, 0)
	m.uint8(unix.AF_UNSPEC, 0)
	m.uint16(0)
	m.uint32(index)
	m.uint32(flags)
	m.uint32(change)
	return m
}

func parseMAC(s string) (net.HardwareAddr, error) {
	if s == "" {
		return nil, nil
	}
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 {
		return nil, fmt.Errorf("hardware address %q is not one", s)
	}
	return mac, nil
}
