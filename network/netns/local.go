package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"manis/api/agent"
)

// Rootless engines publish ports by a process in the namespace that connects to the container's own
// address. What is sent there would be answered by the namespace's own stack: the address is its own, too.
// So that it reaches the machine, the address is taken out of the table of local ones, the way to it
// leads over the tap, and the sender has another address, which the machine finds by a permanent
// neighbour. Only interfaces that a program feeds (slirp4netns, pasta) are treated so: others have their
// clients outside.

// local is what was changed for one address.
type local struct {
	route netlink.Route // of the table local
	// alias is how the machine finds those processes.
	alias *agent.Neighbor
}

// admitLocal lets processes of the namespace reach the machine at its IPv4 address.
func (i *Interface) admitLocal(h *netlink.Handle, l netlink.Link, g *agent.Network) error {
	if l.Type() != "tuntap" {
		return nil
	}
	addresses, err := h.AddrList(l, netlink.FAMILY_V4)
	if err != nil || len(addresses) == 0 {
		return err
	}
	own := addresses[0].IPNet
	alias, ok := spareAddress(own, g)
	if !ok {
		return nil // no address is left to come from
	}
	tap, err := h.LinkByIndex(i.tap)
	if err != nil {
		return err
	}
	host := net.IPMask{255, 255, 255, 255}
	if err := h.AddrAdd(tap, &netlink.Addr{IPNet: &net.IPNet{IP: alias, Mask: host}}); err != nil {
		return fmt.Errorf("add an address to the tap device: %w", err)
	}
	// Answers to it are for the namespace's own stack.
	err = h.FilterAdd(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: i.tap, Parent: arriving, Priority: spared, Protocol: unix.ETH_P_IP},
		Sel: &nl.TcU32Sel{Flags: nl.TC_U32_TERMINAL, Nkeys: 1, Keys: []nl.TcU32Key{{
			Mask: 0xffffffff, Val: uint32(alias[0])<<24 | uint32(alias[1])<<16 | uint32(alias[2])<<8 | uint32(alias[3]), Off: 16,
		}}},
		ClassId: goesOn,
	})
	if err != nil {
		return fmt.Errorf("let answers through: %w", err)
	}
	// They come from an address that an interface of this namespace still has.
	accept := "/proc/sys/net/ipv4/conf/" + tap.Attrs().Name + "/accept_local"
	if err := os.WriteFile(accept, []byte("1"), 0); err != nil {
		return fmt.Errorf("accept the machine's address on the tap device: %w", err)
	}
	mac, err := net.ParseMAC(i.MAC)
	if err != nil {
		return err
	}
	if err := h.NeighSet(&netlink.Neigh{LinkIndex: i.tap, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT, IP: own.IP, HardwareAddr: mac}); err != nil {
		return fmt.Errorf("name the machine as a neighbour: %w", err)
	}
	i.local = &local{route: netlink.Route{
		LinkIndex: l.Attrs().Index, Dst: &net.IPNet{IP: own.IP, Mask: host}, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL,
		Scope: netlink.SCOPE_HOST, Protocol: unix.RTPROT_KERNEL, Src: own.IP,
	}, alias: &agent.Neighbor{Address: alias.String(), Mac: tap.Attrs().HardwareAddr.String()}}
	if err := h.RouteDel(&i.local.route); err != nil && !errors.Is(err, unix.ESRCH) {
		i.local = nil
		return fmt.Errorf("take the address out of the local ones: %w", err)
	}
	if err := h.RouteAdd(&netlink.Route{LinkIndex: i.tap, Dst: &net.IPNet{IP: own.IP, Mask: host}, Src: alias, Scope: netlink.SCOPE_LINK}); err != nil {
		return fmt.Errorf("lead the way to the address over the tap device: %w", err)
	}
	return nil
}

// takeBack makes the address a local one again.
func (i *Interface) takeBack(h *netlink.Handle) error {
	if i.local == nil {
		return nil
	}
	if err := h.RouteReplace(&i.local.route); err != nil {
		return ignoreGone(err)
	}
	return nil
}

// spareAddress is the highest of a network that is nobody's as far as can be known.
func spareAddress(own *net.IPNet, g *agent.Network) (net.IP, bool) {
	ones, bits := own.Mask.Size()
	addr, ok := netip.AddrFromSlice(own.IP.To4())
	if !ok || bits != 32 || ones > 29 {
		return nil, false
	}
	prefix := netip.PrefixFrom(addr, ones).Masked()
	taken := map[netip.Addr]bool{addr: true}
	for _, r := range g.Routes {
		if gateway, err := netip.ParseAddr(r.Gateway); err == nil {
			taken[gateway] = true
		}
	}
	base := prefix.Addr().As4()
	last := (uint32(base[0])<<24 | uint32(base[1])<<16 | uint32(base[2])<<8 | uint32(base[3])) | (1<<(32-ones) - 1)
	for n := last - 1; n > last-4; n-- {
		a := netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
		if !taken[a] {
			return net.IP(a.AsSlice()), true
		}
	}
	return nil, false
}
