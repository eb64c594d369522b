package policy

import (
	"net/netip"
	"os"

	"manis/image/signature"
	"manis/network/egress"
)

// Request is what somebody wants to start. Parts that are nil are not asked for, as of a process that is added to a
// container.
type Request struct {
	// Engine is set where an engine asks, with a bundle: which image it is from is not known then.
	Engine  *Engine
	Image   *Image
	Process *Process
	Mounts  []Mount
	// Volumes are names of volumes that Manis keeps.
	Volumes []string
	// Devices are paths in the container of devices beyond those that every container has.
	Devices []string
	Network *Network
	Sizes   *Amounts
}

// Engine says whose files an engine gives a container.
type Engine struct {
	// ID is the container's, Sandbox that of its pod, and Pod the one that Kubernetes gives the pod. Where they are
	// empty there is none.
	ID, Sandbox, Pod string
	// Dir is where Manis itself keeps files for the pod; empty: nowhere.
	Dir string
	// NoImage is set for what only keeps the namespaces of a pod: nothing of an image is executed.
	NoImage bool
}

// Image is what a container is made from.
type Image struct {
	// Asked is the reference as it was given.
	Asked string
	// Names are the full references that it means (registry/path:tag, registry/path@digest): one, or those that the store
	// has for an image that was given by its id.
	Names []string
	// ByDigest is set where the reference says what the content is.
	ByDigest bool
	// Remote is set before there is an image: neither signatures nor digests are decided on.
	Remote bool
	// Digests are those that signatures may be of: of the manifest, and of the index that it came by.
	Digests []string
	// Signatures are those that were found, and Missing says why there are none or not all.
	Signatures []signature.Signed
	Missing    error
}

// Process is what processes may do. A Capabilities of nil is not asked for: a further process has the container's.
type Process struct {
	// Capabilities are all that one of the process's sets holds, as NET_ADMIN or CAP_NET_ADMIN.
	Capabilities []string
	Privileged   bool
	// Escalation is set without no_new_privs, Unfiltered without a filter of system calls.
	Escalation, Unfiltered bool
	User                   User
}

// Amounts are what a container may take.
type Amounts struct {
	// MemoryBytes and MilliCPUs are limits, or those of the machine; 0: not asked for, as what a container shares with others
	// of its pod.
	MemoryBytes, MilliCPUs uint64
	// Pids below 0 are without a limit; 0: not asked for.
	Pids int64
}

// User is as whom a process runs, as far as it is known before it does.
type User int

// Users. Of a name only the image knows which id it has.
const (
	Unasked User = iota
	Root
	NotRoot
	Named
)

// Mount is a file or directory of the host.
type Mount struct {
	// Source is its path, absolute. Symbolic links in it are followed for the decision.
	Source string
	// Opened is what its caller has opened by that path, as origin.Open does, and will mount: the decision is on this. Nil: on
	// whatever the path leads to at the moment, for those who mount nothing yet.
	Opened *os.File
	// ReadOnly holds for all below it.
	ReadOnly bool
}

// Network is what is connected.
type Network struct {
	// Mode is none, user or namespace.
	Mode                    string
	Publish                 []Port
	HostLoopback, LinkLocal bool
	// Egress are the user's own rules; nil: there are none.
	Egress egress.Rules
}

// Port is a port of the host that leads to a container.
type Port struct {
	Address netip.Addr // not valid, or unspecified: all
	Port    uint16     // 0: any that is free
}
