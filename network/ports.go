package network

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Proto is the transport of a published port.
type Proto string

const (
	TCP Proto = "tcp"
	UDP Proto = "udp"
)

// PortMapping leads from a port of the host to a port of the guest.
type PortMapping struct {
	// HostIP is the address of the host to listen at; invalid for all of them, IPv4 and IPv6.
	HostIP netip.Addr
	// HostPort is the port to listen at, 0 for any free one.
	HostPort uint16
	// HostPortEnd, when above HostPort, makes any free port of HostPort to HostPortEnd do.
	HostPortEnd uint16
	GuestPort   uint16
	Proto       Proto // TCP when empty
}

// String is docker's way to show a mapping: "0.0.0.0:8080->80/tcp".
func (m PortMapping) String() string {
	host := "0.0.0.0"
	if m.HostIP.IsValid() {
		host = m.HostIP.String()
	}
	port := strconv.Itoa(int(m.HostPort))
	if m.HostPortEnd > m.HostPort {
		port += "-" + strconv.Itoa(int(m.HostPortEnd))
	}
	return fmt.Sprintf("%s->%d/%s", joinHostPort(host, port), m.GuestPort, m.proto())
}

func (m PortMapping) proto() Proto {
	if m.Proto == "" {
		return TCP
	}
	return m.Proto
}

func joinHostPort(host, port string) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + port
}

// ParsePort reads a --publish value as docker does: [[IP:][HOSTPORT]:]PORT[/tcp|udp], where both ports may be
// ranges of the same length, or the host's a range to choose from for a single guest port. Without HOSTPORT
// any free port is taken. IPv6 addresses stand in brackets.
func ParsePort(value string) ([]PortMapping, error) {
	m, err := parsePort(value)
	if err != nil {
		return nil, fmt.Errorf("port %q: %w", value, err)
	}
	return m, nil
}

func parsePort(value string) ([]PortMapping, error) {
	rest, proto, found := strings.Cut(value, "/")
	p := TCP
	if found {
		p = Proto(strings.ToLower(proto))
	}
	if p != TCP && p != UDP {
		return nil, fmt.Errorf("protocol %q: want tcp or udp", proto)
	}
	i := strings.LastIndexByte(rest, ':')
	host, guestPorts := "", rest
	if i >= 0 {
		host, guestPorts = rest[:i], rest[i+1:]
	}
	if guestPorts == "" {
		return nil, errors.New("no container port given: want [[IP:][HOSTPORT]:]PORT[/tcp|udp]")
	}
	guest, guestEnd, err := parseRange(guestPorts)
	if err != nil {
		return nil, fmt.Errorf("container port: %w", err)
	}
	ip, hostPorts, err := splitHostIP(host)
	if err != nil {
		return nil, err
	}
	count := int(guestEnd) - int(guest) + 1
	var first, last uint16
	if hostPorts != "" {
		if first, last, err = parseRange(hostPorts); err != nil {
			return nil, fmt.Errorf("host port: %w", err)
		}
	}
	hostCount := int(last) - int(first) + 1
	switch {
	case first == 0 || hostCount == count:
	case count == 1:
		return []PortMapping{{HostIP: ip, HostPort: first, HostPortEnd: last, GuestPort: guest, Proto: p}}, nil
	default:
		return nil, fmt.Errorf("%d host ports for %d container ports: want ranges of the same length", hostCount, count)
	}
	mappings := make([]PortMapping, 0, count)
	for i := range count {
		m := PortMapping{HostIP: ip, GuestPort: guest + uint16(i), Proto: p}
		if first != 0 {
			m.HostPort = first + uint16(i)
		}
		mappings = append(mappings, m)
	}
	return mappings, nil
}

// splitHostIP takes what stands before the guest's port apart: "", "8080", "127.0.0.1:8080", "127.0.0.1:",
// "[::1]:8080".
func splitHostIP(host string) (netip.Addr, string, error) {
	var ip, port string
	switch i := strings.LastIndexByte(host, ':'); {
	case i < 0:
		return netip.Addr{}, host, nil
	case strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]"):
		ip = host // "[::1]:80" is address and container port, "[::1]::80" the same
	default:
		ip, port = host[:i], host[i+1:]
	}
	if ip == "" {
		return netip.Addr{}, port, nil
	}
	bracketed := strings.HasPrefix(ip, "[") && strings.HasSuffix(ip, "]")
	if bracketed {
		ip = ip[1 : len(ip)-1]
	}
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return netip.Addr{}, "", fmt.Errorf("%q is not an IP address", ip)
	}
	if addr.Is6() != bracketed {
		return netip.Addr{}, "", fmt.Errorf("IPv6 addresses stand in brackets: [%s]", addr)
	}
	return addr.Unmap(), port, nil
}

// parseRange reads "80" or "80-90".
func parseRange(s string) (first, last uint16, err error) {
	from, to, isRange := strings.Cut(s, "-")
	if first, err = parsePortNumber(from); err != nil {
		return 0, 0, err
	}
	if !isRange {
		return first, first, nil
	}
	if last, err = parsePortNumber(to); err != nil {
		return 0, 0, err
	}
	if last < first {
		return 0, 0, fmt.Errorf("range %s ends before it begins", s)
	}
	return first, last, nil
}

func parsePortNumber(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '+' {
		return 0, fmt.Errorf("%q is not a port number from 1 to 65535", s)
	}
	return uint16(n), nil
}
