package spec

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"manis/api/agent"
	"manis/container"
)

// cpuPeriod is the period of quotas, microseconds.
const cpuPeriod = 100_000

// resources translates the limits of the container's cgroup.
func resources(r *container.Resources) (*agent.Resources, error) {
	a := &agent.Resources{
		MemoryBytes:    r.MemoryBytes,
		MemoryLowBytes: r.MemoryReservationBytes,
		Cpuset:         r.CPUSet,
	}
	// The largest number is docker's -1: no limit.
	if r.MemorySwapBytes != math.MaxUint64 {
		a.MemorySwapBytes = r.MemorySwapBytes
	}
	if a.MemorySwapBytes != 0 && a.MemorySwapBytes < r.MemoryBytes {
		return nil, fmt.Errorf("minimum memoryswap limit should be larger than memory limit, see usage")
	}
	if r.MilliCPUs > 0 {
		if r.MilliCPUs > maxMilliCPUs {
			return nil, fmt.Errorf("%d thousandths of a CPU are more than any machine has", r.MilliCPUs)
		}
		a.CpuPeriodUs = cpuPeriod
		a.CpuQuotaUs = r.MilliCPUs * cpuPeriod / 1000
		if a.CpuQuotaUs < 1000 {
			return nil, fmt.Errorf("%d thousandths of a CPU are too few (the least is 10, --cpus 0.01)", r.MilliCPUs)
		}
	}
	if r.CPUShares != 0 {
		if r.CPUShares < 2 || r.CPUShares > 262144 {
			return nil, fmt.Errorf("cpu shares %d are out of range: 2 to 262144", r.CPUShares)
		}
		// From the range of cgroup v1 to that of v2, as runc and crun convert it.
		a.CpuWeight = 1 + (r.CPUShares-2)*9999/262142
	}
	if r.PidsLimit < -1 {
		return nil, fmt.Errorf("pids limit %d is not one: -1 means unlimited", r.PidsLimit)
	}
	a.Pids = uint64(max(r.PidsLimit, 0))
	if r.OOMScore < -1000 || r.OOMScore > 1000 {
		return nil, fmt.Errorf("invalid value %d, range for oom score adj is [-1000, 1000]", r.OOMScore)
	}
	return a, nil
}

const maxMilliCPUs = 1 << 20

// ulimits maps docker's names to the kernel's.
var ulimits = map[string]string{
	"as": "RLIMIT_AS", "core": "RLIMIT_CORE", "cpu": "RLIMIT_CPU", "data": "RLIMIT_DATA",
	"fsize": "RLIMIT_FSIZE", "locks": "RLIMIT_LOCKS", "memlock": "RLIMIT_MEMLOCK",
	"msgqueue": "RLIMIT_MSGQUEUE", "nice": "RLIMIT_NICE", "nofile": "RLIMIT_NOFILE",
	"nproc": "RLIMIT_NPROC", "rss": "RLIMIT_RSS", "rtprio": "RLIMIT_RTPRIO",
	"rttime": "RLIMIT_RTTIME", "sigpending": "RLIMIT_SIGPENDING", "stack": "RLIMIT_STACK",
}

// maxFiles is the kernel's fs.nr_open: it takes no higher limit, not even
// "unlimited".
const maxFiles = 1 << 20

// defaultUlimits are those in which a guest's kernel differs from the hosts that
// people know: systemd's limits of descriptors, and processes bounded by the cgroup
// instead of by the size of the machine's memory.
var defaultUlimits = []container.Ulimit{
	{Name: "nofile", Soft: 1024, Hard: 524288},
	{Name: "nproc", Soft: -1, Hard: -1},
}

// rlimits are the defaults and the user's, in a stable order.
func rlimits(own []container.Ulimit) ([]*agent.Rlimit, error) {
	merged := make(map[string]container.Ulimit)
	for _, u := range slices.Concat(defaultUlimits, own) {
		merged[strings.ToLower(u.Name)] = u
	}
	var list []*agent.Rlimit
	for name, u := range merged {
		kind, ok := ulimits[name]
		if !ok {
			return nil, fmt.Errorf("invalid ulimit type: %s", u.Name)
		}
		if u.Soft < -1 || u.Hard < -1 {
			return nil, fmt.Errorf("ulimit %s=%d:%d: a limit is a number, or -1 for unlimited", name, u.Soft, u.Hard)
		}
		if u.Hard != -1 && (u.Soft == -1 || u.Soft > u.Hard) {
			return nil, fmt.Errorf("ulimit soft limit must be less than or equal to hard limit: %s=%d:%d", name, u.Soft, u.Hard)
		}
		a := &agent.Rlimit{Type: kind, Soft: uint64(u.Soft), Hard: uint64(u.Hard)}
		if name == "nofile" {
			if u.Hard > maxFiles {
				return nil, fmt.Errorf("ulimit nofile=%d:%d: the kernel takes at most %d", u.Soft, u.Hard, maxFiles)
			}
			a.Soft, a.Hard = min(a.Soft, maxFiles), min(a.Hard, maxFiles)
		}
		list = append(list, a)
	}
	slices.SortFunc(list, func(a, b *agent.Rlimit) int { return strings.Compare(a.Type, b.Type) })
	return list, nil
}
