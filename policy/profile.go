package policy

import "slices"

// The profiles that a file begins with. Their names and what they mean follow the Pod Security Standards of
// Kubernetes (privileged, baseline, restricted) where those say something that a virtual machine has;
// docs/POLICY.md lists what differs.
const (
	Restricted = "restricted"
	Standard   = "standard"
	Privileged = "privileged"
)

// Profiles are their names, the narrowest first.
func Profiles() []string { return []string{Restricted, Standard, Privileged} }

// usual are the capabilities that docker, Podman and containerd give a container that does not ask for any.
var usual = []string{
	"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW",
	"SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}

// profile returns what a profile allows; false if there is none of that name.
func profile(name string) (*Policy, bool) {
	every := Ports{First: 1, Last: 65535}
	p := &Policy{
		Profile:  name,
		Images:   Images{Allow: []Pattern{"**"}, Engines: "refuse"},
		Mounts:   Mounts{Volumes: true, Engines: true},
		Networks: Networks{Allow: []string{"none", "user", "namespace"}},
		lines:    make(map[string]int),
	}
	switch name {
	case Restricted:
		p.Capabilities = Capabilities{Allow: []string{"NET_BIND_SERVICE"}}
	case Standard:
		p.Capabilities = Capabilities{Allow: slices.Clone(usual), Escalation: true, Unfiltered: true}
		p.Networks.Publish = []Ports{every}
		p.Users.Root = true
	case Privileged:
		p.Mounts.Allow = []Path{{Path: "/"}}
		p.Devices.Allow = []string{"*"}
		p.Capabilities = Capabilities{Allow: []string{"ALL"}, Privileged: true, Escalation: true, Unfiltered: true}
		p.Networks.Publish = []Ports{every}
		p.Networks.HostLoopback, p.Networks.LinkLocal = true, true
		p.Users.Root = true
	default:
		return nil, false
	}
	return p, true
}
