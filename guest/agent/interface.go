package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	api "manis/api/agent"
)

const loopback = "lo"

// Connect puts another network in the place of the present one.
func (s *service) Connect(ctx context.Context, n *api.Network) (*api.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.isSetUp {
		return nil, fail(codes.FailedPrecondition, errors.New("the sandbox is not set up"))
	}
	if err := s.connect(n); err != nil {
		return nil, err
	}
	return &api.Empty{}, nil
}

// connect gives the sandbox the network n, if it has not got it.
func (s *service) connect(n *api.Network) error {
	if s.isSetUp && proto.Equal(n, s.network) {
		return nil
	}
	old, connect := s.network, connect
	if s.isSetUp {
		connect = func(n *api.Network) error { return reconnect(old, n) }
	}
	s.network = nil // when this fails it is to be done again
	if err := connect(n); err != nil {
		return err
	}
	s.network = n
	return nil
}

// reconnect takes back what an earlier network has set and n has not, and connects.
func reconnect(old, n *api.Network) error {
	r, err := openNetlink()
	if err != nil {
		return fmt.Errorf("connect the network: %w", err)
	}
	defer r.Close()
	if n.GetDevice() != "" {
		if err := r.disconnect(old, &api.Network{}); err != nil {
			return err
		}
		if _, err := claim(r, []*api.Interface{{Name: n.Device, Mac: n.Mac}}); err != nil {
			return err
		}
		return connect(n)
	}
	if err := r.disconnect(old, n); err != nil {
		return err
	}
	return r.connect(n, old)
}

// staying finds the interface of a network that is i under the same name and hardware address.
func staying(n *api.Network, i *api.Interface) *api.Interface {
	for _, x := range n.GetInterfaces() {
		if x.Name == i.Name && x.Mac == i.Mac && x.Card == i.Card && x.Plugged == i.Plugged && (x.Mac != "" || x.Name == loopback) {
			return x
		}
	}
	return nil
}

// without are those of a list that another one has not.
func without[M proto.Message](list, other []M) []M {
	return slices.DeleteFunc(slices.Clone(list), func(m M) bool {
		return slices.ContainsFunc(other, func(o M) bool { return proto.Equal(m, o) })
	})
}

// disconnect takes back what a network has set, the next one has not, and what does not end with its links.
func (r *rtnetlink) disconnect(old, next *api.Network) error {
	if old == nil {
		return nil
	}
	if old.Device != "" {
		old = &api.Network{Interfaces: []*api.Interface{{Name: old.Device, Addresses: plainAddresses(old.Addresses)}}}
	}
	for _, x := range without(old.Rules, next.Rules) {
		if err := r.rule(x, unix.RTM_DELRULE); err != nil && err != unix.ENOENT {
			return fmt.Errorf("remove rule %d: %w", x.Priority, err)
		}
	}
	named := map[string]uint32{}
	for _, i := range old.Interfaces {
		index, err := linkIndex(i.Name)
		if err != nil {
			return fmt.Errorf("find %s: %w", i.Name, err)
		}
		if index != 0 {
			named[i.Name] = index
		}
	}
	for _, x := range without(old.Routes, next.Routes) {
		gone := func(h *api.NextHop) bool { return named[h.Device] == 0 }
		if x.Device != "" && named[x.Device] == 0 || slices.ContainsFunc(x.NextHops, gone) {
			continue // it has gone with its card
		}
		if err := r.route(x, named, unix.RTM_DELROUTE); err != nil && err != unix.ESRCH && err != unix.ENODEV {
			return fmt.Errorf("remove route to %s: %w", x.Destination, err)
		}
	}
	for _, i := range old.Interfaces {
		index := named[i.Name]
		if index == 0 {
			continue
		}
		stays := staying(next, i)
		for _, a := range without(i.Addresses, stays.GetAddresses()) {
			if err := r.address(index, a, unix.RTM_DELADDR); err != nil && err != unix.EADDRNOTAVAIL {
				return fmt.Errorf("remove address %s from %s: %w", a.Prefix, i.Name, err)
			}
		}
		if i.Name == loopback {
			continue
		}
		if stays == nil {
			if err := r.takeDown(index); err != nil {
				return fmt.Errorf("bring %s down: %w", i.Name, err)
			}
			continue
		}
		for _, x := range without(i.Neighbors, stays.Neighbors) {
			if err := r.neighbor(index, x, unix.RTM_DELNEIGH); err != nil && err != unix.ENOENT {
				return fmt.Errorf("remove neighbour %s from %s: %w", x.Address, i.Name, err)
			}
		}
	}
	return nil
}

func plainAddresses(prefixes []string) []*api.Address {
	var all []*api.Address
	for _, p := range prefixes {
		all = append(all, &api.Address{Prefix: p})
	}
	return all
}

// connect gives the sandbox interfaces, routes and rules as a network namespace has them. Those interfaces that it has
// from an old network stay up.
func (r *rtnetlink) connect(n, old *api.Network) error {
	indices, err := claim(r, n.Interfaces)
	if err != nil {
		return err
	}
	named := map[string]uint32{}
	for k, i := range n.Interfaces {
		named[i.Name] = indices[k]
		if err := r.configure(indices[k], i, staying(old, i)); err != nil {
			return err
		}
	}
	for _, x := range n.Routes {
		if err := r.route(x, named, unix.RTM_NEWROUTE); err != nil && err != unix.EEXIST {
			return fmt.Errorf("add route to %s: %w", x.Destination, err)
		}
	}
	for _, x := range n.Rules {
		if err := r.rule(x, unix.RTM_NEWRULE); err != nil && err != unix.EEXIST {
			return fmt.Errorf("add rule %d: %w", x.Priority, err)
		}
	}
	return nil
}

// configure sets up one interface, which has its name; old is what it was set up as before, or nil.
func (r *rtnetlink) configure(index uint32, i, old *api.Interface) error {
	if i.Name != loopback && (old == nil || old.Mtu != i.Mtu || old.NoArp != i.NoArp || !maps.Equal(old.Sysctls, i.Sysctls)) {
		mac, err := parseMAC(i.Mac)
		if err != nil {
			return err
		}
		// The addresses were probed where they come from.
		err = writeFile("/proc/sys/net/ipv6/conf/"+i.Name+"/accept_dad", "0")
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
		if err := writeSysctls(unix.AT_FDCWD, "/proc/sys/", i.Sysctls); err != nil {
			return err
		}
		if err := r.setLink(index, i.Name, mac, i.Mtu, i.NoArp); err != nil {
			return fmt.Errorf("bring %s up with hardware address %q and MTU %d: %w", i.Name, i.Mac, i.Mtu, err)
		}
	}
	for _, a := range inOrder(without(i.Addresses, old.GetAddresses())) {
		if err := r.address(index, a, unix.RTM_NEWADDR); err != nil {
			return fmt.Errorf("add address %s to %s: %w", a.Prefix, i.Name, err)
		}
	}
	for _, x := range i.Neighbors {
		if err := r.neighbor(index, x, unix.RTM_NEWNEIGH); err != nil {
			return fmt.Errorf("add neighbour %s to %s: %w", x.Address, i.Name, err)
		}
	}
	return nil
}

// inOrder turns addresses in the order in which a kernel lists them into that in which they are added
// to be listed so: of IPv6 addresses the last comes first.
func inOrder(addresses []*api.Address) []*api.Address {
	var four, six []*api.Address
	for _, a := range addresses {
		if p, err := netip.ParsePrefix(a.Prefix); err == nil && p.Addr().Is6() {
			six = append(six, a)
		} else {
			four = append(four, a)
		}
	}
	slices.Reverse(six)
	return append(four, six...)
}

// address adds or removes an address.
func (r *rtnetlink) address(index uint32, a *api.Address, kind uint16) error {
	local, err := netip.ParsePrefix(a.Prefix)
	if err != nil {
		return errors.New("want ADDRESS/BITS")
	}
	to := local
	if a.Peer != "" {
		if to, err = netip.ParsePrefix(a.Peer); err != nil || to.Addr().Is4() != local.Addr().Is4() {
			return fmt.Errorf("its peer %q is not ADDRESS/BITS of its family", a.Peer)
		}
	}
	flags := a.Flags | unix.IFA_F_PERMANENT
	if local.Addr().Is6() {
		flags |= unix.IFA_F_NODAD
	}
	m := newMessage(kind, 0)
	if kind == unix.RTM_NEWADDR {
		m = newMessage(kind, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	}
	m.uint8(family(local.Addr()), uint8(to.Bits()), uint8(flags), uint8(a.Scope))
	m.uint32(index)
	m.attr(unix.IFA_LOCAL, local.Addr().AsSlice())
	m.attr(unix.IFA_ADDRESS, to.Addr().AsSlice())
	if kind == unix.RTM_DELADDR {
		return r.request(m)
	}
	m.attr(unix.IFA_FLAGS, binary.NativeEndian.AppendUint32(nil, flags))
	if a.Broadcast != "" {
		b, err := netip.ParseAddr(a.Broadcast)
		if err != nil {
			return fmt.Errorf("its broadcast address %q is none", a.Broadcast)
		}
		m.attr(unix.IFA_BROADCAST, b.AsSlice())
	}
	if a.Label != "" {
		m.attr(unix.IFA_LABEL, append([]byte(a.Label), 0))
	}
	if a.Metric != 0 {
		m.attr(unix.IFA_RT_PRIORITY, binary.NativeEndian.AppendUint32(nil, a.Metric))
	}
	return r.request(m)
}

// neighbor adds or removes a neighbour.
func (r *rtnetlink) neighbor(index uint32, x *api.Neighbor, kind uint16) error {
	at, err := netip.ParseAddr(x.Address)
	if err != nil {
		return errors.New("this is not an address")
	}
	mac, err := parseMAC(x.Mac)
	if err != nil {
		return err
	}
	var flags uint8
	if x.Proxy {
		flags = unix.NTF_PROXY
	}
	m := newMessage(kind, 0)
	if kind == unix.RTM_NEWNEIGH {
		m = newMessage(kind, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	}
	m.uint8(family(at), 0)
	m.uint16(0)
	m.uint32(index)
	m.uint16(unix.NUD_PERMANENT)
	m.uint8(flags, 0)
	m.attr(unix.NDA_DST, at.AsSlice())
	if mac != nil {
		m.attr(unix.NDA_LLADDR, mac)
	}
	return r.request(m)
}
