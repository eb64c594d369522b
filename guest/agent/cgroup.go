package agent

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	api "manis/api/agent"
)

// containersCgroup is the parent of every container's cgroup. Its limits are
// the machine's less what the agent and the kernel need to stay alive.
const containersCgroup = cgroupRoot + "/manis"

// setUpCgroups hands the controllers that the kernel has down to the
// containers' level.
func setUpCgroups() error {
	b, err := readFile(cgroupRoot+"/cgroup.controllers", 4096)
	if err != nil {
		return err
	}
	var enable strings.Builder
	for c := range strings.FieldsSeq(string(b)) {
		enable.WriteString("+" + c + " ")
	}
	if err := writeFile(cgroupRoot+"/cgroup.subtree_control", enable.String()); err != nil {
		return err
	}
	if err := unix.Mkdir(containersCgroup, 0o755); err != nil && err != unix.EEXIST {
		return fmt.Errorf("make cgroup %s: %w", containersCgroup, err)
	}
	return writeFile(containersCgroup+"/cgroup.subtree_control", enable.String())
}

// limitContainers leaves the agent memory and process ids whatever the containers
// do, where the machine has so much memory.
func limitContainers(total uint64) error {
	reserve := max(20<<20, total/64)
	if total > 2*reserve {
		if err := writeFile(containersCgroup+"/memory.max", strconv.FormatUint(total-reserve, 10)); err != nil {
			return err
		}
	}
	most, err := readNumber("/proc/sys/kernel/threads-max")
	if err != nil {
		return err
	}
	if pids, err := readNumber("/proc/sys/kernel/pid_max"); err == nil {
		most = min(most, pids)
	}
	return writeFile(containersCgroup+"/pids.max", strconv.FormatUint(most-most/8, 10))
}

// cgroup is a container's cgroup.
type cgroup struct {
	path string
	fd   int
	// program is the device filter in force, -1 when there is none.
	program int
}

func newCgroup(id string) (*cgroup, error) {
	g := &cgroup{path: containersCgroup + "/" + id, program: -1}
	if err := unix.Mkdir(g.path, 0o755); err != nil {
		return nil, fmt.Errorf("make cgroup of container %s: %w", id, err)
	}
	var err error
	if g.fd, err = unix.Open(g.path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		unix.Rmdir(g.path)
		return nil, fmt.Errorf("open cgroup of container %s: %w", id, err)
	}
	return g, nil
}

func (g *cgroup) write(file, value string) error { return writeFileAt(g.fd, file, value) }

func (g *cgroup) read(file string) ([]byte, error) { return readFileAt(g.fd, file, 1<<20) }

// number reads a file with one number; "max" is math.MaxUint64.
func (g *cgroup) number(file string) (uint64, error) {
	b, err := readFileAt(g.fd, file, 64)
	if err != nil {
		return 0, err
	}
	if trim(b) == "max" {
		return math.MaxUint64, nil
	}
	return strconv.ParseUint(trim(b), 10, 64)
}

// stat reads a file with lines "key number".
func (g *cgroup) stat(file string) (map[string]uint64, error) {
	b, err := g.read(file)
	if err != nil {
		return nil, err
	}
	m := make(map[string]uint64)
	for line := range strings.Lines(string(b)) {
		key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if n, err := strconv.ParseUint(value, 10, 64); ok && err == nil {
			m[key] = n
		}
	}
	return m, nil
}

// limit is one file of a cgroup and what is written to it.
type limit struct{ file, value string }

// limits translates resources. A zero means unlimited: written only when
// explicit, for an update that lifts a limit.
func limits(r *api.Resources, explicit bool) ([]limit, error) {
	if r == nil {
		return nil, nil
	}
	var l []limit
	number := func(file string, n uint64, unlimited string) {
		if n != 0 {
			l = append(l, limit{file, strconv.FormatUint(n, 10)})
		} else if explicit {
			l = append(l, limit{file, unlimited})
		}
	}
	if r.MemoryBytes != 0 && r.MemoryBytes < 512<<10 {
		return nil, fmt.Errorf("a memory limit of %d bytes is too small to run anything", r.MemoryBytes)
	}
	if r.MemorySwapBytes != 0 {
		if r.MemorySwapBytes < r.MemoryBytes {
			return nil, fmt.Errorf("memory and swap together (%d bytes) are less than memory alone (%d)", r.MemorySwapBytes, r.MemoryBytes)
		}
		l = append(l, limit{"memory.swap.max", strconv.FormatUint(r.MemorySwapBytes-r.MemoryBytes, 10)})
	} else if explicit {
		l = append(l, limit{"memory.swap.max", "max"})
	}
	number("memory.max", r.MemoryBytes, "max")
	number("memory.low", r.MemoryLowBytes, "0")
	if r.CpuQuotaUs != 0 || r.CpuPeriodUs != 0 || explicit {
		period := r.CpuPeriodUs
		if period == 0 {
			period = 100000
		}
		quota := "max"
		if r.CpuQuotaUs != 0 {
			quota = strconv.FormatUint(r.CpuQuotaUs, 10)
		}
		l = append(l, limit{"cpu.max", quota + " " + strconv.FormatUint(period, 10)})
	}
	number("cpu.weight", r.CpuWeight, "100")
	if r.Cpuset != "" {
		l = append(l, limit{"cpuset.cpus", r.Cpuset})
	}
	number("pids.max", r.Pids, "max")
	for key, value := range r.Unified {
		if !isName(key) || !strings.Contains(key, ".") || strings.HasPrefix(key, "cgroup.") {
			return nil, fmt.Errorf("cgroup file %q is not one of a controller", key)
		}
		l = append(l, limit{key, value})
	}
	return l, nil
}

// apply writes the limits of r.
func (g *cgroup) apply(r *api.Resources, explicit bool) error {
	list, err := limits(r, explicit)
	if err != nil {
		return fail(codes.InvalidArgument, err)
	}
	for _, l := range list {
		err := g.write(l.file, l.value)
		switch {
		case err == nil:
		case errors.Is(err, unix.ENOENT) && l.file == "memory.swap.max":
			// A kernel without swap has nothing to limit.
		case errors.Is(err, unix.ENOENT):
			return fail(codes.InvalidArgument, fmt.Errorf("limit %s: the guest's kernel has no such control", l.file))
		default:
			return fail(codes.InvalidArgument, fmt.Errorf("set limit %s to %q: %w", l.file, l.value, cause(err)))
		}
	}
	return nil
}

// kill ends every process in the cgroup and below it.
func (g *cgroup) kill() error { return g.write("cgroup.kill", "1") }

// freezeTimeout bounds the wait for a freeze: a process deep in the kernel
// (a hanging volume) may not reach it.
const freezeTimeout = 10 * time.Second

// freeze stops or continues every process and waits until that is so.
func (g *cgroup) freeze(frozen bool) error {
	value := "0"
	if frozen {
		value = "1"
	}
	if err := g.write("cgroup.freeze", value); err != nil {
		return err
	}
	return g.await("frozen "+value, freezeTimeout)
}

// await waits until cgroup.events holds a line.
func (g *cgroup) await(line string, timeout time.Duration) error {
	fd, err := unix.Openat(g.fd, "cgroup.events", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open cgroup.events: %w", err)
	}
	defer unix.Close(fd)
	deadline := time.Now().Add(timeout)
	buf := make([]byte, 256)
	for {
		n, err := unix.Pread(fd, buf, 0)
		if err != nil {
			return fmt.Errorf("read cgroup.events: %w", err)
		}
		for l := range strings.Lines(string(buf[:n])) {
			if strings.TrimSuffix(l, "\n") == line {
				return nil
			}
		}
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("processes did not reach the state %q in %v", line, timeout)
		}
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}
		if _, err := unix.Poll(poll, int(left.Milliseconds())+1); err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for cgroup.events: %w", err)
		}
	}
}

// remove deletes the cgroup, and those that the container made below it, after
// its processes have ended.
func (g *cgroup) remove() error {
	if g.program >= 0 {
		unix.Close(g.program)
		g.program = -1
	}
	unix.Close(g.fd)
	return removeCgroup(g.path, 0)
}

func removeCgroup(path string, depth int) error {
	err := unix.Rmdir(path)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EBUSY || depth > 64 {
		return fmt.Errorf("remove cgroup %s: %w", path, err)
	}
	names, e := readDir(path)
	if e != nil {
		return fmt.Errorf("list cgroup %s: %w", path, e)
	}
	for _, n := range names {
		var st unix.Stat_t
		if unix.Lstat(path+"/"+n, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			if err := removeCgroup(path+"/"+n, depth+1); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(path); err != nil && err != unix.ENOENT {
		return fmt.Errorf("remove cgroup %s: %w", path, err)
	}
	return nil
}

// cause is the system's reason in an error that names more than a user wants.
func cause(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
