package bundle

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"manis/api/agent"
	"manis/cgroup"
	"manis/container"
)

// Environment is what of the machine the plan refers to.
type Environment struct {
	// BindsTag is the tag of the 9p share that holds the Binds by their names; "binds" when
	// empty.
	BindsTag string
	// Joins: the container goes into a machine that runs. Only what such a one is shown of the host's files follows later mounts.
	Joins bool
	// Disks: the machine can be given block devices of the host.
	Disks bool
	// Maps: the machine can be shown the host's files with mapped ids, and a user namespace of another container can be joined
	// by making one with the same ids.
	Maps bool
}

// Plan is what a bundle asks of the host and of the guest.
type Plan struct {
	// Create is complete but for Id, the tokens of the process's streams, whether
	// namespaces are shared with other containers of the sandbox, and of Rootfs all
	// but Readonly.
	Create *agent.CreateContainerRequest
	// Root is the absolute path of the root filesystem on the host, a directory.
	Root string
	// Binds are exported to the machine.
	Binds []Bind
	// Disks are block devices of the host that the machine is to have.
	Disks []Disk
	// Resources are what the size of the machine depends on, with spec.Machine. CPUs are
	// no more than the host has, and memory is no less than a machine needs: the limits of
	// the cgroup, in Create, are the ones that were asked for.
	Resources container.Resources
	// BlockIO is for the machine's control group on the host; nil: no limits.
	BlockIO *cgroup.BlockIO
	Net     Namespace
	// Privileged is set for what engines make of a privileged container.
	Privileged bool
	// Namespaces are those of the configuration, with the path of the one to join or
	// empty for a new one; what is absent is the host's. Only those of the types pid,
	// ipc, uts and network can have a path: which container's they are, the caller knows.
	Namespaces map[specs.LinuxNamespaceType]string
	// Warnings say what was accepted without effect in a virtual machine, and why.
	Warnings []string
}

// Bind is a directory or file of the host that the container sees live.
type Bind struct {
	// Name is its entry in the share, a decimal number.
	Name string
	// HostPath is absolute; symbolic links are to be followed.
	HostPath string
	// ReadOnly holds for all mounts below it, unless WritableBelow is set: then for its own alone.
	ReadOnly, WritableBelow bool
	// File is set for a regular file, else it is a directory.
	File bool
	// Follows asks for what is mounted below it on the host later.
	Follows bool
	// Opened is what HostPath has led to when it was opened, by Plan.Open or Plan.Hold; nil: it was not, and nobody has decided on it.
	Opened *os.File
	// Projected: it is a volume whose files the kubelet replaces while containers have it.
	Projected bool
	// UIDs and GIDs are the ids that owners have on the host ("ContainerID" of the runtime-spec) and for the machine ("HostID"), for which
	// MapsBelow counts what is mounted below it, too; nil: the same.
	UIDs, GIDs []specs.LinuxIDMapping
	MapsBelow  bool
}

// Disk is a block device of the host.
type Disk struct {
	// Major and Minor are its number on the host.
	Major, Minor uint32
	// ReadOnly: no rule of the configuration lets the container write to it.
	ReadOnly bool
	// Device is its node in the container; the agent is to be told the disk's serial.
	Device *agent.Device
}

// Namespace is a network namespace: the host's by the zero value.
type Namespace struct {
	// New asks for one of the container's own.
	New bool
	// Path is that of one on the host to join.
	Path string
}

// host is what a plan looks at outside the bundle.
type host struct {
	stat func(path string) (os.FileInfo, error)
	// filesystem gives type (statfs(2), f_type) and size in bytes of the one that path is on.
	filesystem func(path string) (kind int64, size uint64, err error)
	// mountsBelow reports whether something is mounted below a directory.
	mountsBelow func(path string) (bool, error)
	name        func() (string, error)
	// capable reports whether this process could give a capability, by its number, to another:
	// an engine that starts it can give no more.
	capable func(capability int) bool
	cpus    int
}

var thisHost = host{stat: os.Stat, filesystem: statfs, mountsBelow: mountsBelow, name: os.Hostname, capable: capable, cpus: runtime.NumCPU()}

func statfs(path string) (int64, uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, err
	}
	return int64(st.Type), st.Blocks * uint64(st.Bsize), nil
}

func capable(capability int) bool {
	has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(capability), 0, 0, 0)
	return err == nil && has == 1
}

// planner collects a plan.
type planner struct {
	*Plan
	bundle *Bundle
	spec   *specs.Spec
	linux  *specs.Linux // never nil
	host   host
	tag    string
	joins  bool
	disks  bool
	maps   bool
	// missing are the host's devices that a privileged container does without.
	missing []string
}

// warn adds a warning once.
func (p *planner) warn(format string, args ...any) {
	if w := fmt.Sprintf(format, args...); !slices.Contains(p.Warnings, w) {
		p.Warnings = append(p.Warnings, w)
	}
}

// Plan checks the configuration and translates it. Errors begin with config.json and the
// member that is at fault.
func (b *Bundle) Plan(env Environment) (*Plan, error) {
	p, err := b.plan(env, thisHost)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", configName, err)
	}
	return p, nil
}

func (b *Bundle) plan(env Environment, h host) (*Plan, error) {
	p := &planner{
		// The list of mounts is complete.
		Plan:   &Plan{Create: &agent.CreateContainerRequest{NoDefaultMounts: true, Rootfs: new(agent.RootFS)}},
		bundle: b, spec: b.Spec, linux: b.Spec.Linux, host: h, tag: env.BindsTag, joins: env.Joins, disks: env.Disks, maps: env.Maps,
	}
	if p.tag == "" {
		p.tag = "binds"
	}
	if p.linux == nil {
		p.linux = new(specs.Linux)
	}
	for _, step := range []func() error{
		p.platform, p.root, p.namespaces, p.names, p.process, p.mounts, p.devices, p.resources, p.sysctls,
		p.hiddenPaths, p.userNamespace, p.timeNamespace, p.hooks,
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	p.Privileged = p.privileged()
	return p.Plan, nil
}

// platform refuses what is for other systems or other runtimes.
func (p *planner) platform() error {
	s, l := p.spec, p.linux
	for name, present := range map[string]bool{
		"solaris": s.Solaris != nil, "windows": s.Windows != nil, "zos": s.ZOS != nil, "freebsd": s.FreeBSD != nil,
	} {
		if present {
			return fmt.Errorf("%s: this is a container for another system than Linux", name)
		}
	}
	switch boot := s.Annotations["manis.boot"]; boot {
	case "", "auto", "template", "cold":
	default:
		return fmt.Errorf("annotations: manis.boot: %.40q is not one of auto, template and cold", boot)
	}
	switch {
	case s.VM != nil:
		return fmt.Errorf("vm: the virtual machine, its kernel and its devices are chosen here and cannot be given")
	case l.IntelRdt != nil:
		return fmt.Errorf("linux.intelRdt: caches and memory bandwidth of the processor cannot be divided from inside a virtual machine")
	case len(l.NetDevices) > 0:
		return fmt.Errorf("linux.netDevices: devices of the host would have to be passed through to the virtual machine, which is not supported")
	}
	if l.MountLabel != "" {
		p.warn("linux.mountLabel: SELinux labels belong to the host; in the virtual machine nothing is labelled")
	}
	return p.memoryPolicy()
}

// memoryPolicy accepts what holds on a machine with one memory node.
func (p *planner) memoryPolicy() error {
	m := p.linux.MemoryPolicy
	if m == nil {
		return nil
	}
	switch m.Mode {
	case specs.MpolDefault, specs.MpolLocal, specs.MpolBind, specs.MpolInterleave, specs.MpolWeightedInterleave, specs.MpolPreferred, specs.MpolPreferredMany:
	default:
		return fmt.Errorf("linux.memoryPolicy.mode: %q is not one", m.Mode)
	}
	if err := oneNode(m.Nodes); err != nil {
		return fmt.Errorf("linux.memoryPolicy.nodes: %w", err)
	}
	p.warn("linux.memoryPolicy: without effect, since the virtual machine has one memory node")
	return nil
}

// oneNode accepts a list that names no memory node but the first.
func oneNode(list string) error {
	nodes, err := parseList(list)
	if err != nil {
		return err
	}
	if len(nodes) > 0 && (len(nodes) != 1 || nodes[0] != 0) {
		return fmt.Errorf("the virtual machine has one memory node, 0, and not %s", list)
	}
	return nil
}

// root finds the root filesystem.
func (p *planner) root() error {
	r := p.spec.Root
	if r == nil || r.Path == "" {
		return fmt.Errorf("root.path: is missing")
	}
	if strings.IndexByte(r.Path, 0) >= 0 {
		return fmt.Errorf("root.path: %q holds a NUL byte", r.Path)
	}
	p.Root = p.absolute(r.Path)
	info, err := p.host.stat(p.Root)
	if err != nil {
		return fmt.Errorf("root.path: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("root.path: %s is not a directory", p.Root)
	}
	p.Create.Rootfs.Readonly = r.Readonly
	switch m := p.linux.RootfsPropagation; m {
	case "", "private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable":
		p.Create.RootPropagation = m
	default:
		return fmt.Errorf("linux.rootfsPropagation: %q is not one (private, slave, shared and unbindable are)", m)
	}
	return nil
}

// absolute gives a path of the host that may be relative to the bundle.
func (p *planner) absolute(name string) string {
	if filepath.IsAbs(name) {
		return filepath.Clean(name)
	}
	return filepath.Join(p.bundle.Dir, name)
}

// hiddenPaths copies the two lists.
func (p *planner) hiddenPaths() error {
	for _, list := range []struct {
		name  string
		paths []string
		into  *[]string
	}{
		{"linux.maskedPaths", p.linux.MaskedPaths, &p.Create.MaskedPaths},
		{"linux.readonlyPaths", p.linux.ReadonlyPaths, &p.Create.ReadonlyPaths},
	} {
		for i, name := range list.paths {
			if err := insidePath(name); err != nil {
				return fmt.Errorf("%s[%d]: %w", list.name, i, err)
			}
		}
		*list.into = list.paths
	}
	return nil
}

// insidePath checks an absolute path of the container.
func insidePath(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("must be an absolute path, is empty")
	case !strings.HasPrefix(name, "/"):
		return fmt.Errorf("must be an absolute path, is %q", name)
	case strings.IndexByte(name, 0) >= 0:
		return fmt.Errorf("%q holds a NUL byte", name)
	case len(name) >= unix.PathMax:
		return fmt.Errorf("%.40q... is longer than %d bytes", name, unix.PathMax-1)
	}
	return nil
}

// hooks translates those that run in the container, and checks the others, which are the
// caller's.
func (p *planner) hooks() error {
	h := p.spec.Hooks
	if h == nil {
		return nil
	}
	for _, list := range []struct {
		name  string
		hooks []specs.Hook
	}{
		//lint:ignore SA1019 engines still use it.
		{"prestart", h.Prestart}, {"createRuntime", h.CreateRuntime}, {"createContainer", h.CreateContainer},
		{"startContainer", h.StartContainer}, {"poststart", h.Poststart}, {"poststop", h.Poststop},
	} {
		for i, hook := range list.hooks {
			field := fmt.Sprintf("hooks.%s[%d]", list.name, i)
			if err := insidePath(hook.Path); err != nil {
				return fmt.Errorf("%s.path: %w", field, err)
			}
			if hook.Timeout != nil && (*hook.Timeout <= 0 || *hook.Timeout > maxHookSeconds) {
				return fmt.Errorf("%s.timeout: must be 1 to %d seconds, is %d", field, maxHookSeconds, *hook.Timeout)
			}
			if err := noNUL(field+".args", hook.Args); err != nil {
				return err
			}
			if err := noNUL(field+".env", hook.Env); err != nil {
				return err
			}
		}
	}
	for _, hook := range h.StartContainer {
		a := &agent.Hook{Path: hook.Path, Args: hook.Args, Env: hook.Env}
		if hook.Timeout != nil {
			a.TimeoutSeconds = uint32(*hook.Timeout)
		}
		p.Create.StartHooks = append(p.Create.StartHooks, a)
	}
	if len(p.Create.StartHooks) == 0 {
		return nil
	}
	// The agent adds what is not known before: the id and the process.
	state, err := json.Marshal(struct {
		Version     string               `json:"ociVersion"`
		Status      specs.ContainerState `json:"status"`
		Bundle      string               `json:"bundle"`
		Annotations map[string]string    `json:"annotations,omitempty"`
	}{specs.Version, specs.StateCreated, p.bundle.Dir, p.spec.Annotations})
	if err != nil {
		return fmt.Errorf("annotations: %w", err)
	}
	p.Create.HookState = string(state)
	return nil
}

// maxHookSeconds is a day's.
const maxHookSeconds = 86400
