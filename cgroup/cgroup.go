// Package cgroup makes control groups of the host, of version 1 or 2, for processes that belong
// together, where the host permits it. It knows nothing of who the processes are.
package cgroup

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// root is where the host mounts its control groups.
const root = "/sys/fs/cgroup"

// Config names a control group.
type Config struct {
	// Path begins with "/" for a path from the root of each hierarchy; else it is
	// relative to the group of the calling process. Empty: no group.
	Path string
	// MemoryBytes and PIDs limit the group; 0 is no limit.
	MemoryBytes uint64
	PIDs        int64
	// Account makes the group in every hierarchy that counts something, too, and in those of
	// LimitCPU.
	Account bool
}

// limited are the controllers whose limits are set by Make, counting those that count or that limit
// on demand, in version 1's names; onDemand are the ones of version 2 that have to be switched on for these.
var (
	limited  = []string{"memory", "pids"}
	counting = []string{"cpu", "cpuacct", "blkio", "freezer", "devices", "cpuset"}
	onDemand = []string{"memory", "pids", "cpu", "cpuset", "io"}
)

// Group is a control group that was made by this process, or is to be removed by it.
type Group struct {
	path string // as asked for
	dirs []dir
}

// dir is the group in one hierarchy.
type dir struct {
	// controller is empty for the unified hierarchy of version 2.
	controller string
	path       string // below /sys/fs/cgroup
	within     string // below the hierarchy's root, as in /proc/PID/cgroup
}

func (g *Group) String() string {
	v := "v2"
	if g.dirs[0].controller != "" {
		v = "v1"
	}
	return fmt.Sprintf("%s (%s)", g.dirs[0].within, v)
}

// Make makes the group where the host permits it and sets its limits.
// On error nothing is left.
func Make(c Config) (_ *Group, err error) {
	if c.Path == "" {
		return nil, errors.New("none asked for")
	}
	if slices.Contains(strings.Split(c.Path, "/"), "..") {
		return nil, fmt.Errorf("path %s leads upwards", c.Path)
	}
	own, err := ownGroups()
	if err != nil {
		return nil, err
	}
	g := &Group{path: c.Path}
	unified := unifiedRoot()
	controllers := limited
	if c.Account {
		controllers = slices.Concat(limited, counting)
	}
	for _, name := range controllers {
		d, e := place(name, c.Path, own, unified)
		if e != nil {
			err = e
			continue // its limits cannot be set: set says so
		}
		if !slices.ContainsFunc(g.dirs, func(o dir) bool { return o.path == d.path }) {
			g.dirs = append(g.dirs, d)
		}
	}
	if len(g.dirs) == 0 {
		return nil, err
	}
	defer func() {
		if err != nil {
			g.Remove()
		}
	}()
	for i, d := range g.dirs {
		if err := os.MkdirAll(d.path, 0o755); err != nil {
			g.dirs = g.dirs[:i]
			return nil, err
		}
		switch {
		case d.controller == "" && c.Account:
			delegate(unified, d.within, onDemand)
		case d.controller == "":
			delegate(unified, d.within, limited)
		case d.controller == "cpuset":
			if err := inheritSets(d); err != nil {
				return nil, err
			}
		}
	}
	if c.MemoryBytes > 0 {
		if err := g.set("memory", "memory.limit_in_bytes", "memory.max", strconv.FormatUint(c.MemoryBytes, 10)); err != nil {
			return nil, err
		}
	}
	if c.PIDs > 0 {
		if err := g.set("pids", "pids.max", "pids.max", strconv.FormatInt(c.PIDs, 10)); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// ownGroups is this process's /proc/PID/cgroup.
func ownGroups() (string, error) {
	f, err := os.Open("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64<<10))
	return string(b), err
}

// Own says in which groups this process is, in the form of /proc/PID/cgroup, for Return.
func Own() string {
	own, _ := ownGroups()
	return own
}

// Return puts a process into the groups in which another one was, as far as they are known here.
func Return(pid int, groups string) error {
	unified := unifiedRoot()
	g := new(Group)
	for _, name := range slices.Concat(limited, counting) {
		controller := name
		if unified != "" {
			controller = ""
		}
		if at, ok := membership(groups, controller); ok {
			if d, err := place(name, at, groups, unified); err == nil {
				g.dirs = append(g.dirs, d)
			}
		}
	}
	return g.Join(pid)
}

// Take puts processes into the groups in which this process is, in every hierarchy that is mounted here, as if it had
// started them: whoever empties the groups in which they were does not find them any more. Where that is not permitted they
// stay.
func Take(pids ...int) {
	own, err := ownGroups()
	if err != nil {
		return
	}
	theirs := make([]string, len(pids))
	for i, pid := range pids {
		b, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
		theirs[i] = string(b)
	}
	for line := range strings.Lines(own) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 {
			continue
		}
		var mounted string
		switch name, named := strings.CutPrefix(f[1], "name="); {
		case named:
			mounted = filepath.Join(root, name)
		case f[1] != "":
			mounted = filepath.Join(root, f[1])
			if _, err := os.Stat(mounted); err != nil {
				first, _, _ := strings.Cut(f[1], ",")
				mounted = filepath.Join(root, first)
			}
		case unifiedRoot() != "":
			mounted = root
		default:
			mounted = filepath.Join(root, "unified")
		}
		for i, pid := range pids {
			// The kernel waits for a grace period when it moves a process, so only what has to is moved.
			if !strings.Contains(theirs[i], line) {
				os.WriteFile(filepath.Join(mounted, f[2], "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
			}
		}
	}
}

// Find is the group of this path for removal, which need not exist.
func Find(c Config) (*Group, error) {
	own, err := ownGroups()
	if err != nil {
		return nil, err
	}
	g := &Group{path: c.Path}
	unified := unifiedRoot()
	for _, name := range slices.Concat(limited, counting) {
		if d, err := place(name, c.Path, own, unified); err == nil && !slices.ContainsFunc(g.dirs, func(o dir) bool { return o.path == d.path }) {
			g.dirs = append(g.dirs, d)
		}
	}
	return g, nil
}

// unifiedRoot is the mount point of version 2 if it has the controllers.
func unifiedRoot() string {
	if isUnified(root) {
		return root
	}
	return ""
}

func isUnified(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// place says where the group is for a controller.
func place(controller, path, own, unified string) (dir, error) {
	d := dir{controller: controller, path: filepath.Join(root, controller)}
	if unified != "" {
		d = dir{path: unified}
	} else if _, err := os.Stat(d.path); err != nil {
		return dir{}, fmt.Errorf("control group %s is not mounted: %w", controller, err)
	}
	d.within = filepath.Clean("/" + path)
	if !strings.HasPrefix(path, "/") {
		base, ok := membership(own, d.controller)
		if !ok {
			return dir{}, fmt.Errorf("no control group of our own for %s", controller)
		}
		d.within = filepath.Join(base, path)
	}
	d.path = filepath.Join(d.path, d.within)
	return d, nil
}

// membership finds in a /proc/PID/cgroup the group for a controller, or the
// unified one for "".
func membership(file, controller string) (string, bool) {
	for line := range strings.Lines(file) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 {
			continue
		}
		if f[1] == "" && controller == "" || f[1] != "" && slices.Contains(strings.Split(f[1], ","), controller) {
			return f[2], true
		}
	}
	return "", false
}

// delegate switches the controllers on from the root down to the group's
// parent. Whether it was permitted shows when a limit is set.
func delegate(root, within string, controllers []string) {
	at := root
	for part := range strings.SplitSeq(strings.Trim(filepath.Dir(within), "/"), "/") {
		for _, c := range controllers {
			os.WriteFile(filepath.Join(at, "cgroup.subtree_control"), []byte("+"+c), 0)
		}
		if part == "" {
			return
		}
		at = filepath.Join(at, part)
	}
	for _, c := range controllers {
		os.WriteFile(filepath.Join(at, "cgroup.subtree_control"), []byte("+"+c), 0)
	}
}

func (g *Group) set(controller, v1, v2, value string) error {
	for _, d := range g.dirs {
		file := v1
		if d.controller == "" {
			file = v2
		} else if d.controller != controller {
			continue
		}
		if err := os.WriteFile(filepath.Join(d.path, file), []byte(value), 0); err != nil {
			return fmt.Errorf("limit %s: %w", controller, err)
		}
		return nil
	}
	return fmt.Errorf("limit %s: no such control group on this host", controller)
}

// Join puts a process into the group.
func (g *Group) Join(pid int) error {
	for _, d := range g.dirs {
		if err := os.WriteFile(filepath.Join(d.path, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("join control group %s: %w", d.within, err)
		}
	}
	return nil
}

// Holds checks a /proc/PID/cgroup.
func (g *Group) Holds(file string) error {
	for _, d := range g.dirs {
		if at, _ := membership(file, d.controller); at != d.within {
			return fmt.Errorf("the process is in %s, not %s", at, d.within)
		}
	}
	return nil
}

// removeTime is how long the kernel may take to notice that a group is empty.
const removeTime = 2 * time.Second

// Remove removes the group, which its process must have left.
func (g *Group) Remove() error {
	var errs []error
	deadline := time.Now().Add(removeTime)
	for _, d := range g.dirs {
		for {
			err := os.Remove(d.path)
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				break
			}
			// The last thread of a reaped process may still be on its way out; no
			// event tells of it in version 1.
			if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
				errs = append(errs, err)
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	return errors.Join(errs...)
}

// Unified reports whether the host's control groups are those of version 2.
func Unified() bool { return unifiedRoot() != "" }
