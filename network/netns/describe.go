package netns

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"manis/api/agent"
)

// describe reads what a guest has to be given to stand in for the namespace.
func describe(h *netlink.Handle, links []netlink.Link) (*agent.Network, error) {
	routes, err := h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list the routes: %w", err)
	}
	n := &agent.Network{}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
		i, err := describeLink(h, l, routes)
		if err != nil {
			return nil, fmt.Errorf("interface %s: %w", l.Attrs().Name, err)
		}
		if i.Name != "lo" || len(i.Addresses) > 0 {
			n.Interfaces = append(n.Interfaces, i)
		}
	}
	for _, r := range routes {
		d, err := describeRoute(&r, names)
		if err != nil {
			return nil, fmt.Errorf("route %s: %w", r, err)
		}
		if d != nil {
			n.Routes = append(n.Routes, d)
		}
	}
	// A gateway can be reached when the routes without one are there.
	slices.SortStableFunc(n.Routes, func(a, b *agent.Route) int { return hops(a) - hops(b) })
	if n.Rules, err = rules(h); err != nil {
		return nil, err
	}
	return n, nil
}

func hops(r *agent.Route) int {
	if r.Gateway != "" || len(r.NextHops) > 0 {
		return 1
	}
	return 0
}

func describeLink(h *netlink.Handle, l netlink.Link, routes []netlink.Route) (*agent.Interface, error) {
	a := l.Attrs()
	i := &agent.Interface{Name: a.Name}
	loopback := a.RawFlags&unix.IFF_LOOPBACK != 0
	if !loopback {
		i.Mac, i.Mtu, i.Sysctls = a.HardwareAddr.String(), uint32(a.MTU), parameters(a.Name)
		i.NoArp = a.RawFlags&unix.IFF_NOARP != 0
	}
	addresses, err := h.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the addresses: %w", err)
	}
	for _, x := range addresses {
		if !loopback || x.Scope != unix.RT_SCOPE_HOST {
			i.Addresses = append(i.Addresses, describeAddress(&x, a, routes))
		}
	}
	if loopback {
		return i, nil
	}
	neighbors, err := h.NeighList(a.Index, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the neighbours: %w", err)
	}
	for _, x := range neighbors {
		if x.State&netlink.NUD_PERMANENT != 0 && len(x.HardwareAddr) == 6 && len(x.IP) > 0 {
			i.Neighbors = append(i.Neighbors, &agent.Neighbor{Address: x.IP.String(), Mac: x.HardwareAddr.String()})
		}
	}
	proxies, err := h.NeighProxyList(a.Index, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the neighbours that are stood in for: %w", err)
	}
	for _, x := range proxies {
		i.Neighbors = append(i.Neighbors, &agent.Neighbor{Address: x.IP.String(), Proxy: true})
	}
	return i, nil
}

// addressFlags are those that are properties of an address, not states of it.
const addressFlags = unix.IFA_F_NODAD | unix.IFA_F_HOMEADDRESS | unix.IFA_F_MANAGETEMPADDR |
	unix.IFA_F_NOPREFIXROUTE | unix.IFA_F_MCAUTOJOIN

func describeAddress(x *netlink.Addr, link *netlink.LinkAttrs, routes []netlink.Route) *agent.Address {
	a := &agent.Address{Prefix: x.IPNet.String(), Scope: uint32(x.Scope), Flags: uint32(x.Flags) & addressFlags}
	to := x.IPNet
	if x.Peer != nil {
		a.Peer, to = x.Peer.String(), x.Peer
	}
	if len(x.Broadcast) > 0 {
		a.Broadcast = x.Broadcast.String()
	}
	if x.Label != link.Name {
		a.Label = x.Label
	}
	// The metric that an address was given shows in the route that the kernel has made of it.
	to = &net.IPNet{IP: to.IP.Mask(to.Mask), Mask: to.Mask}
	routed := false
	for _, r := range routes {
		if r.Protocol != unix.RTPROT_KERNEL || r.Type != unix.RTN_UNICAST || r.LinkIndex != link.Index || r.Dst == nil || r.Dst.String() != to.String() {
			continue
		}
		routed = true
		if r.Table == unix.RT_TABLE_MAIN && !(to.IP.To4() == nil && r.Priority == defaultMetric6) {
			a.Metric = uint32(r.Priority)
		}
	}
	// Where somebody has taken that route away, as the plugin ptp does, the guest's kernel must not make it.
	ones, bits := to.Mask.Size()
	alone := x.Peer == nil && bits == 32 && ones == 32 // of such an address none is made
	if !routed && !alone && link.RawFlags&(unix.IFF_UP|unix.IFF_LOOPBACK) == unix.IFF_UP {
		a.Flags |= unix.IFA_F_NOPREFIXROUTE
	}
	return a
}

// defaultMetric6 is the metric of an IPv6 route that was made without one.
const defaultMetric6 = 1024 / 4

// describeRoute returns nil for what a kernel makes by itself, and for interfaces that are not taken.
func describeRoute(r *netlink.Route, names map[int]string) (*agent.Route, error) {
	if r.Protocol == unix.RTPROT_KERNEL || r.Flags&unix.RTM_F_CLONED != 0 {
		return nil, nil
	}
	if r.Encap != nil || r.NewDst != nil || r.MPLSDst != nil {
		return nil, fmt.Errorf("its encapsulation cannot be carried over to a guest")
	}
	d := &agent.Route{
		Type: uint32(r.Type), Table: uint32(r.Table), Metric: uint32(r.Priority), Scope: uint32(r.Scope),
		Protocol: uint32(r.Protocol), Tos: uint32(r.Tos), Flags: uint32(r.Flags) & unix.RTNH_F_ONLINK,
		Mtu: uint32(r.MTU), Advmss: uint32(r.AdvMSS), Gateway: gateway(r.Gw, r.Via),
	}
	switch {
	case r.Dst != nil:
		d.Destination = r.Dst.String()
	case r.Family == unix.AF_INET6:
		d.Destination = "::/0"
	default:
		d.Destination = "0.0.0.0/0"
	}
	if r.Src != nil {
		d.Source = r.Src.String()
	}
	switch r.Type {
	case unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT, unix.RTN_THROW:
		return d, nil
	}
	for _, hop := range r.MultiPath {
		name, ok := names[hop.LinkIndex]
		if !ok {
			return nil, nil
		}
		d.NextHops = append(d.NextHops, &agent.NextHop{
			Device: name, Gateway: gateway(hop.Gw, hop.Via), Weight: uint32(hop.Hops) + 1, Flags: uint32(hop.Flags) & unix.RTNH_F_ONLINK,
		})
	}
	if len(d.NextHops) > 0 {
		return d, nil
	}
	var ok bool
	if d.Device, ok = names[r.LinkIndex]; !ok {
		return nil, nil
	}
	return d, nil
}

// gateway is a next hop of the route's family, or of the other.
func gateway(gw net.IP, via netlink.Destination) string {
	if v, ok := via.(*netlink.Via); ok && v != nil {
		return v.Addr.String()
	}
	if len(gw) == 0 {
		return ""
	}
	return gw.String()
}

func rules(h *netlink.Handle) ([]*agent.Rule, error) {
	var all []*agent.Rule
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := h.RuleList(family)
		if err != nil {
			return nil, fmt.Errorf("list the rules: %w", err)
		}
		for _, r := range list {
			if r.Protocol == unix.RTPROT_KERNEL {
				continue // those that every namespace begins with
			}
			action := uint32(unix.FR_ACT_TO_TBL)
			switch {
			case r.Goto > 0:
				action = unix.FR_ACT_GOTO
			case r.Table == 0:
				return nil, fmt.Errorf("rule %d is none that looks up a table: it cannot be carried over to a guest", r.Priority)
			}
			d := &agent.Rule{
				Family: uint32(family), Priority: uint32(max(r.Priority, 0)), Action: action, Table: uint32(r.Table),
				InDevice: r.IifName, OutDevice: r.OifName, Tos: uint32(r.Tos), Mark: r.Mark, Invert: r.Invert,
				IpProtocol: uint32(r.IPProto), SuppressPrefixLength: int32(r.SuppressPrefixlen), Goto: uint32(max(r.Goto, 0)),
			}
			if r.Mask != nil {
				d.Mask = *r.Mask
			}
			if r.Src != nil {
				d.Source = r.Src.String()
			}
			if r.Dst != nil {
				d.Destination = r.Dst.String()
			}
			if p := r.Sport; p != nil {
				d.SourcePortFirst, d.SourcePortLast = uint32(p.Start), uint32(p.End)
			}
			if p := r.Dport; p != nil {
				d.DestinationPortFirst, d.DestinationPortLast = uint32(p.Start), uint32(p.End)
			}
			all = append(all, d)
		}
	}
	return all, nil
}

// carried are the kernel parameters of an interface that plugins set, with the values that a
// guest's kernel has by itself.
var carried = map[string]string{
	"ipv4/conf/%s/accept_local":     "0",
	"ipv4/conf/%s/arp_announce":     "0",
	"ipv4/conf/%s/arp_filter":       "0",
	"ipv4/conf/%s/arp_ignore":       "0",
	"ipv4/conf/%s/arp_notify":       "0",
	"ipv4/conf/%s/proxy_arp":        "0",
	"ipv4/conf/%s/route_localnet":   "0",
	"ipv4/conf/%s/rp_filter":        "0",
	"ipv4/conf/%s/src_valid_mark":   "0",
	"ipv6/conf/%s/accept_ra":        "1",
	"ipv6/conf/%s/accept_redirects": "1",
	"ipv6/conf/%s/autoconf":         "1",
	"ipv6/conf/%s/disable_ipv6":     "0",
	"ipv6/conf/%s/proxy_ndp":        "0",
	"ipv6/conf/%s/use_tempaddr":     "0",
}

// parameters reads, in the thread's namespace, those that differ. What cannot be read is as usual.
func parameters(name string) map[string]string {
	var found map[string]string
	for format, usual := range carried {
		key := "net/" + fmt.Sprintf(format, name)
		b, err := os.ReadFile("/proc/sys/" + key)
		if value := strings.TrimSpace(string(b)); err == nil && value != usual {
			if found == nil {
				found = map[string]string{}
			}
			found[key] = value
		}
	}
	return found
}
