package spec

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"manis/api/agent"
	"manis/container"
)

const defaultShmBytes = 64 << 20

// mounts are the default ones and the user's, which replace defaults at the
// same place. A mount comes after those above it.
func mounts(cfg *container.Config, env Environment) ([]*agent.Mount, error) {
	var own []*agent.Mount
	taken := make(map[string]bool)
	for i, m := range cfg.Mounts {
		mount, err := userMount(i, m, env)
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.Destination, err)
		}
		if taken[mount.Destination] {
			return nil, fmt.Errorf("duplicate mount point: %s", mount.Destination)
		}
		taken[mount.Destination] = true
		own = append(own, mount)
	}
	list := slices.DeleteFunc(defaultMounts(cfg), func(m *agent.Mount) bool { return taken[m.Destination] })
	list = append(list, own...)
	slices.SortStableFunc(list, func(a, b *agent.Mount) int {
		return cmp.Compare(strings.Count(a.Destination, "/"), strings.Count(b.Destination, "/"))
	})
	return list, nil
}

// defaultMounts are docker's, which those of the OCI runtime-spec are a part of.
func defaultMounts(cfg *container.Config) []*agent.Mount {
	access := "ro"
	if cfg.Security.Privileged {
		access = "rw"
	}
	shm := cfg.ShmBytes
	if shm == 0 {
		shm = defaultShmBytes
	}
	mount := func(dest, fstype, source string, options ...string) *agent.Mount {
		return &agent.Mount{Destination: dest, Type: fstype, Source: source, Options: options}
	}
	return []*agent.Mount{
		mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
		mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
		mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", access),
		mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
		mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", "size="+strconv.FormatUint(shm, 10)),
		mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
		mount("/sys/fs/cgroup", "cgroup2", "cgroup", "nosuid", "noexec", "nodev", access),
	}
}

// userMount translates the mount with this index.
func userMount(i int, m container.Mount, env Environment) (*agent.Mount, error) {
	dest := path.Clean(m.Destination)
	switch {
	case !path.IsAbs(m.Destination):
		return nil, errors.New("the mount path must be absolute")
	case dest == "/":
		return nil, errors.New("the destination can't be '/'")
	case strings.IndexByte(dest, 0) >= 0:
		return nil, errors.New("the destination holds a NUL byte")
	}
	a := &agent.Mount{Destination: dest}
	switch m.Type {
	case "bind":
		a.Type, a.Source, a.File = "share", cmp.Or(env.BindsTag, "binds")+"/"+strconv.Itoa(i), m.File
		a.Options = []string{"rbind", "rprivate"}
	case "volume":
		a.Type, a.Source = "share", cmp.Or(env.VolumesTag, "volumes")+"/"+strconv.Itoa(i)
		a.Options = []string{"rbind", "rprivate"}
		a.Populate = !m.NoCopy && !env.Filled[i]
	case "tmpfs":
		a.Type, a.Source = "tmpfs", "tmpfs"
		var err error
		if a.Options, err = tmpfsOptions(m.Options); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("unknown type %q: there are bind, volume and tmpfs", m.Type)
	}
	if m.ReadOnly {
		a.Options = append(a.Options, "ro")
	}
	return a, nil
}

// tmpfsOptions adds the user's options to docker's: what can be undone, a later
// option undoes.
func tmpfsOptions(own []string) ([]string, error) {
	options := []string{"noexec", "nosuid", "nodev"}
	for _, given := range own {
		for o := range strings.SplitSeq(given, ",") {
			if o == "" {
				continue
			}
			if err := tmpfsOption(o); err != nil {
				return nil, err
			}
			key, _, _ := strings.Cut(o, "=")
			options = slices.DeleteFunc(options, func(old string) bool {
				name, _, _ := strings.Cut(old, "=")
				return name == key || name == opposites[key]
			})
			options = append(options, o)
		}
	}
	return options, nil
}

// opposites are the flags that a tmpfs may have; empty means none.
var opposites = map[string]string{
	"exec": "noexec", "noexec": "exec", "suid": "nosuid", "nosuid": "suid", "dev": "nodev", "nodev": "dev",
	"ro": "rw", "rw": "ro", "atime": "noatime", "noatime": "atime", "diratime": "nodiratime", "nodiratime": "diratime",
	"relatime": "norelatime", "norelatime": "relatime", "strictatime": "nostrictatime", "nostrictatime": "strictatime",
	"private": "", "rprivate": "", "slave": "", "rslave": "", "shared": "", "rshared": "", "unbindable": "", "runbindable": "",
	"sync": "async", "async": "sync", "dirsync": "", "defaults": "", "tmpcopyup": "",
}

func tmpfsOption(o string) error {
	bad := fmt.Errorf("invalid tmpfs option [%q]", o)
	key, value, valued := strings.Cut(o, "=")
	if !valued {
		if _, ok := opposites[o]; !ok {
			return bad
		}
		return nil
	}
	var err error
	switch key {
	case "size", "nr_blocks", "nr_inodes":
		digits := strings.TrimRight(value, "kKmMgG")
		if key == "size" && strings.HasSuffix(value, "%") {
			digits = strings.TrimSuffix(value, "%")
		} else if len(value)-len(digits) > 1 {
			return bad
		}
		_, err = strconv.ParseUint(digits, 10, 53)
	case "mode":
		_, err = strconv.ParseUint(value, 8, 12)
	case "uid", "gid":
		_, err = strconv.ParseUint(value, 10, 31)
	case "mpol":
		if strings.IndexByte(value, 0) >= 0 {
			return bad
		}
	default:
		return bad
	}
	if err != nil {
		return bad
	}
	return nil
}

// Paths that docker hides from a container, or makes read-only. In a VM of its
// own they say little of the host, but programs must not come to rely on them.
var (
	maskedPaths = strings.Fields(`
		/proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats
		/proc/sched_debug /proc/scsi /proc/timer_list /proc/timer_stats
		/sys/devices/virtual/powercap /sys/firmware`)
	readonlyPaths = strings.Fields(`/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger`)
)

// hiddenPaths are the two lists for a container.
func hiddenPaths(s *container.Security) (masked, readonly []string) {
	if !s.Privileged {
		unmasked := func(p string) bool {
			return slices.ContainsFunc(s.UnmaskPaths, func(pattern string) bool {
				if strings.EqualFold(pattern, "ALL") {
					return true
				}
				match, err := path.Match(pattern, p)
				return err == nil && match
			})
		}
		masked = slices.DeleteFunc(slices.Clone(maskedPaths), unmasked)
		readonly = slices.DeleteFunc(slices.Clone(readonlyPaths), unmasked)
	}
	for _, p := range s.MaskPaths {
		if p = path.Clean("/" + p); !slices.Contains(masked, p) {
			masked = append(masked, p)
		}
	}
	return masked, readonly
}
