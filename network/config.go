package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"manis/network/egress"
)

// Limits of the MTU: IPv6 needs 1280, and a virtio card cannot carry an IP packet of more than 65535 bytes.
const (
	MinMTU     = 1280
	MaxMTU     = 65520
	DefaultMTU = 65520
)

// The addresses of a sandbox's link. Every sandbox has a link of its own that nobody else can see, so all
// of them use the same addresses, and a VM restored from a template already has the right ones.
var (
	// DefaultSubnet holds the gateway (.1) and the guest (.2) and nothing else, so that no more than four
	// addresses of a network the user really has are hidden by it.
	DefaultSubnet = netip.MustParsePrefix("192.168.127.0/30")
	// DefaultSubnet6 is a unique local prefix. Programs prefer IPv4 for names that have both, because a
	// unique local source address does not match a global destination (RFC 6724).
	DefaultSubnet6 = netip.MustParsePrefix("fd6d:616e:6973::/64")
	// DefaultGuestMAC and DefaultGatewayMAC are locally administered.
	DefaultGuestMAC   = net.HardwareAddr{0x02, 0x6d, 0x61, 0x6e, 0x69, 0x02}
	DefaultGatewayMAC = net.HardwareAddr{0x02, 0x6d, 0x61, 0x6e, 0x69, 0x01}
)

// Config says what a sandbox's network looks like. The zero value is a working network that reaches the
// world, and neither the host's loopback nor link-local and metadata addresses.
type Config struct {
	// Subnet and Subnet6 hold the gateway as first and the guest as second address. DefaultSubnet and
	// DefaultSubnet6 when zero.
	Subnet, Subnet6 netip.Prefix
	// MAC is the guest's Ethernet address; frames from any other are dropped. DefaultGuestMAC when nil.
	MAC net.HardwareAddr
	// MTU of the link in bytes, DefaultMTU when 0. Large is fast: connections end at this stack, so the MTU
	// of the host's own links does not matter.
	MTU int
	// NoIPv6 leaves the guest without an IPv6 address.
	NoIPv6 bool

	// DNS are the servers that names are looked up at, in order; the host's own (/etc/resolv.conf) when
	// empty. The guest itself only ever talks to the gateway.
	DNS []netip.Addr
	// Search and DNSOptions go into the guest's resolv.conf; the host's search list when both DNS and Search
	// are empty.
	Search     []string
	DNSOptions []string
	// Hosts are further names for the guest's /etc/hosts.
	Hosts []Host
	// Publish are the host ports that lead to guest ports.
	Publish []PortMapping

	// AllowHostLoopback lets the guest reach the host's loopback under the gateway's address.
	AllowHostLoopback bool
	// AllowLinkLocal lets the guest reach 169.254.0.0/16 and the clouds' metadata addresses outside of it.
	AllowLinkLocal bool
	// Egress narrows what the guest reaches: each list has to open it. With none all is open that the rest of the
	// configuration leaves so. The gateway, where AllowHostLoopback opens it, is a destination like any other.
	Egress []egress.Rules

	// MaxConnections bounds the guest's TCP connections, both ways together. DefaultMaxConnections when 0.
	MaxConnections int
	// MaxSessions bounds the UDP sessions. DefaultMaxSessions when 0. The oldest gives way to a new one.
	MaxSessions int
}

// Host is one line of the guest's /etc/hosts.
type Host struct {
	Name string
	Addr netip.Addr
}

// HostGateway is the address that stands for the host in an --add-host value, as in docker.
const HostGateway = "host-gateway"

// ParseHost reads an --add-host value: "name:ip", "name=ip", the ip with or without brackets, or
// "name:host-gateway", which gives a Host with an invalid Addr that New fills in with the gateway.
func ParseHost(value string) (Host, error) {
	name, addr, ok := strings.Cut(value, "=")
	if !ok {
		name, addr, ok = strings.Cut(value, ":")
	}
	if !ok || name == "" || addr == "" {
		return Host{}, fmt.Errorf("host %q: want NAME:IP", value)
	}
	if strings.ContainsAny(name, " \t\r\n#") || len(name) > 253 {
		return Host{}, fmt.Errorf("host %q: %q is not a host name", value, name)
	}
	if addr == HostGateway {
		return Host{Name: name}, nil
	}
	if len(addr) > 2 && addr[0] == '[' && addr[len(addr)-1] == ']' {
		addr = addr[1 : len(addr)-1]
	}
	ip, err := netip.ParseAddr(addr)
	if err != nil || ip.Zone() != "" {
		return Host{}, fmt.Errorf("host %q: %q is not an IP address", value, addr)
	}
	return Host{Name: name, Addr: ip}, nil
}

// Addresses is what the agent configures in the guest. All of it is known before the VM starts; there is
// no DHCP.
type Addresses struct {
	MAC        net.HardwareAddr
	GatewayMAC net.HardwareAddr // for a permanent neighbour entry, which saves a round trip
	IPv4       netip.Prefix     // the guest's address with the link's prefix length
	Gateway4   netip.Addr
	IPv6       netip.Prefix // zero without IPv6
	Gateway6   netip.Addr
	DNS        []netip.Addr // for resolv.conf
	Search     []string
	DNSOptions []string
	Hosts      []Host // for /etc/hosts
	MTU        int    // bytes
}

// withDefaults returns the configuration with every zero value replaced, or says what is wrong with it.
func (c Config) withDefaults() (Config, error) {
	if !c.Subnet.IsValid() {
		c.Subnet = DefaultSubnet
	}
	if !c.Subnet6.IsValid() {
		c.Subnet6 = DefaultSubnet6
	}
	c.Subnet, c.Subnet6 = c.Subnet.Masked(), c.Subnet6.Masked()
	if !c.Subnet.Addr().Is4() || c.Subnet.Bits() > 30 {
		return c, fmt.Errorf("subnet %s: want an IPv4 prefix of at most 30 bits", c.Subnet)
	}
	if !c.Subnet6.Addr().Is6() || c.Subnet6.Addr().Is4In6() || c.Subnet6.Bits() > 126 {
		return c, fmt.Errorf("subnet %s: want an IPv6 prefix of at most 126 bits", c.Subnet6)
	}
	if c.MAC == nil {
		c.MAC = DefaultGuestMAC
	}
	if len(c.MAC) != 6 || c.MAC[0]&1 != 0 || string(c.MAC) == string(DefaultGatewayMAC) {
		return c, fmt.Errorf("mac address %s: want a unicast Ethernet address other than the gateway's", c.MAC)
	}
	if c.MTU == 0 {
		c.MTU = DefaultMTU
	}
	if c.MTU < MinMTU || c.MTU > MaxMTU {
		return c, fmt.Errorf("mtu %d: want %d to %d bytes", c.MTU, MinMTU, MaxMTU)
	}
	if c.MaxConnections == 0 {
		c.MaxConnections = DefaultMaxConnections
	}
	if c.MaxSessions == 0 {
		c.MaxSessions = DefaultMaxSessions
	}
	if c.MaxConnections < 0 || c.MaxSessions < 0 {
		return c, errors.New("network limits: want positive numbers of connections and sessions")
	}
	return c, nil
}

// addresses derives the link's addresses; c has its defaults.
func (c Config) addresses() Addresses {
	gw4 := c.Subnet.Addr().Next()
	a := Addresses{
		MAC:        c.MAC,
		GatewayMAC: DefaultGatewayMAC,
		IPv4:       netip.PrefixFrom(gw4.Next(), c.Subnet.Bits()),
		Gateway4:   gw4,
		DNS:        []netip.Addr{gw4},
		Search:     c.Search,
		DNSOptions: c.DNSOptions,
		MTU:        c.MTU,
	}
	if !c.NoIPv6 {
		a.Gateway6 = c.Subnet6.Addr().Next()
		a.IPv6 = netip.PrefixFrom(a.Gateway6.Next(), c.Subnet6.Bits())
	}
	for _, h := range c.Hosts {
		if !h.Addr.IsValid() {
			h.Addr = gw4
		}
		a.Hosts = append(a.Hosts, h)
	}
	return a
}
