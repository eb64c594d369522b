package bundle

import (
	"encoding/json"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"

	"manis/api/agent"
)

// Resources translates limits that are to replace those of a running container. What r leaves out
// stays as the configuration, or the call before, had it: the agent lifts every limit
// that it is not told again. Calls must not overlap.
func (b *Bundle) Resources(r *specs.LinuxResources) (*agent.Resources, error) {
	merged := new(specs.LinuxResources)
	base := b.limits
	if base == nil && b.Spec.Linux != nil {
		base = b.Spec.Linux.Resources
	}
	// In JSON what is left out is not there, so it replaces nothing.
	for _, layer := range []*specs.LinuxResources{base, r} {
		if layer == nil {
			continue
		}
		text, err := json.Marshal(layer)
		if err == nil {
			err = json.Unmarshal(text, merged)
		}
		if err != nil {
			return nil, fmt.Errorf("update: %w", err)
		}
	}
	linux := specs.Linux{}
	if b.Spec.Linux != nil {
		linux = *b.Spec.Linux
	}
	linux.Resources = merged
	p := &planner{Plan: &Plan{Create: new(agent.CreateContainerRequest)}, bundle: b, spec: b.Spec, linux: &linux, host: thisHost}
	if err := p.resources(); err != nil {
		return nil, fmt.Errorf("update: %w", err)
	}
	b.limits = merged
	return p.Create.Resources, nil
}
