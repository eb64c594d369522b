package spec

import (
	"slices"
	"strconv"
	"strings"

	"manis/container"
	"manis/network/egress"
	"manis/policy"
)

// Request is what a container asks for, as an operator's policy looks at it, but for its image.
func Request(cfg *container.Config) (*policy.Request, error) {
	s := &cfg.Security
	bounding, err := capabilities(s, s.Privileged)
	if err != nil {
		return nil, err
	}
	memory, vcpus, err := Machine(cfg)
	if err != nil {
		return nil, err
	}
	r := &policy.Request{
		Process: &policy.Process{
			Capabilities: append([]string{}, bounding...), Privileged: s.Privileged, Escalation: !s.NoNewPrivileges,
			Unfiltered: s.Privileged || s.Seccomp == "unconfined", User: RequestUser(cfg.Process.User),
		},
		Network: &policy.Network{
			Mode: cfg.Network.Mode, HostLoopback: cfg.Network.AllowHostLoopback, LinkLocal: cfg.Network.AllowLinkLocal,
		},
		Sizes: &policy.Amounts{MemoryBytes: cfg.Resources.MemoryBytes, MilliCPUs: cfg.Resources.MilliCPUs, Pids: cfg.Resources.PidsLimit},
	}
	// What is not limited has what the machine has.
	if r.Sizes.MemoryBytes == 0 {
		r.Sizes.MemoryBytes = memory
	}
	if r.Sizes.MilliCPUs == 0 {
		r.Sizes.MilliCPUs = uint64(vcpus) * 1000
	}
	if r.Sizes.Pids == 0 {
		r.Sizes.Pids = -1
	}
	if r.Network.Egress, err = Egress(cfg); err != nil {
		return nil, err
	}
	for _, p := range cfg.Network.Ports {
		r.Network.Publish = append(r.Network.Publish, policy.Port{Address: p.HostIP, Port: p.HostPort})
	}
	for _, m := range cfg.Mounts {
		switch m.Type {
		case "bind":
			r.Mounts = append(r.Mounts, policy.Mount{Source: m.Source, ReadOnly: m.ReadOnly})
		case "volume":
			r.Volumes = append(r.Volumes, m.Source)
		}
	}
	for _, d := range cfg.Resources.DeviceList {
		r.Devices = append(r.Devices, d.Path)
	}
	return r, nil
}

// Egress are the rules that the user has given a container; nil: there are none.
func Egress(cfg *container.Config) (egress.Rules, error) {
	if cfg.Network.Egress == nil {
		return nil, nil
	}
	return egress.ParseList(cfg.Network.Egress)
}

// RequestUser is what is known of a user before the image is looked into: "", "name", "uid", each with a group or
// without.
func RequestUser(user string) policy.User {
	name, _, _ := strings.Cut(user, ":")
	if name == "" || name == "root" {
		return policy.Root
	}
	switch id, err := strconv.ParseUint(name, 10, 32); {
	case err != nil:
		return policy.Named
	case id == 0:
		return policy.Root
	}
	return policy.NotRoot
}

// RequestExec is what a further process of a container asks for: with a user other than the container's, or with
// privileges.
func RequestExec(cfg *container.Config, user string, privileged bool) *policy.Request {
	if user == "" {
		user = cfg.Process.User
	}
	p := &policy.Process{Privileged: privileged, User: RequestUser(user)}
	if privileged {
		p.Capabilities, p.Escalation, p.Unfiltered = slices.Clone(allCapabilities), true, true
	}
	return &policy.Request{Process: p}
}
