package policy

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"manis/image/signature"
	"manis/network/egress"
)

// Policy is what is allowed. Its fields are those of the file; what the file does not name is the profile's.
type Policy struct {
	// File is the path it was read from.
	File    string
	Profile string

	Images       Images
	Mounts       Mounts
	Devices      Devices
	Capabilities Capabilities
	Networks     Networks
	Sizes        Sizes
	Users        Users
	Egress       Egress

	// lines are those of the rules that the file names.
	lines map[string]int
}

// Images says which images containers are made of.
type Images struct {
	// Allow are patterns of references; one has to match.
	Allow []Pattern
	// Digests takes images only where they are asked for by digest.
	Digests bool
	// Signatures are keys by which images have to be signed: all entries that match an image count.
	Signatures []Signature
	// Engines is what becomes of containers of engines, which do not say their image, where the other rules of images
	// say something: "trust" leaves images to the engine, "refuse" refuses them.
	Engines string
}

// Signature asks for a signature by one of some keys.
type Signature struct {
	Images []Pattern
	Keys   []Key
}

// Key is a public key, with the path of its file.
type Key struct {
	File string
	*signature.Key
}

// Mounts says which files of the host containers see.
type Mounts struct {
	// Allow are directories, with all below them, and files.
	Allow []Path
	// Volumes allows volumes that Manis keeps.
	Volumes bool
	// Engines allows what engines put into containers from directories of their own: /etc/hosts and the like, volumes.
	Engines bool
}

// Path is a path of the host that may be mounted, with what is below it.
type Path struct {
	Path string
	// ReadOnly allows it read-only alone.
	ReadOnly bool
}

// Devices says which devices containers have beyond those that every one has.
type Devices struct {
	// Allow are paths in the container; "*" are all.
	Allow []string
}

// Capabilities says what the processes of containers may do to their own kernel.
type Capabilities struct {
	// Allow are the capabilities that a container may have, such as NET_ADMIN; ALL are all.
	Allow []string
	// Privileged allows privileged containers, and privileged processes in others.
	Privileged bool
	// Escalation allows containers whose processes may gain privileges (without no_new_privs).
	Escalation bool
	// Unfiltered allows containers without a filter of system calls.
	Unfiltered bool
}

// Networks says what containers are connected to.
type Networks struct {
	// Allow are some of none, user (the stack of Manis) and namespace (what an engine has prepared).
	Allow []string
	// Publish are ports of the host that may lead to containers.
	Publish []Ports
	// HostLoopback and LinkLocal allow the flags that open these.
	HostLoopback, LinkLocal bool
}

// Ports are ports of the host, on one of its addresses or, where that is not valid, on any and all.
type Ports struct {
	Address     netip.Addr
	First, Last uint16
}

// Sizes are the most that one container may have; 0 is no limit.
type Sizes struct {
	MemoryBytes, MilliCPUs uint64
	Pids                   int64
}

// Users says as whom containers run.
type Users struct {
	// Root allows processes of the user 0.
	Root bool
}

// Egress says what containers may connect to.
type Egress struct {
	// Allow is nil where nothing is said.
	Allow egress.Rules
}

// origin says where a rule comes from.
func (p *Policy) origin(rule string) string {
	if line := p.lines[rule]; line > 0 {
		return fmt.Sprintf("line %d", line)
	}
	return "profile " + p.Profile
}

// EgressOf lists what a sandbox whose user asks for some rules (nil: for none) may connect to: every list has to allow
// it, so that a user narrows what the operator allows and never widens it. Without a policy it is the user's alone.
func (p *Policy) EgressOf(asked egress.Rules) []egress.Rules {
	var lists []egress.Rules
	if p != nil && p.Egress.Allow != nil {
		lists = append(lists, p.Egress.Allow)
	}
	if asked != nil {
		lists = append(lists, asked)
	}
	return lists
}

// String is the range as the file has it.
func (r Ports) String() string {
	ports := strconv.Itoa(int(r.First))
	switch {
	case r.First <= 1 && r.Last == 65535:
		ports = "*"
	case r.Last != r.First:
		ports += "-" + strconv.Itoa(int(r.Last))
	}
	if !r.Address.IsValid() {
		return ports
	}
	return net.JoinHostPort(r.Address.String(), ports)
}
