// Package spec turns what a user declared into what the agent carries out: from
// a container.Config to the agent's requests, with the defaults that users of docker
// expect, and to the size of the virtual machine. It is pure: it starts nothing
// and touches no file but the host's memory size. It must not know how the
// machine is run; an Environment tells it the names that host and guest agreed on.
package spec

import (
	"fmt"
	"path"
	"runtime"
	"slices"
	"strings"

	"manis/api/agent"
	"manis/container"
	"manis/network"
	"manis/seccomp"
)

// Environment is what of the machine a container's request refers to.
type Environment struct {
	// RootDisk is the serial of the image's disk, Verity how it is checked.
	RootDisk string
	Verity   *agent.Verity
	// ScratchDisk is the serial of the writable layer's disk; empty keeps it in
	// the machine's memory.
	ScratchDisk string
	// BindsTag and VolumesTag are the 9p exports whose entries are named by the
	// index of a mount in Config.Mounts. "binds" and "volumes" when empty.
	BindsTag, VolumesTag string
	// Filled holds the indexes of volumes known to have content, which the image's
	// is not copied to. The others must be exported writable, also for a read-only
	// mount. The agent by itself copies to empty ones only.
	Filled map[int]bool
	// Network is what the stack gave the guest; nil without a network.
	Network *network.Addresses
	// Rows and Columns are the size of the terminal, 0 if unknown.
	Rows, Columns uint32
}

// Build returns the request that creates the container. The caller fills in
// the tokens of the process's streams.
func Build(cfg *container.Config, env Environment) (*agent.CreateContainerRequest, error) {
	r := &agent.CreateContainerRequest{
		Id: cfg.ID,
		Rootfs: &agent.RootFS{
			Disk: env.RootDisk, Verity: env.Verity, Readonly: cfg.ReadOnly,
			ScratchDisk: env.ScratchDisk,
		},
		Hostname: cfg.Hostname, Domainname: cfg.Domainname,
		Init: cfg.Init, Privileged: cfg.Security.Privileged,
		// The list of mounts below is complete, and its order matters.
		NoDefaultMounts: true,
	}
	switch {
	case env.ScratchDisk != "" && cfg.Class == container.Confidential:
		r.Rootfs.SealedBytes = cfg.Scratch.Bytes
	case env.ScratchDisk == "":
		r.Rootfs.TmpfsBytes = cfg.Scratch.Bytes
	}
	r.MaskedPaths, r.ReadonlyPaths = hiddenPaths(&cfg.Security)
	var err error
	if r.Mounts, err = mounts(cfg, env); err != nil {
		return nil, err
	}
	if r.Files, err = files(cfg, env); err != nil {
		return nil, err
	}
	if r.Devices, err = devices(cfg.Resources.DeviceList); err != nil {
		return nil, err
	}
	if r.Resources, err = resources(&cfg.Resources); err != nil {
		return nil, err
	}
	if r.Sysctls, err = sysctls(cfg); err != nil {
		return nil, err
	}
	if r.Process, err = process(cfg, &cfg.Process, cfg.TTY, cfg.Security.Privileged); err != nil {
		return nil, err
	}
	r.Process.Rows, r.Process.Columns = env.Rows, env.Columns
	return r, nil
}

// ExecOptions is a further process in a running container. What is empty is
// taken from the container.
type ExecOptions struct {
	Args []string
	// Env is added to the container's.
	Env        []string
	Dir        string
	User       string
	TTY        bool
	Privileged bool
	// Rows and Columns are the size of the terminal, 0 if unknown.
	Rows, Columns uint32
}

// BuildExec returns the process for a request to execute it. The caller fills
// in the tokens of its streams.
func BuildExec(cfg *container.Config, o ExecOptions) (*agent.Process, error) {
	p := cfg.Process
	p.Args = o.Args
	p.Env = merge(p.Env, o.Env)
	if o.Dir != "" {
		p.Dir = o.Dir
	}
	if o.User != "" {
		p.User = o.User
	}
	process, err := process(cfg, &p, o.TTY, o.Privileged || cfg.Security.Privileged)
	if err != nil {
		return nil, fmt.Errorf("execute in container: %w", err)
	}
	process.Rows, process.Columns = o.Rows, o.Columns
	return process, nil
}

// process translates a process of the container.
func process(cfg *container.Config, p *container.Process, tty, privileged bool) (*agent.Process, error) {
	if len(p.Args) == 0 || p.Args[0] == "" {
		return nil, fmt.Errorf("no command specified")
	}
	for _, a := range p.Args {
		if strings.IndexByte(a, 0) >= 0 {
			return nil, fmt.Errorf("argument %q holds a NUL byte", a)
		}
	}
	dir := p.Dir
	if dir == "" {
		dir = "/"
	}
	if !path.IsAbs(dir) {
		return nil, fmt.Errorf("the working directory %q is invalid, it needs to be an absolute path", dir)
	}
	bounding, err := capabilities(&cfg.Security, privileged)
	if err != nil {
		return nil, err
	}
	a := &agent.Process{
		Args: p.Args, Cwd: path.Clean(dir), User: p.User, AdditionalGroups: p.AddGroups, Umask: p.Umask,
		Capabilities:    sets(bounding, p.User),
		NoNewPrivileges: cfg.Security.NoNewPrivileges,
		Terminal:        tty,
		OomScoreAdj:     int32(cfg.Resources.OOMScore),
	}
	if a.Env, err = environment(cfg, p.Env, tty); err != nil {
		return nil, err
	}
	if a.Rlimits, err = rlimits(cfg.Resources.Ulimits); err != nil {
		return nil, err
	}
	filter, err := filter(&cfg.Security, bounding)
	if err != nil {
		return nil, err
	}
	a.Seccomp, a.SeccompFlags = filter.Program, filter.Flags
	return a, nil
}

// filter compiles the container's seccomp profile. The capabilities of the process
// decide what the profile allows. A privileged container has none unless it names
// one, like docker's.
func filter(s *container.Security, bounding []string) (seccomp.Filter, error) {
	var profile *seccomp.Profile
	switch {
	case s.Seccomp == "unconfined", s.Seccomp == "" && s.Privileged:
		return seccomp.Filter{}, nil
	case s.Seccomp == "":
		profile = seccomp.Default()
	default:
		var err error
		if profile, err = seccomp.Parse([]byte(s.Seccomp)); err != nil {
			return seccomp.Filter{}, err
		}
	}
	rules, err := profile.Resolve(seccomp.Target{GOARCH: runtime.GOARCH, Capabilities: bounding})
	if err != nil {
		return seccomp.Filter{}, err
	}
	return seccomp.Compile(rules, runtime.GOARCH)
}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment gives a process what docker gives it besides its own variables. HOME
// is left to the agent, which knows the user.
func environment(cfg *container.Config, own []string, tty bool) ([]string, error) {
	given := []string{"PATH=" + defaultPath, "HOSTNAME=" + cfg.Hostname}
	if tty {
		given = append(given, "TERM=xterm")
	}
	for _, e := range own {
		name, _, ok := strings.Cut(e, "=")
		if !ok || name == "" || strings.IndexByte(e, 0) >= 0 {
			return nil, fmt.Errorf("invalid environment variable: %q", e)
		}
	}
	return merge(given, own), nil
}

// merge sets the variables of b in a, in order of first mention.
func merge(a, b []string) []string {
	index := make(map[string]int, len(a)+len(b))
	var list []string
	for _, pair := range slices.Concat(a, b) {
		name, _, _ := strings.Cut(pair, "=")
		if i, ok := index[name]; ok {
			list[i] = pair
			continue
		}
		index[name] = len(list)
		list = append(list, pair)
	}
	return list
}
