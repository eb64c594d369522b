package bundle

import (
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"

	"manis/api/agent"
)

// Resources translates limits that are to replace those of a running container.
func (b *Bundle) Resources(r *specs.LinuxResources) (*agent.Resources, error) {
	p := &planner{Plan: &Plan{Create: new(agent.CreateContainerRequest)}, bundle: b, spec: b.Spec, linux: &specs.Linux{Resources: r}, host: thisHost}
	if err := p.resources(); err != nil {
		return nil, fmt.Errorf("update: %w", err)
	}
	return p.Create.Resources, nil
}

// MountOptions are those that Plan takes.
func MountOptions() []string {
	var names []string
	for name, kind := range optionKinds {
		if kind != 'x' {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Seccomp says what of seccomp Plan takes.
func Seccomp() *features.Seccomp {
	yes := true
	return &features.Seccomp{
		Enabled:        &yes,
		Actions:        []string{"SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP"},
		Operators:      []string{"SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"},
		Archs:          []string{"SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"},
		KnownFlags:     []string{"SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"},
		SupportedFlags: []string{"SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"},
	}
}
