package declare

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"manis/container"
	"manis/network"
	"manis/network/egress"
)

var hostnamePattern = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9._-]{0,62}[a-zA-Z0-9])?$`)

func (f *Flags) setNetwork(c *container.Config, img *Image, _ []string, h Host) error {
	if !hostnamePattern.MatchString(c.Hostname) {
		return fmt.Errorf("invalid hostname format: %q (letters, digits, '-' and '.', at most 64)", c.Hostname)
	}
	n := &c.Network
	mode, err := networkMode(f.network)
	if err != nil {
		return err
	}
	n.Mode = mode
	if n.Ports, err = f.Published(h); err != nil {
		return err
	}
	if f.publishAll {
		exposed, err := f.exposed(img)
		if err != nil {
			return err
		}
		for _, e := range exposed {
			taken := slices.ContainsFunc(n.Ports, func(p container.Port) bool {
				return p.ContainerPort == e.ContainerPort && p.Protocol == e.Protocol
			})
			if !taken {
				n.Ports = append(n.Ports, e)
			}
		}
	}
	if err := clash(n.Ports); err != nil {
		return err
	}
	for _, s := range f.dns {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return fmt.Errorf("%s is not an ip address", s)
		}
		n.DNS = append(n.DNS, addr)
	}
	n.DNSSearch = slices.Clone(f.dnsSearch)
	n.DNSOption = slices.Clone(f.dnsOption)
	for _, s := range slices.Concat(n.DNSSearch, n.DNSOption) {
		if s == "" || strings.ContainsAny(s, " \t\r\n") {
			return fmt.Errorf("%q is not a valid DNS search domain or option", s)
		}
	}
	for _, s := range f.addHosts {
		if err := checkAddHost(s); err != nil {
			return err
		}
		n.AddHosts = append(n.AddHosts, s)
	}
	if f.mac != "" {
		mac, err := net.ParseMAC(f.mac)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return fmt.Errorf("%s is not a valid mac address", f.mac)
		}
		n.MAC = mac.String()
	}
	if len(f.egress) > 0 {
		rules, err := egress.ParseList(f.egress)
		if err != nil {
			return err
		}
		n.Egress = rules.Texts()
	}
	n.AllowHostLoopback, n.AllowLinkLocal = f.allowLoopback, f.allowLinkLocal
	if n.Mode == "none" && len(n.Ports) > 0 && !f.publishAll {
		return errors.New("conflicting options: port publishing and the container type network mode: --network none has no ports to publish")
	}
	if n.Mode == "none" {
		n.Ports = nil
	}
	return nil
}

// Published are the ports that --publish asks for.
func (f *Flags) Published(h Host) ([]container.Port, error) {
	var ports []container.Port
	for _, p := range f.publish {
		mappings, err := network.ParsePort(p)
		if err != nil {
			return nil, err
		}
		for _, m := range mappings {
			port, err := choosePort(m, h)
			if err != nil {
				return nil, err
			}
			ports = append(ports, port)
		}
	}
	return ports, clash(ports)
}

func networkMode(s string) (string, error) {
	switch name, _, _ := strings.Cut(s, ":"); {
	case s == "", s == "user", s == "bridge", s == "default":
		return "user", nil
	case s == "none":
		return "none", nil
	case s == "host":
		return "", errors.New("--network=host: a container cannot join the host's network: it has a virtual machine to itself (publish ports with -p; --allow-host-loopback lets it reach servers of the host)")
	case name == "container":
		return "", fmt.Errorf("--network=%s: containers do not share a network yet: each has a virtual machine to itself", s)
	default:
		return "", fmt.Errorf("network %s not found: there are user and none", s)
	}
}

// choosePort settles on one host port where the user gave a range to choose from.
func choosePort(m network.PortMapping, h Host) (container.Port, error) {
	p := container.Port{HostIP: m.HostIP, HostPort: m.HostPort, ContainerPort: m.GuestPort, Protocol: string(m.Proto)}
	if p.Protocol == "" {
		p.Protocol = "tcp"
	}
	if m.HostPortEnd <= m.HostPort {
		return p, nil
	}
	for n := int(m.HostPort); n <= int(m.HostPortEnd); n++ {
		p.HostPort = uint16(n)
		if h.FreePort(p) {
			return p, nil
		}
	}
	return p, fmt.Errorf("port %d-%d: all ports are allocated", m.HostPort, m.HostPortEnd)
}

// clash finds two mappings of one host port.
func clash(ports []container.Port) error {
	for i, a := range ports {
		for _, b := range ports[:i] {
			if a.HostPort == 0 || a.HostPort != b.HostPort || a.Protocol != b.Protocol {
				continue
			}
			if !a.HostIP.IsValid() || !b.HostIP.IsValid() || a.HostIP == b.HostIP || a.HostIP.IsUnspecified() || b.HostIP.IsUnspecified() {
				return fmt.Errorf("host port %d/%s is published twice", a.HostPort, a.Protocol)
			}
		}
	}
	return nil
}

// exposed are the ports of the image and of --expose, sorted.
func (f *Flags) exposed(img *Image) ([]container.Port, error) {
	specs := slices.Clone([]string(f.expose))
	for e := range img.Config.ExposedPorts {
		specs = append(specs, e)
	}
	var ports []container.Port
	for _, s := range specs {
		found, err := parseExpose(s)
		if err != nil {
			return nil, err
		}
		ports = append(ports, found...)
	}
	slices.SortFunc(ports, func(a, b container.Port) int {
		if a.ContainerPort != b.ContainerPort {
			return int(a.ContainerPort) - int(b.ContainerPort)
		}
		return strings.Compare(a.Protocol, b.Protocol)
	})
	return slices.Compact(ports), nil
}

func parseExpose(s string) ([]container.Port, error) {
	if strings.Contains(s, ":") {
		return nil, fmt.Errorf("invalid port format for --expose: %s", s)
	}
	mappings, err := network.ParsePort(s)
	if err != nil {
		return nil, fmt.Errorf("invalid range format for --expose: %w", err)
	}
	var ports []container.Port
	for _, m := range mappings {
		p, err := choosePort(m, Host{})
		if err != nil {
			return nil, err
		}
		ports = append(ports, p)
	}
	return ports, nil
}

func checkPublish(s string) error { _, err := network.ParsePort(s); return err }
func checkExpose(s string) error  { _, err := parseExpose(s); return err }
func checkAddHost(s string) error { _, err := network.ParseHost(s); return err }

func checkEgress(s string) error { _, err := egress.ParseList([]string{s}); return err }

func checkDNS(s string) error {
	if _, err := netip.ParseAddr(s); err != nil {
		return fmt.Errorf("%s is not an ip address", s)
	}
	return nil
}
