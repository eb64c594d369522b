package bundle

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"manis/api/agent"
)

// namespaces sorts them by whom they concern.
func (p *planner) namespaces() error {
	p.Namespaces = make(map[specs.LinuxNamespaceType]string)
	for i, n := range p.linux.Namespaces {
		field := fmt.Sprintf("linux.namespaces[%d]", i)
		switch n.Type {
		case specs.PIDNamespace, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace:
		case specs.UserNamespace:
			// Another one with the same ids is as good: nothing else of it is shared in a machine.
			if n.Path != "" && (!p.maps || len(p.linux.UIDMappings) == 0) {
				return fmt.Errorf("%s.path: a user namespace of the host cannot be joined from a virtual machine", field)
			}
		case specs.MountNamespace, specs.CgroupNamespace, specs.TimeNamespace:
			if n.Path != "" {
				return fmt.Errorf("%s.path: a %s namespace of the host cannot be joined from a virtual machine", field, n.Type)
			}
		default:
			return fmt.Errorf("%s.type: %q is not a namespace", field, n.Type)
		}
		if n.Path != "" {
			if err := insidePath(n.Path); err != nil {
				return fmt.Errorf("%s.path: %w", field, err)
			}
		}
		if _, twice := p.Namespaces[n.Type]; twice {
			return fmt.Errorf("%s: there is a %s namespace already", field, n.Type)
		}
		p.Namespaces[n.Type] = n.Path
	}
	if path, ok := p.Namespaces[specs.NetworkNamespace]; ok {
		p.Net = Namespace{New: path == "", Path: path}
	}
	for _, kind := range []struct {
		name specs.LinuxNamespaceType
		what string
	}{
		{specs.PIDNamespace, "processes"},
		{specs.IPCNamespace, "queues, semaphores and shared memory"},
	} {
		if _, ok := p.Namespaces[kind.name]; !ok {
			p.warn("linux.namespaces: without a %s namespace the container would share the host's %s, which do not reach into the virtual machine", kind.name, kind.what)
		}
	}
	return nil
}

// maxName is __NEW_UTS_LEN of <linux/utsname.h>.
const maxName = 64

// names takes the names of the UTS namespace.
func (p *planner) names() error {
	_, own := p.Namespaces[specs.UTSNamespace]
	for _, n := range []struct{ field, value string }{{"hostname", p.spec.Hostname}, {"domainname", p.spec.Domainname}} {
		switch {
		case n.value == "":
		case !own:
			return fmt.Errorf("%s: is set, but linux.namespaces has no uts namespace to set it in", n.field)
		case len(n.value) > maxName:
			return fmt.Errorf("%s: has %d bytes, at most %d are possible", n.field, len(n.value), maxName)
		}
		if err := noNUL(n.field, []string{n.value}); err != nil {
			return err
		}
	}
	p.Create.Hostname, p.Create.Domainname = p.spec.Hostname, p.spec.Domainname
	if own {
		return nil
	}
	// What a container in the host's namespace would see.
	var err error
	if p.Create.Hostname, err = p.host.name(); err != nil {
		return fmt.Errorf("linux.namespaces: without a uts namespace: %w", err)
	}
	return nil
}

// maxMappings is the kernel's bound of a map (user_namespaces(7)).
const maxMappings = 340

// userNamespace takes the mappings.
func (p *planner) userNamespace() error {
	_, own := p.Namespaces[specs.UserNamespace]
	uids, gids := p.linux.UIDMappings, p.linux.GIDMappings
	switch {
	case !own && (len(uids) > 0 || len(gids) > 0):
		return errors.New("linux.uidMappings, linux.gidMappings: are set, but linux.namespaces has no user namespace")
	case !own:
		return nil
	case len(uids) == 0:
		return errors.New("linux.uidMappings: must be set for the user namespace")
	case len(gids) == 0:
		return errors.New("linux.gidMappings: must be set for the user namespace")
	}
	var err error
	if p.Create.UidMappings, err = mappings("linux.uidMappings", uids); err != nil {
		return err
	}
	p.Create.GidMappings, err = mappings("linux.gidMappings", gids)
	return err
}

func mappings(field string, list []specs.LinuxIDMapping) ([]*agent.IDMapping, error) {
	if len(list) > maxMappings {
		return nil, fmt.Errorf("%s: has %d entries, the kernel takes %d", field, len(list), maxMappings)
	}
	overlap := func(a, b, size, other uint32) bool {
		return uint64(a) < uint64(b)+uint64(other) && uint64(b) < uint64(a)+uint64(size)
	}
	var out []*agent.IDMapping
	for i, m := range list {
		if m.Size == 0 || uint64(m.ContainerID)+uint64(m.Size) > 1<<32-1 || uint64(m.HostID)+uint64(m.Size) > 1<<32-1 {
			return nil, fmt.Errorf("%s[%d]: %d ids from %d on cannot be mapped to those from %d on", field, i, m.Size, m.ContainerID, m.HostID)
		}
		for _, o := range list[:i] {
			if overlap(m.ContainerID, o.ContainerID, m.Size, o.Size) || overlap(m.HostID, o.HostID, m.Size, o.Size) {
				return nil, fmt.Errorf("%s[%d]: overlaps an entry before it", field, i)
			}
		}
		out = append(out, &agent.IDMapping{ContainerId: m.ContainerID, MachineId: m.HostID, Size: m.Size})
	}
	return out, nil
}

// timeNamespace takes the offsets of clocks.
func (p *planner) timeNamespace() error {
	_, own := p.Namespaces[specs.TimeNamespace]
	offsets := p.linux.TimeOffsets
	if !own && len(offsets) > 0 {
		return errors.New("linux.timeOffsets: is set, but linux.namespaces has no time namespace")
	}
	if !own {
		return nil
	}
	t := new(agent.TimeNamespace)
	for _, clock := range slices.Sorted(maps.Keys(offsets)) {
		o := offsets[clock]
		if o.Nanosecs > 999_999_999 {
			return fmt.Errorf("linux.timeOffsets.%s.nanosecs: %d is more than a second has", clock, o.Nanosecs)
		}
		switch clock {
		case "monotonic":
			t.MonotonicSeconds, t.MonotonicNanoseconds = o.Secs, o.Nanosecs
		case "boottime":
			t.BoottimeSeconds, t.BoottimeNanoseconds = o.Secs, o.Nanosecs
		default:
			return fmt.Errorf("linux.timeOffsets: there is no clock %q that has an offset: monotonic and boottime have", clock)
		}
	}
	p.Create.Time = t
	return nil
}
