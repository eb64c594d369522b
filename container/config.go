// Package container is what a user declares and what became of it: the
// configuration of a container, its state, and the crash-safe directory that holds
// both. A container's monitor writes the state while it lives; every
// other process reads it and asks the monitor for the rest.
//
// The package knows neither VMs nor flags: front ends fill a Config, the monitor
// carries it out.
package container

import (
	"net/netip"
	"time"
)

// Config is what the user asked for, complete: defaults and the image's own
// configuration are already merged in. It never changes after creation, but for
// the name (rename) and the restart policy (update).
type Config struct {
	ID      string    // 64 hex digits
	Name    string    // without a leading slash
	Created time.Time // UTC

	Image    string // the reference as the user gave it
	ImageID  string // config digest, "sha256:..."
	Platform string // "linux/amd64"

	Process Process
	TTY     bool
	// OpenStdin keeps the container's stdin open for attachments (-i).
	OpenStdin bool
	// StdinOnce closes stdin when the first attachment ends.
	StdinOnce bool

	Hostname   string
	Domainname string
	Labels     map[string]string `json:",omitempty"`

	Resources Resources
	Security  Security
	Network   Network
	Mounts    []Mount           `json:",omitempty"`
	Sysctls   map[string]string `json:",omitempty"`
	Init      bool
	ReadOnly  bool
	// ShmBytes is the size of /dev/shm.
	ShmBytes uint64
	// Scratch is where the writable layer lives.
	Scratch Scratch

	StopSignal  string        // name or number; default SIGTERM
	StopTimeout time.Duration // before SIGKILL; default 10 s
	Restart     Restart
	Health      *Health `json:",omitempty"`
	AutoRemove  bool
	Log         Log

	// Accel is auto, kvm or tcg.
	Accel string
	// Boot is how its machine comes to be: from a template ("template"), by booting
	// ("cold"), or by a template unless there can be none ("auto", or empty).
	Boot string `json:",omitempty"`
	// Class says what is trusted: "" is the host; "confidential" is not the host's administrator, see Trust.
	Class string `json:",omitempty"`
	// Trust is what a container of the class confidential is started with.
	Trust *Trust `json:",omitempty"`
	// Snapshot is the one that the container goes on from at its first start.
	Snapshot string `json:",omitempty"`
}

// Confidential is the class whose containers the host's administrator is not trusted with.
const Confidential = "confidential"

// Trust is what the machine of a confidential container is handed.
type Trust struct {
	// Manifest is the owner's signed manifest, a DSSE envelope.
	Manifest []byte
	// Owner is the owner's public key, PKIX DER.
	Owner []byte
	// Broker is where to find the manifest's broker; empty is where the manifest says.
	Broker string `json:",omitempty"`
	// Bundle is a file outside the container's directory that gets the audit bundle, too; empty: there is none.
	Bundle string `json:",omitempty"`
}

// Process is the first process of a container, or one that exec adds.
type Process struct {
	// Args is the argument vector: entrypoint and command joined.
	Args []string
	// Entrypoint and Cmd are the two parts, as inspect shows them.
	Entrypoint []string `json:",omitempty"`
	Cmd        []string `json:",omitempty"`
	Env        []string // KEY=value, without duplicates
	Dir        string   // absolute; created if absent
	// User is "", "name", "uid", "name:group" or "uid:gid".
	User      string
	AddGroups []string `json:",omitempty"`
	Umask     *uint32  `json:",omitempty"`
}

// Resources are the limits of the container and with them the VM's size.
type Resources struct {
	// MemoryBytes is the container's limit; 0 means the default VM size
	// without a further limit.
	MemoryBytes uint64
	// MemorySwapBytes and MemoryReservationBytes as docker's flags; 0 unset.
	MemorySwapBytes        uint64 `json:",omitempty"`
	MemoryReservationBytes uint64 `json:",omitempty"`
	// MilliCPUs is CPU time in thousandths of a CPU; 0 means one VCPU per CPU
	// of the host up to a default, unlimited.
	MilliCPUs  uint64
	CPUShares  uint64 `json:",omitempty"`
	CPUSet     string `json:",omitempty"`
	PidsLimit  int64  // 0 or -1: unlimited
	Ulimits    []Ulimit
	OOMScore   int
	DeviceList []Device `json:",omitempty"`
}

// Ulimit is one resource limit, by its docker name ("nofile").
type Ulimit struct {
	Name       string
	Soft, Hard int64 // -1 is unlimited
}

// Device is a device node of the VM made available in the container.
type Device struct {
	Path, PathInContainer, Access string
}

// Security is what limits or widens the rights of the processes.
type Security struct {
	Privileged      bool
	CapAdd          []string `json:",omitempty"` // "NET_ADMIN", "ALL"
	CapDrop         []string `json:",omitempty"`
	NoNewPrivileges bool
	// Seccomp is "" (the default profile), "unconfined", or the text of a
	// profile in docker's JSON format.
	Seccomp string `json:",omitempty"`
	// UnmaskPaths are paths to leave unmasked ("ALL" for every one):
	// --security-opt systempaths=unconfined and unmask=.
	UnmaskPaths []string `json:",omitempty"`
	// MaskPaths adds paths to hide.
	MaskPaths []string `json:",omitempty"`
}

// Network is how the container is connected.
type Network struct {
	// Mode is "user" or "none".
	Mode      string
	Ports     []Port       `json:",omitempty"`
	DNS       []netip.Addr `json:",omitempty"`
	DNSSearch []string     `json:",omitempty"`
	DNSOption []string     `json:",omitempty"`
	// AddHosts are further lines of /etc/hosts, "name:address".
	AddHosts []string `json:",omitempty"`
	// AllowHostLoopback and AllowLinkLocal lift the default-deny rules.
	AllowHostLoopback bool `json:",omitempty"`
	AllowLinkLocal    bool `json:",omitempty"`
	// Egress are rules for what the container connects to; nil: there are none.
	Egress []string `json:",omitempty"`
	MAC    string   `json:",omitempty"`
}

// Port publishes a port of the container on the host.
type Port struct {
	HostIP        netip.Addr // zero: every address, IPv4 and IPv6
	HostPort      uint16     // 0: chosen at start
	ContainerPort uint16
	Protocol      string // tcp, udp
}

// Mount is something mounted in the container besides its root.
type Mount struct {
	Type        string // bind, volume, tmpfs
	Source      string // host path, or volume name
	Destination string
	ReadOnly    bool     `json:",omitempty"`
	File        bool     `json:",omitempty"` // a bind of a single file
	NoCopy      bool     `json:",omitempty"` // do not fill an empty volume from the image
	Options     []string `json:",omitempty"` // of a tmpfs: size=..., mode=...
	// Anonymous volumes go with the container under --rm and rm -v.
	Anonymous bool `json:",omitempty"`
}

// Scratch is the writable layer above the image.
type Scratch struct {
	// Memory keeps it in the VM's memory instead of on a disk.
	Memory bool
	// Bytes limits it; 0 is the default.
	Bytes uint64
}

// Restart is what the monitor does when the container ends by itself.
type Restart struct {
	Policy string // no, always, on-failure, unless-stopped
	Max    int    // of on-failure; 0 is no limit
}

// Health is a check that runs in the container again and again.
type Health struct {
	// Test is ["CMD", args...], ["CMD-SHELL", command] or ["NONE"].
	Test          []string
	Interval      time.Duration
	Timeout       time.Duration
	StartPeriod   time.Duration
	StartInterval time.Duration
	Retries       int
}

// Log is how output is kept.
type Log struct {
	// Driver is json-file or none.
	Driver string
	// MaxBytes per file, MaxFiles files. Zero means the defaults, which
	// bound what a flooding container can take from the host's disk.
	MaxBytes int64
	MaxFiles int
}
