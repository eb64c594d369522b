package agent

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	api "manis/api/agent"
	"manis/launch"
)

// A container's user namespace is made by its first process between clone and
// execve, after its mounts: they are the agent's to make, and the copy of them that the
// process then gets belongs to the namespace. The kernel locks such a copy: the container's root
// may mount more, but cannot take away what hides a path or makes it read-only. The namespaces of
// PIDs and IPC remain the machine's.

// maxMappings is the kernel's bound of a map (user_namespaces(7)).
const maxMappings = 340

// hasUsers reports whether the container has a user namespace.
func (c *container) hasUsers() bool {
	return len(c.request.UidMappings) > 0 || len(c.request.GidMappings) > 0
}

// checkUsers refuses half a namespace.
func (c *container) checkUsers() error {
	uids, gids := len(c.request.UidMappings), len(c.request.GidMappings)
	if (uids == 0) != (gids == 0) || uids > maxMappings || gids > maxMappings {
		return fail(codes.InvalidArgument, fmt.Errorf("a user namespace with %d mappings of users and %d of groups", uids, gids))
	}
	return nil
}

// machineUID gives a user of the container as the machine knows it.
func (c *container) machineUID(uid uint32) (uint32, error) {
	return machineID("user", uid, c.request.UidMappings)
}

// machineGID does the same for a group.
func (c *container) machineGID(gid uint32) (uint32, error) {
	return machineID("group", gid, c.request.GidMappings)
}

func machineID(what string, id uint32, mappings []*api.IDMapping) (uint32, error) {
	if len(mappings) == 0 {
		return id, nil
	}
	for _, m := range mappings {
		if id >= m.ContainerId && id-m.ContainerId < m.Size {
			return m.MachineId + (id - m.ContainerId), nil
		}
	}
	return 0, fail(codes.InvalidArgument, fmt.Errorf("%s %d is not mapped in the container's user namespace", what, id))
}

// ownerOptions translates uid= and gid= of a filesystem. With def, what is not given is the
// container's root, or where that is not mapped the machine's.
func (c *container) ownerOptions(data []string, def bool) ([]string, error) {
	if !c.hasUsers() {
		return data, nil
	}
	var out []string
	for _, o := range []struct {
		prefix  string
		machine func(uint32) (uint32, error)
	}{{"uid=", c.machineUID}, {"gid=", c.machineGID}} {
		if hasOption(data, o.prefix) || !def {
			continue
		}
		if id, err := o.machine(0); err == nil {
			out = append(out, o.prefix+strconv.FormatUint(uint64(id), 10))
		}
	}
	for _, d := range data {
		machine := c.machineUID
		value, ok := strings.CutPrefix(d, "uid=")
		if !ok {
			machine = c.machineGID
			value, ok = strings.CutPrefix(d, "gid=")
		}
		if id, isID := parseID(value); ok && isID {
			id, err := machine(id)
			if err != nil {
				return nil, err
			}
			d = d[:len("uid=")] + strconv.FormatUint(uint64(id), 10)
		}
		out = append(out, d)
	}
	return out, nil
}

// giveRoot makes the container's root the owner of a file that the agent has made for it.
func (c *container) giveRoot(fd int, name string) error {
	if !c.hasUsers() {
		return nil
	}
	uid, err := c.machineUID(0)
	if err != nil {
		return nil
	}
	gid, err := c.machineGID(0)
	if err != nil {
		return nil
	}
	if err := unix.Fchownat(fd, name, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("give %s to the container's root: %w", name, err)
	}
	return nil
}

// delegate lets the container's root make cgroups below its own, where the mount lets it write
// (cgroups(7), "Cgroups delegation").
func (c *container) delegate() error {
	if !c.hasUsers() {
		return nil
	}
	for _, name := range []string{".", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"} {
		if err := c.giveRoot(c.cgroup.fd, name); err != nil {
			return err
		}
	}
	return nil
}

// enterUsers appends the steps by which a process gets into the container's user
// namespace; of is the pidfd of one that is there already, unless it is the first.
func (c *container) enterUsers(b *launch.Program, first bool, of int) {
	if !c.hasUsers() {
		return
	}
	if !first {
		b.Setns("user", of, unix.CLONE_NEWUSER)
		return
	}
	b.Call("make user namespace", unix.SYS_UNSHARE, unix.CLONE_NEWUSER)
	b.Meet("map ids", c.mapIDs)
	namespaces := unix.CLONE_NEWNS
	if c.ownUTS {
		namespaces |= unix.CLONE_NEWUTS
	}
	b.Call("make namespaces of the user namespace", unix.SYS_UNSHARE, namespaces)
}

// mapIDs writes the maps of a process's new user namespace.
func (c *container) mapIDs(pid int) error {
	for _, m := range []struct {
		file     string
		mappings []*api.IDMapping
	}{{"uid_map", c.request.UidMappings}, {"gid_map", c.request.GidMappings}} {
		var lines strings.Builder
		for _, l := range m.mappings {
			fmt.Fprintf(&lines, "%d %d %d\n", l.ContainerId, l.MachineId, l.Size)
		}
		if err := writeFileAt(procDir, strconv.Itoa(pid)+"/"+m.file, lines.String()); err != nil {
			return fail(codes.InvalidArgument, fmt.Errorf("write %s: %w", m.file, cause(err)))
		}
	}
	return nil
}
