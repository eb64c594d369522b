package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	api "manis/api/agent"
)

// rtnetlink is a socket for the few requests of which a sandbox's network
// consists.
type rtnetlink struct {
	fd  int
	seq uint32
}

func openNetlink() (*rtnetlink, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	return &rtnetlink{fd: fd}, nil
}

func (r *rtnetlink) Close() { unix.Close(r.fd) }

// message is a request under construction: head, fixed part, attributes.
type message []byte

func (m *message) uint8(v ...uint8) { *m = append(*m, v...) }
func (m *message) uint16(v uint16)  { *m = binary.NativeEndian.AppendUint16(*m, v) }
func (m *message) uint32(v uint32)  { *m = binary.NativeEndian.AppendUint32(*m, v) }
func (m *message) attr(t int, b []byte) {
	m.uint16(uint16(4 + len(b)))
	m.uint16(uint16(t))
	*m = append(*m, b...)
	for len(*m)%4 != 0 {
		*m = append(*m, 0)
	}
}

func newMessage(kind uint16, flags uint16) message {
	m := make(message, 0, 128)
	m.uint32(0) // length, filled in by request
	m.uint16(kind)
	m.uint16(unix.NLM_F_REQUEST | unix.NLM_F_ACK | flags)
	m.uint32(0) // sequence
	m.uint32(0) // port
	return m
}

// request sends m and waits for the kernel's answer.
func (r *rtnetlink) request(m message) error {
	r.seq++
	binary.NativeEndian.PutUint32(m[0:], uint32(len(m)))
	binary.NativeEndian.PutUint32(m[8:], r.seq)
	if err := unix.Sendto(r.fd, m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	buf := make([]byte, 8192)
	n, _, err := unix.Recvfrom(r.fd, buf, 0)
	if err != nil {
		return os.NewSyscallError("recvfrom", err)
	}
	if n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(buf[4:]) != unix.NLMSG_ERROR {
		return errors.New("the kernel's answer is not an acknowledgement")
	}
	if code := int32(binary.NativeEndian.Uint32(buf[16:])); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}

// setLink brings a link up and waits until it can send.
func (r *rtnetlink) setLink(index uint32, name string, mac net.HardwareAddr, mtu uint32, noARP bool) error {
	flags := uint32(unix.IFF_UP)
	if noARP {
		flags |= unix.IFF_NOARP
	}
	m := newLinkMessage(index, unix.IFF_UP|unix.IFF_NOARP, flags)
	if mac != nil {
		m.attr(unix.IFLA_ADDRESS, mac)
	}
	if mtu != 0 {
		m.attr(unix.IFLA_MTU, binary.NativeEndian.AppendUint32(nil, mtu))
	}
	if err := r.request(m); err != nil {
		return err
	}
	for end := time.Now().Add(carrierTime); !r.hasCarrier(name) && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	return nil
}

// carrierTime is waited for the carrier of a card at most. virtio_net switches it on some time after it has made a card known (Linux,
// drivers/net/virtio_net.c, virtnet_probe); what is sent until then is lost without an error. A card that never gets one is used all the same.
const carrierTime = time.Second

// hasCarrier reports whether a link that is up has a carrier, or cannot tell.
func (r *rtnetlink) hasCarrier(name string) bool {
	value := [2]uint32{unix.ETHTOOL_GLINK}
	request := struct {
		name  [unix.IFNAMSIZ]byte
		value *[2]uint32
		_     [16]byte
	}{value: &value}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(r.fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	return errno != 0 || value[1] != 0
}

func (r *rtnetlink) addAddress(index uint32, p netip.Prefix) error {
	m := newMessage(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	flags := uint8(unix.IFA_F_PERMANENT)
	if p.Addr().Is6() {
		// Nobody else is on the link: usable at once, without probing.
		flags |= unix.IFA_F_NODAD
	}
	m.uint8(family(p.Addr()), uint8(p.Bits()), flags, unix.RT_SCOPE_UNIVERSE)
	m.uint32(index)
	m.attr(unix.IFA_LOCAL, p.Addr().AsSlice())
	m.attr(unix.IFA_ADDRESS, p.Addr().AsSlice())
	if p.Addr().Is4() && p.Bits() < 31 {
		b := p.Masked().Addr().As4()
		v := binary.BigEndian.Uint32(b[:]) | (1<<(32-p.Bits()) - 1)
		m.attr(unix.IFA_BROADCAST, binary.BigEndian.AppendUint32(nil, v))
	}
	return r.request(m)
}

// addRoute adds a route; an invalid gateway means "on link".
func (r *rtnetlink) addRoute(index uint32, to netip.Prefix, gateway netip.Addr, onlink bool) error {
	m := newMessage(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	scope := uint8(unix.RT_SCOPE_UNIVERSE)
	if !gateway.IsValid() && to.Addr().Is4() {
		scope = unix.RT_SCOPE_LINK
	}
	m.uint8(family(to.Addr()), uint8(to.Bits()), 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, scope, unix.RTN_UNICAST)
	var flags uint32
	if gateway.IsValid() && onlink {
		flags = unix.RTNH_F_ONLINK
	}
	m.uint32(flags)
	if to.Bits() > 0 {
		m.attr(unix.RTA_DST, to.Masked().Addr().AsSlice())
	}
	if gateway.IsValid() {
		m.attr(unix.RTA_GATEWAY, gateway.AsSlice())
	}
	m.attr(unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, index))
	return r.request(m)
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// linkIndex returns the number of a network device, or 0 when there is none.
func linkIndex(name string) (uint32, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, fmt.Errorf("device name %q: %w", name, err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req); err == unix.ENODEV {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	return req.Uint32(), nil
}

// linkUp brings a device up by the older and, for this one purpose, shorter way.
func linkUp(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}

// plan is a Network whose texts are parsed.
type plan struct {
	mac       net.HardwareAddr
	addresses []netip.Prefix
	gateways  []netip.Addr
	routes    []route
}

type route struct {
	to      netip.Prefix
	gateway netip.Addr
}

func parseNetwork(n *api.Network) (plan, error) {
	var p plan
	var err error
	if p.mac, err = parseMAC(n.Mac); err != nil {
		return p, err
	}
	for _, s := range n.Addresses {
		a, err := netip.ParsePrefix(s)
		if err != nil {
			return p, fmt.Errorf("address %q: want ADDRESS/BITS", s)
		}
		p.addresses = append(p.addresses, a)
	}
	for _, s := range n.Gateways {
		g, err := netip.ParseAddr(s)
		if err != nil {
			return p, fmt.Errorf("gateway %q is not an address", s)
		}
		p.gateways = append(p.gateways, g.WithZone(""))
	}
	for _, r := range n.Routes {
		to, err := netip.ParsePrefix(r.Destination)
		if err != nil {
			return p, fmt.Errorf("route to %q: want ADDRESS/BITS", r.Destination)
		}
		var g netip.Addr
		if r.Gateway != "" {
			if g, err = netip.ParseAddr(r.Gateway); err != nil || g.Is4() != to.Addr().Is4() {
				return p, fmt.Errorf("route to %s: gateway %q is not an address of its family", r.Destination, r.Gateway)
			}
			g = g.WithZone("")
		}
		p.routes = append(p.routes, route{to, g})
	}
	return p, nil
}

func (p *plan) onLink(a netip.Addr) bool {
	for _, n := range p.addresses {
		if n.Contains(a) {
			return true
		}
	}
	return a.IsLinkLocalUnicast()
}

// defaultDevice is the card that a template has, wanted or not.
const defaultDevice = "eth0"

// withdraw takes a device away from the sandbox, where there is one.
func withdraw(device string) error {
	index, err := linkIndex(device)
	if err == nil && index != 0 {
		err = cardCloset.put(index)
	}
	if err != nil {
		return fmt.Errorf("withdraw %s: %w", device, err)
	}
	return nil
}

// connect gives the sandbox its network.
func connect(n *api.Network) error {
	if len(n.GetInterfaces()) > 0 {
		r, err := openNetlink()
		if err != nil {
			return fmt.Errorf("connect the network: %w", err)
		}
		defer r.Close()
		return r.connect(n, nil)
	}
	if n.GetDevice() == "" {
		return withdraw(defaultDevice)
	}
	p, err := parseNetwork(n)
	if err != nil {
		return err
	}
	if _, err := awaitDevice(func() (string, error) {
		i, err := linkIndex(n.Device)
		if i == 0 || err != nil {
			return "", err
		}
		return n.Device, nil
	}); err != nil {
		return fmt.Errorf("find network device %s: %w", n.Device, err)
	}
	index, err := linkIndex(n.Device)
	if err != nil || index == 0 {
		return fmt.Errorf("find network device %s: %w", n.Device, err)
	}
	r, err := openNetlink()
	if err != nil {
		return fmt.Errorf("set up %s: %w", n.Device, err)
	}
	defer r.Close()
	// The host alone gives addresses: none is advertised, none is probed.
	for _, key := range []string{"accept_dad", "accept_ra"} {
		if err := writeFile("/proc/sys/net/ipv6/conf/"+n.Device+"/"+key, "0"); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	if err := r.setLink(index, n.Device, p.mac, n.Mtu, false); err != nil {
		return fmt.Errorf("bring %s up with hardware address %q and MTU %d: %w", n.Device, n.Mac, n.Mtu, err)
	}
	for _, a := range p.addresses {
		if err := r.addAddress(index, a); err != nil {
			return fmt.Errorf("add address %s to %s: %w", a, n.Device, err)
		}
	}
	for _, t := range p.routes {
		if err := r.addRoute(index, t.to, t.gateway, t.gateway.IsValid() && !p.onLink(t.gateway)); err != nil {
			return fmt.Errorf("add route to %s: %w", t.to, err)
		}
	}
	for _, g := range p.gateways {
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if g.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		if err := r.addRoute(index, all, g, !p.onLink(g)); err != nil {
			return fmt.Errorf("add default route by %s: %w", g, err)
		}
	}
	return nil
}
