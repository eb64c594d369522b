package bundle

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"manis/api/agent"
)

// maxMounts is the agent's bound.
const maxMounts = 1024

// mounts translates the list, in its order.
func (p *planner) mounts() error {
	if len(p.spec.Mounts) > maxMounts {
		return fmt.Errorf("mounts: has %d entries, at most %d are possible", len(p.spec.Mounts), maxMounts)
	}
	for i := range p.spec.Mounts {
		m := &p.spec.Mounts[i]
		a, err := p.mount(m)
		if err != nil {
			return fmt.Errorf("mounts[%d] (%.80s): %w", i, m.Destination, err)
		}
		if a != nil {
			p.Create.Mounts = append(p.Create.Mounts, a)
		}
	}
	return nil
}

// mount translates one; nil is one that became something else.
func (p *planner) mount(m *specs.Mount) (*agent.Mount, error) {
	// Bundles of the time before runtime-spec 1.0.2 have relative ones.
	dest := path.Clean("/" + m.Destination)
	switch {
	case m.Destination == "" || dest == "/":
		return nil, fmt.Errorf("destination: must be a path below the root, is %q", m.Destination)
	case (len(m.UIDMappings) > 0 || len(m.GIDMappings) > 0) && !p.maps:
		return nil, errors.New("uidMappings, gidMappings: filesystems that cross the boundary of a virtual machine cannot be mounted with mapped ids")
	}
	if err := insidePath(dest); err != nil {
		return nil, fmt.Errorf("destination: %w", err)
	}
	if err := noNUL("options", m.Options); err != nil {
		return nil, err
	}
	o, err := p.options(m.Options)
	if err != nil {
		return nil, err
	}
	if o.copyUp && (m.Type != "tmpfs" || o.bind) {
		return nil, errors.New("options: tmpcopyup goes with type tmpfs only")
	}
	if m.Type == "bind" || o.bind {
		return p.bind(dest, m, o)
	}
	if o.maps || len(m.UIDMappings) > 0 || len(m.GIDMappings) > 0 {
		return nil, errors.New("uidMappings, gidMappings, options: only what is bound from the host can be mounted with mapped ids")
	}
	a := &agent.Mount{Destination: dest, Type: m.Type, Source: cmp.Or(m.Source, m.Type), Options: append(o.mount, o.data...)}
	switch m.Type {
	case "proc", "sysfs", "tmpfs", "ramfs", "devpts", "mqueue":
	case "cgroup", "cgroup2":
		// The guest has the unified hierarchy alone.
		a.Type, a.Source, a.Options = "cgroup2", "cgroup", o.mount
	case "overlay":
		return nil, errors.New("type: an overlay of the host's directories has to be mounted on the host and bound into the container")
	case "", "none":
		return nil, errors.New("type: is missing, and the options have neither bind nor rbind")
	default:
		return nil, fmt.Errorf("type: filesystem type %q is not offered in the virtual machine", m.Type)
	}
	return a, nil
}

// bind translates a bind mount, whose source is the host's.
func (p *planner) bind(dest string, m *specs.Mount, o mountOptions) (*agent.Mount, error) {
	source := m.Source
	if source == "" || strings.IndexByte(source, 0) >= 0 {
		return nil, fmt.Errorf("source: must be a path of the host, is %q", source)
	}
	source = p.absolute(source)
	info, err := p.host.stat(source)
	if err != nil {
		// "no such file or directory", as runc says it.
		return nil, fmt.Errorf("source: %w", err)
	}
	switch mode := info.Mode(); {
	case mode.IsDir():
		if strings.HasPrefix(dest, cgroups+"/") && strings.HasPrefix(source, cgroups+"/") {
			p.hierarchy(dest, o)
			return nil, nil
		}
		if a, err := p.hostFilesystem(dest, source, o); a != nil || err != nil {
			return a, err
		}
	case mode.IsRegular():
	case mode&fs.ModeDevice != 0:
		return p.bindDevice(dest, source, info)
	case mode&fs.ModeSocket != 0:
		return nil, fmt.Errorf("source: %s is a socket of the host: its peers cannot be reached from a virtual machine (a TCP port can)", source)
	default:
		return nil, fmt.Errorf("source: %s is neither a directory nor a regular file, and nothing else crosses the boundary of the virtual machine", source)
	}
	b := Bind{Name: strconv.Itoa(len(p.Binds)), HostPath: source, ReadOnly: o.readonly, File: !info.IsDir()}
	if err := p.mapped(&b, m, o); err != nil {
		return nil, err
	}
	switch o.propagates {
	case "shared", "rshared":
		b.Follows = true
		p.warn("mounts: %s: option %s: what is mounted in the virtual machine does not appear on the host", dest, o.propagates)
	case "slave", "rslave":
		b.Follows = true
	}
	if b.Follows && !p.joins {
		p.warn("mounts: %s: option %s: what is mounted on the host later appears only in containers that join a pod that runs", dest, o.propagates)
	}
	if o.readonly && !o.readonlyBelow && o.recursive && info.IsDir() {
		below, err := p.host.mountsBelow(source)
		if err != nil {
			return nil, fmt.Errorf("source: find what is mounted below %s: %w", source, err)
		}
		if below {
			// In the machine all of it is one mount: the host has to tell them apart.
			b.WritableBelow = true
			o.mount = slices.DeleteFunc(o.mount, func(name string) bool { return name == "ro" })
		}
	}
	b.Projected = info.IsDir() && b.ReadOnly && !b.WritableBelow && projected(source)
	p.Binds = append(p.Binds, b)
	kind := "bind"
	if o.recursive {
		kind = "rbind"
	}
	return &agent.Mount{
		Destination: dest, Type: "share", Source: p.tag + "/" + b.Name, File: b.File,
		Options: append([]string{kind}, o.mount...),
	}, nil
}

// mapped takes the ids with which a bind is to be mounted: its own, or those of the container's user namespace.
func (p *planner) mapped(b *Bind, m *specs.Mount, o mountOptions) error {
	b.UIDs, b.GIDs, b.MapsBelow = m.UIDMappings, m.GIDMappings, o.mapsBelow
	if len(b.UIDs) == 0 && len(b.GIDs) == 0 {
		if !o.maps {
			return nil
		}
		b.UIDs, b.GIDs = p.linux.UIDMappings, p.linux.GIDMappings
	}
	if len(b.UIDs) == 0 || len(b.GIDs) == 0 {
		return errors.New("uidMappings, gidMappings: both are needed to mount with mapped ids, or a user namespace whose ids are to be taken")
	}
	if _, err := mappings("uidMappings", b.UIDs); err != nil {
		return err
	}
	_, err := mappings("gidMappings", b.GIDs)
	return err
}

// projected reports whether a directory of the host is a volume of the kinds whose files the kubelet writes and keeps up to date: by
// its path, DIR/pods/UID/volumes/kubernetes.io~KIND/NAME (Kubernetes, pkg/kubelet/kubelet_getters.go).
func projected(dir string) bool {
	parts := strings.Split(dir, "/")
	if len(parts) < 6 {
		return false
	}
	parts = parts[len(parts)-5:]
	if parts[0] != "pods" || parts[2] != "volumes" {
		return false
	}
	switch parts[3] {
	case "kubernetes.io~configmap", "kubernetes.io~secret", "kubernetes.io~projected", "kubernetes.io~downward-api":
		return true
	}
	return false
}

// mountsBelow looks into this process's table of mounts.
func mountsBelow(dir string) (bool, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false, err
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	// proc(5): the fifth field, in which four characters are octal.
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(unescape.Replace(f[4]), strings.TrimSuffix(dir, "/")+"/") {
			return true, nil
		}
	}
	return false, nil
}

// hostFilesystem replaces a directory of a filesystem that means something on the host's kernel
// only by the guest's own of that kind. It returns nil for all others.
func (p *planner) hostFilesystem(dest, source string, o mountOptions) (*agent.Mount, error) {
	kind, size, err := p.host.filesystem(source)
	if err != nil {
		return nil, fmt.Errorf("source: find the filesystem of %s: %w", source, err)
	}
	own := func(fstype string) *agent.Mount {
		if fstype != "cgroup2" {
			p.warn("mounts: %s shows the virtual machine's %s, not the host's", dest, fstype)
		}
		return &agent.Mount{Destination: dest, Type: fstype, Source: fstype, Options: o.mount}
	}
	// A filesystem of the host that is wanted elsewhere, as by monitoring, is the host's.
	same := dest == source
	switch {
	case (kind == unix.TMPFS_MAGIC || kind == unix.RAMFS_MAGIC) && dest == "/dev/shm":
		return sharedMemory(dest, source, size, o), nil
	case kind == unix.CGROUP2_SUPER_MAGIC || kind == unix.CGROUP_SUPER_MAGIC, kind == unix.TMPFS_MAGIC && source == cgroups:
		return own("cgroup2"), nil
	case kind == unix.PROC_SUPER_MAGIC && same && dest == "/proc":
		return own("proc"), nil
	case kind == unix.SYSFS_MAGIC && same && dest == "/sys":
		return own("sysfs"), nil
	case kind == mqueueMagic && same:
		return own("mqueue"), nil
	}
	return nil, nil
}

// cgroups is where systems have their cgroups.
const cgroups = "/sys/fs/cgroup"

// hierarchy takes the bind of one of the host's cgroup v1 hierarchies below the container's
// cgroups, as engines make for systemd, which writes there. The guest has the unified one
// alone: that becomes writable instead.
func (p *planner) hierarchy(dest string, o mountOptions) {
	p.warn("mounts: %s is left out: the virtual machine has cgroup v2 alone, at %s", dest, cgroups)
	for _, m := range p.Create.Mounts {
		if m.Type == "cgroup2" && m.Destination == cgroups && !o.readonly {
			m.Options = append(m.Options, "rw")
		}
	}
}

// mqueueMagic is MQUEUE_MAGIC of the kernel's ipc/mqueue.c.
const mqueueMagic = 0x19800202

// sharedMemory replaces the filesystem that an engine has mounted on the host for the shared
// memory of one or several containers by memory of the machine. Containers of a sandbox that
// name the same one share it.
func sharedMemory(dest, source string, size uint64, o mountOptions) *agent.Mount {
	hash := sha256.Sum256([]byte(source))
	options := append(o.mount, "mode=1777")
	if size > 0 {
		options = append(options, "size="+strconv.FormatUint(size, 10))
	}
	return &agent.Mount{Destination: dest, Type: "bind", Source: "shm-" + hex.EncodeToString(hash[:16]), Options: options}
}

// bindDevice translates the bind of a device file, with which users hide files (of /dev/null)
// and engines without the right to make nodes give devices: it is the guest's device of
// that number.
func (p *planner) bindDevice(dest, source string, info fs.FileInfo) (*agent.Mount, error) {
	d := specs.LinuxDevice{Path: dest, Type: "b"}
	if info.Mode()&fs.ModeCharDevice != 0 {
		d.Type = "c"
	}
	number, ok := deviceNumber(info)
	if !ok {
		return nil, fmt.Errorf("source: %s is a device of unknown number", source)
	}
	d.Major, d.Minor = int64(unix.Major(number)), int64(unix.Minor(number))
	for _, s := range standardDevices {
		if d.Type == "c" && d.Major == s.major && d.Minor == s.minor {
			return &agent.Mount{Destination: dest, Type: "device", Source: s.name}, nil
		}
	}
	if !guestHas(d.Type, d.Major, d.Minor) && dest == source && p.privileged() {
		p.missing = append(p.missing, source)
		return nil, nil
	}
	if !guestHas(d.Type, d.Major, d.Minor) || !strings.HasPrefix(dest, "/dev/") || !p.hasOwnDev() {
		return nil, fmt.Errorf("source: %s is a device of the host (%s %d:%d), which would have to be passed through to the virtual machine", source, d.Type, d.Major, d.Minor)
	}
	mode := uint32(info.Mode().Perm())
	// Such an engine writes no rule for it either.
	p.Create.Devices = append(p.Create.Devices, &agent.Device{Path: dest, Type: d.Type, Major: d.Major, Minor: d.Minor, Mode: mode, Access: "rwm"})
	return nil, nil
}

// hasOwnDev reports whether /dev is in memory, so that a node in it is not one in the root
// filesystem.
func (p *planner) hasOwnDev() bool {
	return slices.ContainsFunc(p.spec.Mounts, func(m specs.Mount) bool {
		return path.Clean("/"+m.Destination) == "/dev" && m.Type == "tmpfs"
	})
}
