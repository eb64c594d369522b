package trust

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"manis/api/agent"
)

// Container is one container exactly: everything of the request to create it that decides what runs
// and what it sees. What a request has and this has no place for is refused, see Of.
type Container struct {
	// Image is a note for people. What is enforced is Root.
	Image          string            `json:"image,omitempty"`
	Root           Root              `json:"root"`
	Args           []string          `json:"args"`
	Env            []string          `json:"env"`
	Cwd            string            `json:"cwd"`
	User           string            `json:"user"`
	UID            uint32            `json:"uid"`
	GID            uint32            `json:"gid"`
	Groups         []string          `json:"groups"`
	GIDs           []uint32          `json:"gids"`
	Umask          *uint32           `json:"umask"`
	Capabilities   Capabilities      `json:"capabilities"`
	NoNewPrivs     bool              `json:"noNewPrivileges"`
	Seccomp        string            `json:"seccomp"` // SHA-256 of the program, or empty
	SeccompFlags   uint32            `json:"seccompFlags"`
	Rlimits        []Rlimit          `json:"rlimits"`
	OOMScoreAdjust int32             `json:"oomScoreAdj"`
	Personality    uint32            `json:"personality"`
	Init           bool              `json:"init"`
	Hostname       string            `json:"hostname"`
	Domainname     string            `json:"domainname"`
	Mounts         []Mount           `json:"mounts"`
	Files          []File            `json:"files"`
	MaskedPaths    []string          `json:"maskedPaths"`
	ReadonlyPaths  []string          `json:"readonlyPaths"`
	Sysctls        map[string]string `json:"sysctls"`
	Limits         Limits            `json:"limits"`
	// Completes: the next container is made only when this one has ended with exit code 0.
	Completes bool `json:"completes,omitempty"`
}

// Root is the root filesystem: dm-verity's parameters of the image, and what may be written above it.
type Root struct {
	Hash           string `json:"hash"`
	Salt           string `json:"salt"`
	Algorithm      string `json:"algorithm"`
	DataBlockBytes uint32 `json:"dataBlockBytes"`
	HashBlockBytes uint32 `json:"hashBlockBytes"`
	DataBlocks     uint64 `json:"dataBlocks"`
	HashOffset     uint64 `json:"hashOffset"`
	Readonly       bool   `json:"readonly"`
	// MemoryBytes bounds the writable layer in memory; 0 is half of the machine's.
	MemoryBytes uint64 `json:"memoryBytes"`
	// DiskBytes is the size of the writable layer on a disk of the host's that the guest encrypts by keys of its own; 0: it is in memory.
	DiskBytes uint64 `json:"diskBytes,omitempty"`
}

// Capabilities are a process's five sets.
type Capabilities struct {
	Bounding    []string `json:"bounding"`
	Effective   []string `json:"effective"`
	Permitted   []string `json:"permitted"`
	Inheritable []string `json:"inheritable"`
	Ambient     []string `json:"ambient"`
}

// Rlimit is one limit of a process.
type Rlimit struct {
	Type string `json:"type"`
	Soft uint64 `json:"soft"`
	Hard uint64 `json:"hard"`
}

// Mount is one filesystem that the kernel makes, none of the host's. Type bind with a source of the form
// volume-NAME is a directory in memory that containers of the machine share.
type Mount struct {
	Destination string   `json:"destination"`
	Type        string   `json:"type"`
	Source      string   `json:"source"`
	Options     []string `json:"options"`
}

// File is one that the host writes: by its content, or what in it is fixed.
type File struct {
	Path   string `json:"path"`
	Mode   uint32 `json:"mode"`
	SHA256 string `json:"sha256"`
	// Form says how the content may vary, see vary; empty: not at all.
	Form string `json:"form,omitempty"`

	content []byte // of a request's
}

// Limits of the container's control group.
type Limits struct {
	MemoryBytes     uint64 `json:"memoryBytes"`
	MemorySwapBytes uint64 `json:"memorySwapBytes"`
	MemoryLowBytes  uint64 `json:"memoryLowBytes"`
	CPUQuota        uint64 `json:"cpuQuota"`
	CPUPeriod       uint64 `json:"cpuPeriod"`
	CPUWeight       uint64 `json:"cpuWeight"`
	CPUSet          string `json:"cpuset"`
	PIDs            uint64 `json:"pids"`
}

// kernelTypes are the filesystems of a container that are the guest kernel's own.
var kernelTypes = map[string]bool{"proc": true, "sysfs": true, "tmpfs": true, "devpts": true, "mqueue": true, "cgroup2": true}

// RefusedError says which member of a request no manifest can permit.
type RefusedError struct{ Field, Reason string }

func (e *RefusedError) Error() string { return fmt.Sprintf("%s: %s", e.Field, e.Reason) }

// Of returns what a request asks for, in the words of a manifest. A member without a place in a manifest makes it
// a RefusedError, unless it is zero, or decides nothing: the handles by which host and agent mean
// container, disk and streams (logs says whether those of the output may be there), and the terminal's size.
//
// It takes one member after the other out of a copy, and what is left in the end is refused: so a member that is
// new in the protocol is refused until somebody has thought about it here.
func Of(request *agent.CreateContainerRequest, logs bool) (*Container, error) {
	r := proto.CloneOf(request)
	c := &Container{
		Init: take(&r.Init), Hostname: take(&r.Hostname), Domainname: take(&r.Domainname),
		MaskedPaths: list(take(&r.MaskedPaths)), ReadonlyPaths: list(take(&r.ReadonlyPaths)), Sysctls: take(&r.Sysctls),
	}
	r.Id, r.FindCommand, r.Ephemeral = "", false, false
	if !r.NoDefaultMounts {
		return nil, &RefusedError{"no_default_mounts", "the list of mounts has to be complete"}
	}
	r.NoDefaultMounts = false
	for _, part := range []func(*agent.CreateContainerRequest) error{
		c.takeRoot, c.takeMounts, c.takeFiles, c.takeLimits,
		func(r *agent.CreateContainerRequest) error { return c.takeProcess(r, logs) },
	} {
		if err := part(r); err != nil {
			return nil, err
		}
	}
	if field := set(r.ProtoReflect(), ""); field != "" {
		return nil, &RefusedError{field, "there is nothing like it in the class confidential"}
	}
	return c, nil
}

func take[T any](from *T) T {
	v := *from
	*from = *new(T)
	return v
}

// list gives an empty list one form.
func list[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}

func (c *Container) takeRoot(r *agent.CreateContainerRequest) error {
	root := r.Rootfs
	v := root.GetVerity()
	if v.GetRootHash() == "" {
		return &RefusedError{"rootfs.verity", "a root filesystem is one with dm-verity"}
	}
	c.Root = Root{
		Hash: take(&v.RootHash), Salt: take(&v.Salt), Algorithm: take(&v.Algorithm),
		DataBlockBytes: take(&v.DataBlockBytes), HashBlockBytes: take(&v.HashBlockBytes),
		DataBlocks: take(&v.DataBlocks), HashOffset: take(&v.HashOffset),
		Readonly: take(&root.Readonly), MemoryBytes: take(&root.TmpfsBytes),
		DiskBytes: take(&root.SealedBytes),
	}
	root.Disk = ""
	if c.Root.DiskBytes != 0 {
		root.ScratchDisk = "" // a handle, too: nothing that is on it counts
	}
	return nil
}

func (c *Container) takeMounts(r *agent.CreateContainerRequest) error {
	c.Mounts = []Mount{}
	for i, m := range r.Mounts {
		if !kernelTypes[m.Type] && !isVolume(m) {
			return &RefusedError{fmt.Sprintf("mounts[%d].type", i), fmt.Sprintf("%q at %s would be the host's, which the class confidential has none of", m.Type, m.Destination)}
		}
		c.Mounts = append(c.Mounts, Mount{Destination: take(&m.Destination), Type: take(&m.Type), Source: take(&m.Source), Options: list(take(&m.Options))})
		m.File = false // ignored by the agent, too
		if field := set(m.ProtoReflect(), fmt.Sprintf("mounts[%d].", i)); field != "" {
			return &RefusedError{field, "there is nothing like it in the class confidential"}
		}
	}
	r.Mounts = nil
	return nil
}

// volumePrefix begins the names of what containers of one machine share.
const volumePrefix = "volume-"

func isVolume(m *agent.Mount) bool {
	name, ok := strings.CutPrefix(m.Source, volumePrefix)
	return m.Type == "bind" && ok && isWord(name)
}

func (c *Container) takeFiles(r *agent.CreateContainerRequest) error {
	c.Files = []File{}
	for i, f := range r.Files {
		content := take(&f.Content)
		c.Files = append(c.Files, File{Path: take(&f.Path), Mode: take(&f.Mode), SHA256: sum(content), content: content})
		if field := set(f.ProtoReflect(), fmt.Sprintf("files[%d].", i)); field != "" {
			return &RefusedError{field, "there is nothing like it in the class confidential"}
		}
	}
	r.Files = nil
	return nil
}

func (c *Container) takeLimits(r *agent.CreateContainerRequest) error {
	l := r.Resources
	if l == nil {
		return nil
	}
	c.Limits = Limits{
		MemoryBytes: take(&l.MemoryBytes), MemorySwapBytes: take(&l.MemorySwapBytes), MemoryLowBytes: take(&l.MemoryLowBytes),
		CPUQuota: take(&l.CpuQuotaUs), CPUPeriod: take(&l.CpuPeriodUs), CPUWeight: take(&l.CpuWeight), CPUSet: take(&l.Cpuset), PIDs: take(&l.Pids),
	}
	return nil
}

func (c *Container) takeProcess(r *agent.CreateContainerRequest, logs bool) error {
	p := r.Process
	if p == nil {
		return &RefusedError{"process", "there is none"}
	}
	c.Args, c.Env, c.Cwd = list(take(&p.Args)), list(take(&p.Env)), take(&p.Cwd)
	c.User, c.UID, c.GID = take(&p.User), take(&p.Uid), take(&p.Gid)
	c.Groups, c.GIDs, c.Umask = list(take(&p.AdditionalGroups)), list(take(&p.AdditionalGids)), take(&p.Umask)
	caps := p.Capabilities
	if caps == nil {
		caps = new(agent.Capabilities)
	}
	c.Capabilities = Capabilities{
		Bounding: list(take(&caps.Bounding)), Effective: list(take(&caps.Effective)), Permitted: list(take(&caps.Permitted)),
		Inheritable: list(take(&caps.Inheritable)), Ambient: list(take(&caps.Ambient)),
	}
	c.NoNewPrivs, c.SeccompFlags = take(&p.NoNewPrivileges), take(&p.SeccompFlags)
	if program := take(&p.Seccomp); len(program) > 0 {
		c.Seccomp = sum(program)
	}
	c.Rlimits = []Rlimit{}
	for i, l := range p.Rlimits {
		c.Rlimits = append(c.Rlimits, Rlimit{Type: take(&l.Type), Soft: take(&l.Soft), Hard: take(&l.Hard)})
		if field := set(l.ProtoReflect(), fmt.Sprintf("process.rlimits[%d].", i)); field != "" {
			return &RefusedError{field, "there is nothing like it in the class confidential"}
		}
	}
	p.Rlimits = nil
	c.OOMScoreAdjust, c.Personality = take(&p.OomScoreAdj), take(&p.Personality)
	p.Rows, p.Columns = 0, 0
	switch {
	case p.Terminal:
		return &RefusedError{"process.terminal", "the class confidential has no terminals"}
	case p.Stdin != 0:
		return &RefusedError{"process.stdin", "the class confidential takes no input from the host"}
	case !logs && (p.Stdout != 0 || p.Stderr != 0):
		return &RefusedError{"process.stdout", `the manifest does not permit the call "logs"`}
	}
	p.Stdout, p.Stderr = 0, 0
	return nil
}

func sum(b []byte) string {
	d := sha256.Sum256(b)
	return hex.EncodeToString(d[:])
}

// set names a member of a message that is not zero, or that this release does not know; empty: there is none.
func set(m protoreflect.Message, prefix string) string {
	if len(m.GetUnknown()) > 0 {
		return prefix + "(a member that this release does not know)"
	}
	found := ""
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := prefix + string(f.Name())
		if f.Message() != nil && !f.IsList() && !f.IsMap() {
			found = set(v.Message(), name+".")
			return found == ""
		}
		found = name
		return false
	})
	return found
}
