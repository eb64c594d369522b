package agent

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	api "manis/api/agent"
)

func (m *message) attr32(t int, v uint32) { m.attr(t, binary.NativeEndian.AppendUint32(nil, v)) }

// tableOf is how a header names a table; those above its 8 bits are named by an attribute alone.
func tableOf(table uint32) uint8 {
	if table > 255 {
		return unix.RT_TABLE_UNSPEC
	}
	return uint8(table)
}

// route adds or removes a route. Devices are found by their names.
func (r *rtnetlink) route(x *api.Route, named map[string]uint32, kind uint16) error {
	to, err := netip.ParsePrefix(x.Destination)
	if err != nil {
		return fmt.Errorf("want ADDRESS/BITS")
	}
	kindOf, table := x.Type, x.Table
	if kindOf == 0 {
		kindOf = unix.RTN_UNICAST
	}
	if table == 0 {
		table = unix.RT_TABLE_MAIN
	}
	m := newMessage(kind, 0)
	if kind == unix.RTM_NEWROUTE {
		m = newMessage(kind, unix.NLM_F_CREATE|unix.NLM_F_APPEND)
	}
	m.uint8(family(to.Addr()), uint8(to.Bits()), 0, uint8(x.Tos), tableOf(table), uint8(x.Protocol), uint8(x.Scope), uint8(kindOf))
	m.uint32(x.Flags)
	if to.Bits() > 0 {
		m.attr(unix.RTA_DST, to.Masked().Addr().AsSlice())
	}
	m.attr32(unix.RTA_TABLE, table)
	if x.Metric != 0 {
		m.attr32(unix.RTA_PRIORITY, x.Metric)
	}
	if x.Source != "" {
		source, err := netip.ParseAddr(x.Source)
		if err != nil {
			return fmt.Errorf("its source %q is not an address", x.Source)
		}
		m.attr(unix.RTA_PREFSRC, source.AsSlice())
	}
	var metrics message
	if x.Mtu != 0 {
		metrics.attr32(unix.RTAX_MTU, x.Mtu)
	}
	if x.Advmss != 0 {
		metrics.attr32(unix.RTAX_ADVMSS, x.Advmss)
	}
	if len(metrics) > 0 {
		m.attr(unix.RTA_METRICS, metrics)
	}
	device := func(name string) (uint32, error) {
		index, ok := named[name]
		if !ok {
			return 0, fmt.Errorf("there is no interface %q", name)
		}
		return index, nil
	}
	if x.Device != "" {
		index, err := device(x.Device)
		if err != nil {
			return err
		}
		m.attr32(unix.RTA_OIF, index)
	}
	if err := m.gateway(x.Gateway, to); err != nil {
		return err
	}
	var hops message
	for _, h := range x.NextHops {
		index, err := device(h.Device)
		if err != nil {
			return err
		}
		var a message
		if err := a.gateway(h.Gateway, to); err != nil {
			return err
		}
		hops.uint16(uint16(unix.SizeofRtNexthop + len(a)))
		hops.uint8(uint8(h.Flags), uint8(max(h.Weight, 1)-1))
		hops.uint32(index)
		hops = append(hops, a...)
	}
	if len(hops) > 0 {
		m.attr(unix.RTA_MULTIPATH, hops)
	}
	return r.request(m)
}

// gateway adds a next hop, which may be of another family than the destination.
func (m *message) gateway(s string, to netip.Prefix) error {
	if s == "" {
		return nil
	}
	g, err := netip.ParseAddr(s)
	if err != nil {
		return fmt.Errorf("its gateway %q is not an address", s)
	}
	if g = g.WithZone(""); g.Is4() == to.Addr().Is4() {
		m.attr(unix.RTA_GATEWAY, g.AsSlice())
		return nil
	}
	m.attr(unix.RTA_VIA, append(binary.NativeEndian.AppendUint16(nil, uint16(family(g))), g.AsSlice()...))
	return nil
}

// ruleInvert is FIB_RULE_INVERT.
const ruleInvert = 2

// rule adds or removes a rule.
func (r *rtnetlink) rule(x *api.Rule, kind uint16) error {
	var flags uint32
	if x.Invert {
		flags = ruleInvert
	}
	var ends [2]netip.Prefix
	for i, s := range []string{x.Destination, x.Source} {
		if s == "" {
			continue
		}
		var err error
		if ends[i], err = netip.ParsePrefix(s); err != nil || uint32(family(ends[i].Addr())) != x.Family {
			return fmt.Errorf("%q is not ADDRESS/BITS of its family", s)
		}
	}
	m := newMessage(kind, 0)
	if kind == unix.RTM_NEWRULE {
		m = newMessage(kind, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	}
	m.uint8(uint8(x.Family), uint8(max(ends[0].Bits(), 0)), uint8(max(ends[1].Bits(), 0)), uint8(x.Tos), tableOf(x.Table), 0, 0, uint8(x.Action))
	m.uint32(flags)
	for i, t := range []int{unix.FRA_DST, unix.FRA_SRC} {
		if ends[i].IsValid() {
			m.attr(t, ends[i].Addr().AsSlice())
		}
	}
	m.attr32(unix.FRA_PRIORITY, x.Priority)
	if x.Table != 0 {
		m.attr32(unix.FRA_TABLE, x.Table)
	}
	if x.InDevice != "" {
		m.attr(unix.FRA_IIFNAME, append([]byte(x.InDevice), 0))
	}
	if x.OutDevice != "" {
		m.attr(unix.FRA_OIFNAME, append([]byte(x.OutDevice), 0))
	}
	if x.Mark != 0 || x.Mask != 0 {
		m.attr32(unix.FRA_FWMARK, x.Mark)
		m.attr32(unix.FRA_FWMASK, x.Mask)
	}
	if x.Goto != 0 {
		m.attr32(unix.FRA_GOTO, x.Goto)
	}
	if x.SuppressPrefixLength >= 0 && x.Table != 0 {
		m.attr32(unix.FRA_SUPPRESS_PREFIXLEN, uint32(x.SuppressPrefixLength))
	}
	if x.IpProtocol != 0 {
		m.attr(unix.FRA_IP_PROTO, []byte{uint8(x.IpProtocol)})
	}
	ports := func(t int, first, last uint32) {
		if first != 0 || last != 0 {
			b := binary.NativeEndian.AppendUint16(nil, uint16(first))
			m.attr(t, binary.NativeEndian.AppendUint16(b, uint16(last)))
		}
	}
	ports(unix.FRA_SPORT_RANGE, x.SourcePortFirst, x.SourcePortLast)
	ports(unix.FRA_DPORT_RANGE, x.DestinationPortFirst, x.DestinationPortLast)
	return r.request(m)
}
