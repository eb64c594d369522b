package bundle

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"manis/api/agent"
	"manis/container/spec"
	"manis/seccomp"
)

// process translates the container's first process.
func (p *planner) process() error {
	s := p.spec.Process
	if s == nil {
		return errors.New("process: is missing")
	}
	a, err := p.bundle.translate(s, p.warn)
	if err != nil {
		return err
	}
	p.Create.Process = a
	return nil
}

// Process translates a further process of the container, which has the form of config.json's
// process. What it leaves out is taken from the container's first process where runc does so:
// capabilities, limits, the score for the OOM killer, scheduling, and the CPUs. The filter of
// system calls and the personality are always the container's. Tokens are left to the caller.
func (b *Bundle) Process(s *specs.Process) (*agent.Process, error) {
	if s == nil {
		return nil, errors.New("process: is missing")
	}
	further := *s
	if first := b.Spec.Process; first != nil {
		if further.Capabilities == nil {
			further.Capabilities = first.Capabilities
		}
		if len(further.Rlimits) == 0 {
			further.Rlimits = first.Rlimits
		}
		if further.OOMScoreAdj == nil {
			further.OOMScoreAdj = first.OOMScoreAdj
		}
		if further.Scheduler == nil {
			further.Scheduler = first.Scheduler
		}
		if further.IOPriority == nil {
			further.IOPriority = first.IOPriority
		}
		if further.ExecCPUAffinity == nil {
			further.ExecCPUAffinity = first.ExecCPUAffinity
		}
	}
	a, err := b.translate(&further, func(string, ...any) {})
	if err != nil {
		return nil, err
	}
	if further.ExecCPUAffinity != nil {
		if a.CpuAffinity, err = affinity(further.ExecCPUAffinity); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// translate does what first and further processes have in common.
func (b *Bundle) translate(s *specs.Process, warn func(format string, args ...any)) (*agent.Process, error) {
	if s.CommandLine != "" {
		return nil, errors.New("process.commandLine: is for Windows, Linux takes process.args")
	}
	if s.User.Username != "" {
		return nil, errors.New("process.user.username: is for Windows, Linux takes process.user.uid")
	}
	if len(s.Args) == 0 {
		return nil, errors.New("process.args: must have at least one entry")
	}
	if err := noNUL("process.args", s.Args); err != nil {
		return nil, err
	}
	if err := insidePath(s.Cwd); err != nil {
		return nil, fmt.Errorf("process.cwd: %w", err)
	}
	for i, e := range s.Env {
		if at := strings.IndexByte(e, '='); at <= 0 {
			return nil, fmt.Errorf("process.env[%d]: must be of the form NAME=VALUE, is %q", i, e)
		}
	}
	if err := noNUL("process.env", s.Env); err != nil {
		return nil, err
	}
	if s.User.UID == ^uint32(0) || s.User.GID == ^uint32(0) || slices.Contains(s.User.AdditionalGids, ^uint32(0)) {
		return nil, fmt.Errorf("process.user: %d is not an id", ^uint32(0))
	}
	a := &agent.Process{
		Args: s.Args, Env: lastOfEach(s.Env), Cwd: s.Cwd,
		Uid: s.User.UID, Gid: s.User.GID, AdditionalGids: s.User.AdditionalGids, Umask: s.User.Umask,
		NoNewPrivileges: s.NoNewPrivileges, Terminal: s.Terminal,
		Capabilities: capabilities(s.Capabilities, warn),
	}
	if s.User.Umask != nil && *s.User.Umask > 0o777 {
		return nil, fmt.Errorf("process.user.umask: must be at most 0777, is %#o", *s.User.Umask)
	}
	if box := s.ConsoleSize; s.Terminal && box != nil {
		a.Rows, a.Columns = uint32(min(box.Height, 65535)), uint32(min(box.Width, 65535))
	}
	if n := s.OOMScoreAdj; n != nil {
		if *n < -1000 || *n > 1000 {
			return nil, fmt.Errorf("process.oomScoreAdj: must be -1000 to 1000, is %d", *n)
		}
		a.OomScoreAdj = int32(*n)
	}
	if s.ApparmorProfile != "" && s.ApparmorProfile != "unconfined" {
		warn("process.apparmorProfile: AppArmor profiles belong to the host; the container is confined by the virtual machine")
	}
	if s.SelinuxLabel != "" {
		warn("process.selinuxLabel: SELinux labels belong to the host; the container is confined by the virtual machine")
	}
	var err error
	if a.Rlimits, err = rlimits(s.Rlimits, warn); err != nil {
		return nil, err
	}
	if a.Scheduler, err = scheduler(s.Scheduler); err != nil {
		return nil, err
	}
	if a.IoPriority, err = ioPriority(s.IOPriority); err != nil {
		return nil, err
	}
	if s.ExecCPUAffinity != nil {
		// It is for the processes to come; a mistake is told now.
		if _, err := affinity(s.ExecCPUAffinity); err != nil {
			return nil, err
		}
	}
	if b.Spec.Linux == nil {
		return a, nil
	}
	if a.Personality, err = personality(b.Spec.Linux.Personality); err != nil {
		return nil, err
	}
	if filter := b.Spec.Linux.Seccomp; filter != nil {
		f, err := seccomp.Compile(filter, runtime.GOARCH)
		if err != nil {
			return nil, fmt.Errorf("linux.seccomp: %w", err)
		}
		a.Seccomp, a.SeccompFlags = f.Program, f.Flags
	}
	return a, nil
}

// lastOfEach leaves out what a later variable of the same name replaces: a program would see
// the first of them, where runc lets the last count.
func lastOfEach(env []string) []string {
	seen := make(map[string]bool, len(env))
	var list []string
	for _, e := range slices.Backward(env) {
		if name, _, _ := strings.Cut(e, "="); !seen[name] {
			seen[name] = true
			list = append(list, e)
		}
	}
	slices.Reverse(list)
	return list
}

// noNUL checks strings that become C strings.
func noNUL(field string, list []string) error {
	for i, s := range list {
		if strings.IndexByte(s, 0) >= 0 {
			return fmt.Errorf("%s[%d]: %q holds a NUL byte", field, i, s)
		}
	}
	return nil
}

// capabilities keeps those that the guest's kernel has: an engine on a newer kernel may name
// more. Without any the process has none.
func capabilities(c *specs.LinuxCapabilities, warn func(format string, args ...any)) *agent.Capabilities {
	if c == nil {
		return new(agent.Capabilities)
	}
	known := spec.Capabilities()
	keep := func(names []string) []string {
		var list []string
		for _, name := range names {
			if slices.Contains(known, name) {
				list = append(list, name)
			} else {
				warn("process.capabilities: the guest's kernel has no %.40q", name)
			}
		}
		return list
	}
	a := &agent.Capabilities{
		Bounding: keep(c.Bounding), Effective: keep(c.Effective), Permitted: keep(c.Permitted),
		Inheritable: keep(c.Inheritable),
	}
	for _, name := range keep(c.Ambient) {
		if slices.Contains(a.Permitted, name) && slices.Contains(a.Inheritable, name) {
			a.Ambient = append(a.Ambient, name)
		} else {
			// As in the configuration that `runc spec` writes.
			warn("process.capabilities.ambient: %s is left out, since it is not both permitted and inheritable (capabilities(7))", name)
		}
	}
	return a
}

// limitNames are those of getrlimit(2).
var limitNames = strings.Fields(`
	RLIMIT_AS RLIMIT_CORE RLIMIT_CPU RLIMIT_DATA RLIMIT_FSIZE RLIMIT_LOCKS RLIMIT_MEMLOCK RLIMIT_MSGQUEUE
	RLIMIT_NICE RLIMIT_NOFILE RLIMIT_NPROC RLIMIT_RSS RLIMIT_RTPRIO RLIMIT_RTTIME RLIMIT_SIGPENDING RLIMIT_STACK`)

// maxFiles is the guest's fs.nr_open, the highest limit of open files that its kernel takes.
const maxFiles = 1 << 20

func rlimits(list []specs.POSIXRlimit, warn func(format string, args ...any)) ([]*agent.Rlimit, error) {
	var out []*agent.Rlimit
	for i, l := range list {
		field := fmt.Sprintf("process.rlimits[%d]", i)
		if !slices.Contains(limitNames, l.Type) {
			return nil, fmt.Errorf("%s.type: there is no limit %q", field, l.Type)
		}
		if l.Soft > l.Hard {
			return nil, fmt.Errorf("%s: the soft limit of %s, %d, is above the hard one, %d", field, l.Type, l.Soft, l.Hard)
		}
		for _, other := range out {
			if other.Type == l.Type {
				return nil, fmt.Errorf("%s.type: %s is there already", field, l.Type)
			}
		}
		a := &agent.Rlimit{Type: l.Type, Soft: l.Soft, Hard: l.Hard}
		if l.Type == "RLIMIT_NOFILE" && l.Hard > maxFiles {
			warn("%s: %s is lowered to %d, the most that the guest's kernel takes", field, l.Type, maxFiles)
			a.Soft, a.Hard = min(l.Soft, maxFiles), maxFiles
		}
		out = append(out, a)
	}
	return out, nil
}

// personality gives the argument of personality(2).
func personality(s *specs.LinuxPersonality) (uint32, error) {
	if s == nil {
		return 0, nil
	}
	if len(s.Flags) > 0 {
		return 0, fmt.Errorf("linux.personality.flags: %q is not known: none is defined", s.Flags[0])
	}
	switch s.Domain {
	case specs.PerLinux:
		return 0, nil
	case specs.PerLinux32:
		return 8, nil
	}
	return 0, fmt.Errorf("linux.personality.domain: must be LINUX or LINUX32, is %q", s.Domain)
}
