package spec

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"manis/api/agent"
	"manis/container"
	"manis/network"
)

// files are those that depend on the network and the name. A mount of the
// user's at the same place wins.
func files(cfg *container.Config, env Environment) ([]*agent.File, error) {
	for _, name := range []string{cfg.Hostname, cfg.Domainname} {
		if strings.ContainsAny(name, " \t\r\n\x00#") || len(name) > 253 {
			return nil, fmt.Errorf("%q is not a host name", name)
		}
	}
	hosts, err := hostsFile(cfg, env.Network)
	if err != nil {
		return nil, err
	}
	resolver, err := resolvFile(cfg, env.Network)
	if err != nil {
		return nil, err
	}
	var list []*agent.File
	for _, f := range []struct{ path, content string }{
		{"/etc/hosts", hosts},
		{"/etc/hostname", cfg.Hostname + "\n"},
		{"/etc/resolv.conf", resolver},
	} {
		if !slices.ContainsFunc(cfg.Mounts, func(m container.Mount) bool { return m.Destination == f.path }) {
			list = append(list, &agent.File{Path: f.path, Content: []byte(f.content), Mode: 0o644})
		}
	}
	return list, nil
}

func hostsFile(cfg *container.Config, a *network.Addresses) (string, error) {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n" +
		"::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::0\tip6-localnet\n" +
		"ff00::0\tip6-mcastprefix\n" +
		"ff02::1\tip6-allnodes\n" +
		"ff02::2\tip6-allrouters\n")
	added, err := addedHosts(cfg, a)
	if err != nil {
		return "", err
	}
	for _, h := range added {
		fmt.Fprintf(&b, "%s\t%s\n", h.Addr, h.Name)
	}
	if a == nil || cfg.Hostname == "" {
		return b.String(), nil
	}
	names := cfg.Hostname
	if cfg.Domainname != "" {
		names = cfg.Hostname + "." + cfg.Domainname + " " + cfg.Hostname
	}
	for _, p := range []netip.Prefix{a.IPv4, a.IPv6} {
		if p.IsValid() {
			fmt.Fprintf(&b, "%s\t%s\n", p.Addr(), names)
		}
	}
	return b.String(), nil
}

// addedHosts are those of --add-host. The network has resolved host-gateway;
// without one there is no gateway.
func addedHosts(cfg *container.Config, a *network.Addresses) ([]network.Host, error) {
	if a != nil {
		return a.Hosts, nil
	}
	var list []network.Host
	for _, s := range cfg.Network.AddHosts {
		h, err := network.ParseHost(s)
		if err != nil {
			return nil, err
		}
		if !h.Addr.IsValid() {
			return nil, fmt.Errorf("host %q: without a network there is no gateway (use --network user)", s)
		}
		list = append(list, h)
	}
	return list, nil
}

// resolvFile names the servers that the guest asks: the stack's, which asks those
// of --dns in its turn, or without a network those of --dns themselves.
func resolvFile(cfg *container.Config, a *network.Addresses) (string, error) {
	servers, search, options := cfg.Network.DNS, cfg.Network.DNSSearch, cfg.Network.DNSOption
	if a != nil {
		servers, search, options = a.DNS, a.Search, a.DNSOptions
	}
	var b strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	for _, line := range []struct {
		key    string
		values []string
	}{{"search", search}, {"options", options}} {
		for _, v := range line.values {
			if v == "" || strings.ContainsAny(v, " \t\r\n\x00") {
				return "", fmt.Errorf("dns %s %q: it has white space or is empty", line.key, v)
			}
		}
		// A dot alone is docker's way to say: search nowhere.
		values := slices.DeleteFunc(slices.Clone(line.values), func(v string) bool { return line.key == "search" && v == "." })
		if len(values) > 0 {
			fmt.Fprintf(&b, "%s %s\n", line.key, strings.Join(values, " "))
		}
	}
	return b.String(), nil
}
