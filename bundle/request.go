package bundle

import (
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"manis/network/egress"
	"manis/policy"
)

// EgressAnnotation holds rules for what a container connects to, separated by spaces.
const EgressAnnotation = "manis.egress"

// Egress are the rules of the annotation; nil: there is none.
func (b *Bundle) Egress() (egress.Rules, error) {
	text, ok := b.Spec.Annotations[EgressAnnotation]
	if !ok {
		return nil, nil
	}
	rules, err := egress.ParseAll(text)
	if err != nil {
		return nil, fmt.Errorf("%s: annotation %s: %w", configName, EgressAnnotation, err)
	}
	return rules, nil
}

// Request is what a container of the bundle asks for, as an operator's policy looks at it, but for its network, which
// is its pod's. The plan is the bundle's. The root filesystem and hooks are the engine's own and not asked about.
func (b *Bundle) Request(plan *Plan, engine policy.Engine) *policy.Request {
	r := &policy.Request{Engine: &engine, Sizes: &policy.Amounts{Pids: -1}}
	if b.Spec.Process != nil {
		r.Process = requestProcess(b.Spec.Process)
		if r.Process.Capabilities == nil {
			r.Process.Capabilities = []string{}
		}
		r.Process.Privileged = plan.Privileged
	}
	if l := b.Spec.Linux; l != nil {
		if r.Process != nil {
			r.Process.Unfiltered = l.Seccomp == nil
		}
		if res := l.Resources; res != nil {
			if res.Memory != nil && res.Memory.Limit != nil && *res.Memory.Limit > 0 {
				r.Sizes.MemoryBytes = uint64(*res.Memory.Limit)
			}
			if res.Pids != nil && res.Pids.Limit != nil && *res.Pids.Limit > 0 {
				r.Sizes.Pids = *res.Pids.Limit
			}
		}
	} else if r.Process != nil {
		r.Process.Unfiltered = true
	}
	r.Sizes.MilliCPUs = plan.Resources.MilliCPUs
	for _, m := range plan.Binds {
		r.Mounts = append(r.Mounts, policy.Mount{Source: m.HostPath, Opened: m.Opened, ReadOnly: m.ReadOnly && !m.WritableBelow})
	}
	r.Devices = plan.deviceNames()
	return r
}

// deviceNames are the devices of a plan, as a policy knows them.
func (p *Plan) deviceNames() []string {
	var names []string
	for _, d := range p.Create.Devices {
		disk := slices.IndexFunc(p.Disks, func(own Disk) bool { return own.Device == d })
		switch {
		case disk >= 0:
			// The host's, by its number there.
			names = append(names, fmt.Sprintf("/dev/block/%d:%d", p.Disks[disk].Major, p.Disks[disk].Minor))
		case d.Type != "p":
			names = append(names, deviceName(d.Type, d.Major, d.Minor))
		}
	}
	return names
}

// requestProcess is what a process by itself asks for.
func requestProcess(s *specs.Process) *policy.Process {
	p := &policy.Process{Escalation: !s.NoNewPrivileges, User: policy.NotRoot}
	if s.User.UID == 0 {
		p.User = policy.Root
	}
	if c := s.Capabilities; c != nil {
		p.Capabilities = []string{}
		for _, set := range [][]string{c.Bounding, c.Effective, c.Permitted, c.Inheritable, c.Ambient} {
			for _, name := range set {
				if !slices.Contains(p.Capabilities, name) {
					p.Capabilities = append(p.Capabilities, name)
				}
			}
		}
	}
	return p
}

// RequestExec is what a further process of a container asks for. Without capabilities of its own it has the container's.
func RequestExec(s *specs.Process) *policy.Request {
	return &policy.Request{Process: requestProcess(s)}
}

// deviceName is the path by which a policy knows a device of the machine, wherever its node is.
func deviceName(kind string, major, minor int64) string {
	if kind == "u" {
		kind = "c"
	}
	for _, d := range guestDevices {
		if d.kind != kind || d.major != major {
			continue
		}
		switch {
		case d.minor == minor:
			return d.path
		case d.minor < 0:
			return fmt.Sprintf("%s%d", d.path, minor)
		}
	}
	return fmt.Sprintf("/dev/%s/%d:%d", map[string]string{"c": "char", "b": "block"}[kind], major, minor)
}

// Permit asks a policy about a container of the bundle, and returns what it has allowed of the host's files, for Hold; nil: there is no
// policy. What a policy decides on is opened, and stays so until the plan is closed. The network is the container's own; nil: its pod's.
func (b *Bundle) Permit(p *policy.Policy, plan *Plan, engine policy.Engine, network *policy.Network) (*Allowed, error) {
	if p != nil {
		if err := plan.Open(); err != nil {
			return nil, err
		}
	}
	r := b.Request(plan, engine)
	r.Network = network
	if err := Check(p, r); err != nil || p == nil {
		return nil, err
	}
	return plan.allowed()
}

// Check asks a policy about a request of a bundle. Rules of the annotation that nothing could hold a container to are
// refused without a policy, too.
func Check(p *policy.Policy, r *policy.Request) error {
	if n := r.Network; n != nil && n.Egress != nil && n.Mode == "namespace" {
		return fmt.Errorf("%s: annotation %s: what a container with a network namespace connects to is its engine's to filter, "+
			"and nothing here could: give it the user-mode network (manis.network=user, without a network namespace), or filter at the namespace", configName, EgressAnnotation)
	}
	return p.Check(r)
}
