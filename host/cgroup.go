package host

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// groupCheck says which version of control groups the host has, and whether
// this user may limit VMs with them. Without, VMs run, each with the memory that
// it was given as the only limit.
func groupCheck() Check {
	const name, root = "cgroups", "/sys/fs/cgroup"
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return Check{name, Warn, "not mounted at " + root, "mount -t cgroup2 cgroup2 " + root}
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		return groupsV1(name, root)
	}
	own := root
	if os.Geteuid() != 0 {
		b, err := os.ReadFile("/proc/self/cgroup")
		if err != nil {
			return Check{name, Warn, err.Error(), ""}
		}
		for line := range strings.Lines(string(b)) {
			if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
				own = filepath.Join(root, path)
			}
		}
	}
	b, err := os.ReadFile(filepath.Join(own, "cgroup.controllers"))
	if err != nil {
		return Check{name, Warn, err.Error(), ""}
	}
	have := strings.Fields(string(b))
	var missing []string
	for _, c := range []string{"memory", "pids", "cpu"} {
		if !slices.Contains(have, c) {
			missing = append(missing, c)
		}
	}
	switch {
	case unix.Access(own, unix.W_OK) != nil:
		return Check{name, Warn, "version 2, not delegated to this user",
			"to limit VMs as a whole, start manis in a delegated unit: systemd-run --user --scope -p Delegate=yes manis ..."}
	case len(missing) > 0:
		return Check{name, Warn, "version 2, without " + strings.Join(missing, ", "),
			"delegate them: systemctl edit user@.service with Delegate=cpu memory pids"}
	}
	return ok(name, "version 2, with %s", strings.Join(have, " "))
}

func groupsV1(name, root string) Check {
	var have []string
	writable := true
	for _, c := range []string{"memory", "pids", "cpu", "freezer"} {
		dir := filepath.Join(root, c)
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		have = append(have, c)
		writable = writable && unix.Access(dir, unix.W_OK) == nil
	}
	c := ok(name, "version 1, with %s", strings.Join(have, " "))
	if len(have) == 0 {
		return Check{name, Warn, fmt.Sprintf("no controller below %s", root), "mount control groups: boot with systemd.unified_cgroup_hierarchy=1"}
	}
	if !writable {
		c.Status = Warn
		c.Detail += ", not delegated to this user"
		c.Advice = "version 1 cannot be delegated safely: to limit VMs as a whole, run manis as root or use version 2"
	}
	return c
}
