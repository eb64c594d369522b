package bundle

import (
	"fmt"
	"io/fs"
	"path"
	"strings"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"manis/api/agent"
	"manis/container/spec"
)

// deviceNumber is the number of a device file.
func deviceNumber(info fs.FileInfo) (uint64, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return st.Rdev, true
}

// guestDevices are the devices that every machine has, by the numbers of the kernel's
// Documentation/admin-guide/devices.txt, with their usual paths. A minor of -1 stands for all, whose number comes after
// the path.
var guestDevices = []struct {
	kind         string
	major, minor int64
	path         string
}{
	{"c", 1, 3, "/dev/null"},
	{"c", 1, 5, "/dev/zero"},
	{"c", 1, 7, "/dev/full"},
	{"c", 1, 8, "/dev/random"},
	{"c", 1, 9, "/dev/urandom"},
	{"c", 1, 11, "/dev/kmsg"},
	{"c", 5, 0, "/dev/tty"},
	{"c", 5, 1, "/dev/console"},
	{"c", 5, 2, "/dev/ptmx"},
	{"c", 136, -1, "/dev/pts/"},
	{"c", 10, 183, "/dev/hwrng"},
	{"c", 10, 200, "/dev/net/tun"},
	{"c", 10, 229, "/dev/fuse"},
	{"c", 10, 236, "/dev/mapper/control"},
	{"c", 10, 237, "/dev/loop-control"},
	{"b", 7, -1, "/dev/loop"},
}

// standardDevices are those that the agent can put on a file.
var standardDevices = []struct {
	name         string
	major, minor int64
}{
	{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0},
}

func guestHas(kind string, major, minor int64) bool {
	if kind == "u" {
		kind = "c"
	}
	for _, d := range guestDevices {
		if d.kind == kind && d.major == major && (d.minor == minor || d.minor < 0) {
			return true
		}
	}
	return false
}

// maxDevices bounds a configuration's nodes.
const maxDevices = 4096

// devices translates the nodes.
func (p *planner) devices() error {
	if len(p.linux.Devices) > maxDevices {
		return fmt.Errorf("linux.devices: has %d entries, at most %d are possible", len(p.linux.Devices), maxDevices)
	}
	for i, d := range p.linux.Devices {
		field := fmt.Sprintf("linux.devices[%d]", i)
		if err := insidePath(d.Path); err != nil {
			return fmt.Errorf("%s.path: %w", field, err)
		}
		name := path.Clean(d.Path)
		switch d.Type {
		case "c", "u", "b":
			if p.disks && p.isDisk(d) && !p.privileged() {
				if err := p.disk(field, name, d); err != nil {
					return err
				}
				continue
			}
			if !guestHas(d.Type, d.Major, d.Minor) && p.ofHost(name, d) {
				if p.privileged() {
					p.missing = append(p.missing, name)
					continue
				}
				return fmt.Errorf("%s: %s (%s %d:%d) is a device of the host, which would have to be passed through to the virtual machine", field, name, d.Type, d.Major, d.Minor)
			}
		case "p":
		default:
			return fmt.Errorf("%s.type: must be c, u, b or p, is %q", field, d.Type)
		}
		if name == "/dev/ptmx" {
			// With a devpts of its own the container has it as a link already.
			continue
		}
		a := &agent.Device{Path: name, Type: d.Type, Major: d.Major, Minor: d.Minor}
		if d.FileMode != nil {
			a.Mode = uint32(d.FileMode.Perm())
		}
		if d.UID != nil {
			a.Uid = *d.UID
		}
		if d.GID != nil {
			a.Gid = *d.GID
		}
		p.Create.Devices = append(p.Create.Devices, a)
	}
	if n := len(p.missing); n > 0 {
		shown := p.missing[:min(n, 8)]
		more := ""
		if n > len(shown) {
			more = fmt.Sprintf(" and %d more", n-len(shown))
		}
		p.warn("linux.devices: the virtual machine does not have these devices of the host, which are left out of the privileged container: %s%s", strings.Join(shown, ", "), more)
	}
	return nil
}

// maxDisks bounds the host's block devices of a container.
const maxDisks = 16

// isDisk reports whether a node means a block device of the host. Of loop devices those do that have a file: the machine has its own.
func (p *planner) isDisk(d specs.LinuxDevice) bool {
	if d.Type != "b" || d.Major < 0 || d.Minor < 0 {
		return false
	}
	entry := fmt.Sprintf("/sys/dev/block/%d:%d", d.Major, d.Minor)
	if guestHas(d.Type, d.Major, d.Minor) {
		entry += "/loop/backing_file"
	}
	_, err := p.host.stat(entry)
	return err == nil
}

// disk plans a block device of the host.
func (p *planner) disk(field, name string, d specs.LinuxDevice) error {
	if len(p.Disks) == maxDisks {
		return fmt.Errorf("%s: %s is one more block device of the host than the %d that a container can have", field, name, maxDisks)
	}
	// As the kernel's filter would: the last rule that is about it decides. Without one it can be used.
	access := "rwm"
	if p.linux.Resources != nil {
		for _, r := range p.linux.Resources.Devices {
			if r.Type != "b" || r.Major == nil || *r.Major != d.Major || r.Minor == nil || *r.Minor != d.Minor {
				continue
			}
			if access = ""; r.Allow {
				access = r.Access
			}
		}
	}
	if !strings.Contains(access, "r") {
		return fmt.Errorf("%s: %s is a block device of the host that linux.resources.devices does not let the container read", field, name)
	}
	a := &agent.Device{Path: name, Type: "b", Access: access}
	if d.FileMode != nil {
		a.Mode = uint32(d.FileMode.Perm())
	}
	if d.UID != nil {
		a.Uid = *d.UID
	}
	if d.GID != nil {
		a.Gid = *d.GID
	}
	p.Create.Devices = append(p.Create.Devices, a)
	p.Disks = append(p.Disks, Disk{Major: uint32(d.Major), Minor: uint32(d.Minor), ReadOnly: !strings.Contains(access, "w"), Device: a})
	return nil
}

// ofHost reports whether a node means a device of the host: one whose driver is there, or whose node is
// at this path. Any other number is the guest's to give a meaning, and most have none.
func (p *planner) ofHost(name string, d specs.LinuxDevice) bool {
	list := "/sys/dev/char"
	if d.Type == "b" {
		list = "/sys/dev/block"
	}
	if _, err := p.host.stat(list); err != nil {
		return true // who knows
	}
	if _, err := p.host.stat(fmt.Sprintf("%s/%d:%d", list, d.Major, d.Minor)); err == nil {
		return true
	}
	info, err := p.host.stat(name)
	if err != nil || info.Mode()&fs.ModeDevice == 0 {
		return false
	}
	number, ok := deviceNumber(info)
	return !ok || number == unix.Mkdev(uint32(d.Major), uint32(d.Minor))
}

// privileged recognises what engines make of a privileged container: no filter, all
// capabilities that they have themselves, and every device; or for the last, since without root
// an engine has no rules for devices, that it says so. They list every device of the host for
// such a container, wanted or not.
func (p *planner) privileged() bool {
	if p.linux.Seccomp != nil || p.spec.Process == nil || p.spec.Process.Capabilities == nil {
		return false
	}
	has := make(map[string]bool)
	for _, c := range p.spec.Process.Capabilities.Bounding {
		has[c] = true
	}
	for number, c := range spec.Capabilities() {
		// Docker's list ends where that of Linux 3.16 did.
		if number > unix.CAP_AUDIT_READ {
			continue
		}
		if !has[c] && (number == unix.CAP_SYS_ADMIN || p.host.capable(number)) {
			return false
		}
	}
	if strings.EqualFold(p.spec.Annotations["io.podman.annotations.privileged"], "true") {
		return true
	}
	if p.linux.Resources == nil {
		return false
	}
	for _, r := range p.linux.Resources.Devices {
		if r.Allow && (r.Type == "" || r.Type == "a") && anyNumber(r.Major) && anyNumber(r.Minor) && allAccess(r.Access) {
			return true
		}
	}
	return false
}

func anyNumber(n *int64) bool { return n == nil || *n < 0 }

func allAccess(s string) bool {
	return s == "" || strings.Contains(s, "r") && strings.Contains(s, "w") && strings.Contains(s, "m")
}

// maxRules is less than the agent's bound, which counts those that are added here.
const maxRules = 1000

// deviceRules translates the rules, and adds after them those by which every container can
// use its standard devices, as runc does: an engine forbids all and relies on that.
func deviceRules(list []specs.LinuxDeviceCgroup) ([]*agent.DeviceRule, error) {
	if len(list) > maxRules {
		return nil, fmt.Errorf("linux.resources.devices: has %d entries, at most %d are possible", len(list), maxRules)
	}
	var rules []*agent.DeviceRule
	for i, r := range list {
		field := fmt.Sprintf("linux.resources.devices[%d]", i)
		a := &agent.DeviceRule{Allow: r.Allow, Type: r.Type, Major: -1, Minor: -1, Access: r.Access}
		switch r.Type {
		case "":
			a.Type = "a"
		case "a", "b", "c", "u":
		default:
			return nil, fmt.Errorf("%s.type: must be a, b or c, is %q", field, r.Type)
		}
		if strings.Trim(r.Access, "rwm") != "" {
			return nil, fmt.Errorf("%s.access: must be some of rwm, is %q", field, r.Access)
		}
		for _, n := range []struct {
			name  string
			given *int64
			into  *int64
		}{{"major", r.Major, &a.Major}, {"minor", r.Minor, &a.Minor}} {
			if n.given != nil && *n.given >= 0 {
				if *n.given >= 1<<20 {
					return nil, fmt.Errorf("%s.%s: there is no number %d", field, n.name, *n.given)
				}
				*n.into = *n.given
			}
		}
		rules = append(rules, a)
	}
	for _, d := range []struct {
		kind         string
		major, minor int64
		access       string
	}{
		// Every node may be made; it opens only what is allowed.
		{"c", -1, -1, "m"}, {"b", -1, -1, "m"},
		{"c", 1, 3, "rwm"}, {"c", 1, 5, "rwm"}, {"c", 1, 7, "rwm"}, {"c", 1, 8, "rwm"}, {"c", 1, 9, "rwm"},
		{"c", 5, 0, "rwm"}, {"c", 5, 1, "rwm"}, {"c", 5, 2, "rwm"}, {"c", 136, -1, "rwm"},
	} {
		rules = append(rules, &agent.DeviceRule{Allow: true, Type: d.kind, Major: d.major, Minor: d.minor, Access: d.access})
	}
	return rules, nil
}
