package spec

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"manis/api/agent"
	"manis/container"
)

// vmDevices are the nodes of the machine that a container may ask for, with
// the numbers of Documentation/admin-guide/devices.txt. Those that every
// container has are among them, to be given another name or access.
var vmDevices = map[string]struct {
	kind         string
	major, minor int64
	mode         uint32
}{
	"/dev/null":         {"c", 1, 3, 0o666},
	"/dev/zero":         {"c", 1, 5, 0o666},
	"/dev/full":         {"c", 1, 7, 0o666},
	"/dev/random":       {"c", 1, 8, 0o666},
	"/dev/urandom":      {"c", 1, 9, 0o666},
	"/dev/kmsg":         {"c", 1, 11, 0o644},
	"/dev/tty":          {"c", 5, 0, 0o666},
	"/dev/hwrng":        {"c", 10, 183, 0o600},
	"/dev/net/tun":      {"c", 10, 200, 0o666},
	"/dev/fuse":         {"c", 10, 229, 0o666},
	"/dev/loop-control": {"c", 10, 237, 0o660},
}

// devices translates --device. The paths are the machine's: the host's devices
// are out of reach.
func devices(list []container.Device) ([]*agent.Device, error) {
	var nodes []*agent.Device
	for _, d := range list {
		v, ok := vmDevices[d.Path]
		if !ok {
			return nil, fmt.Errorf("device %s: the virtual machine has none of this name, and the host's are out of its reach (there are %s)",
				d.Path, strings.Join(slices.Sorted(maps.Keys(vmDevices)), ", "))
		}
		dest := d.PathInContainer
		if dest == "" {
			dest = d.Path
		}
		if !path.IsAbs(dest) || path.Clean(dest) != dest || !strings.HasPrefix(dest, "/dev/") {
			return nil, fmt.Errorf("device %s: its path in the container, %q, is not below /dev/", d.Path, dest)
		}
		access := d.Access
		if access == "" {
			access = "rwm"
		}
		if strings.Trim(access, "rwm") != "" || len(access) > 3 {
			return nil, fmt.Errorf("device %s: bad mode specified: %s", d.Path, d.Access)
		}
		nodes = append(nodes, &agent.Device{Path: dest, Type: v.kind, Major: v.major, Minor: v.minor, Mode: v.mode, Access: access})
	}
	return nodes, nil
}
