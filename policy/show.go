package policy

import (
	"fmt"
	"io"
	"strings"
)

// Show writes every rule in force with where it comes from.
func (p *Policy) Show(w io.Writer) error {
	flag := func(v bool) string { return choose(v, "yes", "no") }
	limit := func(v uint64, text string) string { return choose(v > 0, text, "no limit") }
	var mounts, signatures []string
	for _, m := range p.Mounts.Allow {
		mounts = append(mounts, m.Path+choose(m.ReadOnly, " (read-only)", ""))
	}
	for _, s := range p.Images.Signatures {
		var keys []string
		for _, k := range s.Keys {
			keys = append(keys, k.File)
		}
		signatures = append(signatures, fmt.Sprintf("%s: %s", listed(s.Images, "none"), strings.Join(keys, " or ")))
	}
	egress := "anything that networks leave open"
	if p.Egress.Allow != nil {
		egress = p.Egress.Allow.String()
	}
	for _, r := range []struct{ rule, value string }{
		{"images.allow", listed(p.Images.Allow, "none")},
		{"images.digests", choose(p.Images.Digests, "required", "not required")},
		{"images.signatures", listed(signatures, "not required")},
		{"images.engines", p.Images.Engines},
		{"mounts.allow", listed(mounts, "none")},
		{"mounts.volumes", flag(p.Mounts.Volumes)},
		{"mounts.engines", flag(p.Mounts.Engines)},
		{"devices.allow", listed(p.Devices.Allow, "none")},
		{"capabilities.allow", listed(p.Capabilities.Allow, "none")},
		{"capabilities.privileged", flag(p.Capabilities.Privileged)},
		{"capabilities.escalation", flag(p.Capabilities.Escalation)},
		{"capabilities.unfiltered", flag(p.Capabilities.Unfiltered)},
		{"networks.allow", listed(p.Networks.Allow, "none")},
		{"networks.publish", listed(p.Networks.Publish, "none")},
		{"networks.hostLoopback", flag(p.Networks.HostLoopback)},
		{"networks.linkLocal", flag(p.Networks.LinkLocal)},
		{"sizes.memory", limit(p.Sizes.MemoryBytes, fmt.Sprintf("%d bytes", p.Sizes.MemoryBytes))},
		{"sizes.cpus", limit(p.Sizes.MilliCPUs, processors(p.Sizes.MilliCPUs))},
		{"sizes.pids", limit(uint64(p.Sizes.Pids), fmt.Sprint(p.Sizes.Pids))},
		{"users.root", flag(p.Users.Root)},
		{"egress.allow", egress},
	} {
		if _, err := fmt.Fprintf(w, "%-24s %s  (%s)\n", r.rule, r.value, p.origin(r.rule)); err != nil {
			return err
		}
	}
	return nil
}
