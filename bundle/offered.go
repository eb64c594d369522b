package bundle

import (
	"runtime"
	"slices"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"

	"manis/container/spec"
	"manis/version"
)

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

// Features says what of the specification there is, as the structure of that name in it, and what a machine needs beyond a
// container's limits.
func Features() *features.Features {
	yes, no := true, false
	return &features.Features{
		OCIVersionMin: "1.0.0",
		OCIVersionMax: specs.Version,
		Hooks:         []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"},
		MountOptions:  MountOptions(),
		Linux: &features.Linux{
			Namespaces:      []string{"cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"},
			Capabilities:    spec.Capabilities(),
			Cgroup:          &features.Cgroup{V1: &yes, V2: &yes, Systemd: &no, SystemdUser: &no, Rdma: &no},
			Seccomp:         Seccomp(),
			Apparmor:        &features.Apparmor{Enabled: &no},
			Selinux:         &features.Selinux{Enabled: &no},
			IntelRdt:        &features.IntelRdt{Enabled: &no},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &no}},
		},
		Annotations: map[string]string{
			"manis.version": version.Version,
			// What a machine takes of the host's memory besides its container's limit: a part that does not depend on it, and the
			// limit's part, as its divisor.
			"manis.overhead.memoryBytes":   strconv.Itoa(int(spec.GuestOverhead(0) + spec.HostOverhead)),
			"manis.overhead.memoryDivisor": strconv.Itoa(int(uint64(1<<20) / (spec.GuestOverhead(1<<20) - spec.GuestOverhead(0)))),
			// Of emulated machines. Where they run on KVM, checkpoint says so.
			"manis.checkpoint.enabled": strconv.FormatBool(runtime.GOARCH == "amd64"),
		},
	}
}
