package bundle

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"manis/api/agent"
	"manis/cgroup"
)

// minMachineMemory is the least limit that spec.Machine makes a machine for.
const minMachineMemory = 6 << 20

// minMemory is the least limit of a cgroup that the agent sets.
const minMemory = 512 << 10

// resources translates the limits, for the cgroup and for the machine.
func (p *planner) resources() error {
	r := p.linux.Resources
	if r == nil {
		r = new(specs.LinuxResources)
	}
	a := &agent.Resources{Unified: make(map[string]string)}
	p.Create.Resources = a
	var err error
	rules := r.Devices
	if len(rules) == 0 && p.privileged() {
		rules = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	}
	if a.DeviceRules, err = deviceRules(rules); err != nil {
		return err
	}
	if len(r.Rdma) > 0 {
		return errors.New("linux.resources.rdma: the virtual machine has no RDMA device")
	}
	if err := p.memory(r.Memory); err != nil {
		return fmt.Errorf("linux.resources.memory.%w", err)
	}
	if err := p.cpu(r.CPU); err != nil {
		return fmt.Errorf("linux.resources.cpu.%w", err)
	}
	if p.BlockIO, err = BlockIO(r.BlockIO); err != nil {
		return fmt.Errorf("linux.resources.blockIO.%w", err)
	}
	for i, h := range r.HugepageLimits {
		if err := hugePages(a.Unified, h); err != nil {
			return fmt.Errorf("linux.resources.hugepageLimits[%d].%w", i, err)
		}
	}
	if r.Pids != nil && r.Pids.Limit != nil && *r.Pids.Limit > 0 {
		a.Pids = uint64(*r.Pids.Limit)
		p.Resources.PidsLimit = *r.Pids.Limit
	}
	if n := r.Network; n != nil && (n.ClassID != nil && *n.ClassID != 0 || len(n.Priorities) > 0) {
		p.warn("linux.resources.network: without effect, since the host sees the packets of a virtual machine, not of its processes")
	}
	for _, key := range slices.Sorted(maps.Keys(r.Unified)) {
		if err := unifiedName(key); err != nil {
			return fmt.Errorf("linux.resources.unified: %w", err)
		}
		value := r.Unified[key]
		if value == "" || len(value) > 4096 || strings.IndexByte(value, 0) >= 0 {
			return fmt.Errorf("linux.resources.unified.%s: %.40q is no value", key, value)
		}
		a.Unified[key] = value
	}
	return nil
}

// unifiedName checks the name of a file of a cgroup v2 controller.
func unifiedName(name string) error {
	controller, rest, ok := strings.Cut(name, ".")
	if !ok || controller == "" || rest == "" || controller == "cgroup" || len(name) > 255 || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%.40q is not a file of a cgroup controller (memory.high is one)", name)
	}
	return nil
}

// memory translates limits in bytes, of which -1 is none.
func (p *planner) memory(m *specs.LinuxMemory) error {
	if m == nil {
		return nil
	}
	a := p.Create.Resources
	bytes := func(n *int64) uint64 {
		if n == nil || *n <= 0 {
			return 0
		}
		return uint64(*n)
	}
	a.MemoryBytes, a.MemoryLowBytes, a.MemorySwapBytes = bytes(m.Limit), bytes(m.Reservation), bytes(m.Swap)
	switch {
	case m.Limit != nil && *m.Limit < -1:
		return fmt.Errorf("limit: %d is no size", *m.Limit)
	case a.MemoryBytes != 0 && a.MemoryBytes < minMemory:
		return fmt.Errorf("limit: %d bytes are too few to run anything in (the least is %d)", a.MemoryBytes, minMemory)
	case a.MemorySwapBytes != 0 && a.MemoryBytes == 0:
		return errors.New("swap: limits memory and swap together, which needs a limit of memory")
	case a.MemorySwapBytes != 0 && a.MemorySwapBytes < a.MemoryBytes:
		return fmt.Errorf("swap: limits memory and swap together to %d bytes, which is less than the limit of memory, %d", a.MemorySwapBytes, a.MemoryBytes)
	case a.MemoryBytes != 0 && a.MemoryLowBytes > a.MemoryBytes:
		return fmt.Errorf("reservation: %d bytes are more than the limit, %d", a.MemoryLowBytes, a.MemoryBytes)
	}
	if a.MemoryBytes != 0 {
		p.Resources.MemoryBytes = max(a.MemoryBytes, minMachineMemory)
	}
	p.Resources.MemorySwapBytes, p.Resources.MemoryReservationBytes = a.MemorySwapBytes, a.MemoryLowBytes
	//lint:ignore SA1019 engines still set it.
	kernel := m.Kernel
	for _, w := range []struct {
		set  bool
		name string
		why  string
	}{
		{kernel != nil && *kernel > 0, "kernel", "cgroup v2 counts the kernel's memory with the limit"},
		{m.KernelTCP != nil && *m.KernelTCP > 0, "kernelTCP", "cgroup v2 counts the memory of sockets with the limit"},
		{m.Swappiness != nil, "swappiness", "cgroup v2 has no such control"},
		{m.DisableOOMKiller != nil && *m.DisableOOMKiller, "disableOOMKiller", "cgroup v2 cannot switch it off"},
		{m.UseHierarchy != nil && !*m.UseHierarchy, "useHierarchy", "cgroup v2 is hierarchical always"},
	} {
		if w.set {
			p.warn("linux.resources.memory.%s: without effect: %s", w.name, w.why)
		}
	}
	return nil
}

// cpuPeriod is the kernel's default, microseconds.
const cpuPeriod = 100_000

// cpu translates shares and time of CPUs.
func (p *planner) cpu(c *specs.LinuxCPU) error {
	if c == nil {
		return nil
	}
	a := p.Create.Resources
	if c.RealtimeRuntime != nil && *c.RealtimeRuntime != 0 || c.RealtimePeriod != nil && *c.RealtimePeriod != 0 {
		return errors.New("realtimeRuntime, realtimePeriod: cgroup v2 has no limit of real-time scheduling")
	}
	if c.Shares != nil && *c.Shares != 0 {
		// From 2 to 262144 of cgroup v1 to 1 to 10000 of v2, in a straight line; what lies
		// outside is the nearest.
		shares := max(2, min(*c.Shares, 262144))
		a.CpuWeight = 1 + (shares-2)*9999/262142
		p.Resources.CPUShares = shares
	}
	if err := p.cpuTime(c); err != nil {
		return err
	}
	if c.Idle != nil {
		switch *c.Idle {
		case 0:
		case 1:
			if a.CpuWeight != 0 {
				return errors.New("idle: contradicts cpu.shares: idle processes have no share")
			}
			a.Unified["cpu.idle"] = "1"
		default:
			return fmt.Errorf("idle: must be 0 or 1, is %d", *c.Idle)
		}
	}
	if err := oneNode(c.Mems); err != nil {
		return fmt.Errorf("mems: %w", err)
	}
	list, err := parseList(c.Cpus)
	if err != nil {
		return fmt.Errorf("cpus: %w", err)
	}
	if len(list) > 0 {
		if highest := slices.Max(list); highest >= p.host.cpus {
			return fmt.Errorf("cpus: CPU %d is not there: the host has 0-%d", highest, p.host.cpus-1)
		}
		// The machine's CPUs have the same numbers, but are not bound to the host's.
		a.Cpuset = strings.ReplaceAll(c.Cpus, " ", "")
		p.Resources.CPUSet = a.Cpuset
	}
	return nil
}

// cpuTime translates quota, period and burst, microseconds.
func (p *planner) cpuTime(c *specs.LinuxCPU) error {
	a := p.Create.Resources
	period := uint64(cpuPeriod)
	if c.Period != nil && *c.Period != 0 {
		period = *c.Period
		if period < 1000 || period > 1_000_000 {
			return fmt.Errorf("period: must be 1000 to 1000000 microseconds, is %d", period)
		}
		a.CpuPeriodUs = period
	}
	if c.Quota != nil && *c.Quota > 0 {
		quota := uint64(*c.Quota)
		if quota < 1000 || quota > math.MaxInt64/1000 {
			return fmt.Errorf("quota: must be at least 1000 microseconds, is %d", quota)
		}
		a.CpuQuotaUs, a.CpuPeriodUs = quota, period
		milli := quota / period * 1000
		milli += quota % period * 1000 / period
		if most := uint64(p.host.cpus) * 1000; milli > most {
			p.warn("linux.resources.cpu.quota: it allows more than the host's %d CPUs, which are all that the virtual machine has", p.host.cpus)
			milli = most
		}
		p.Resources.MilliCPUs = max(1, milli)
	}
	if c.Burst != nil && *c.Burst != 0 {
		if a.CpuQuotaUs == 0 || *c.Burst > a.CpuQuotaUs {
			return fmt.Errorf("burst: %d must not be more than the quota, %d", *c.Burst, a.CpuQuotaUs)
		}
		a.Unified["cpu.max.burst"] = strconv.FormatUint(*c.Burst, 10)
	}
	return nil
}

// BlockIO translates limits of input and output, which are the host's to set: the machine does it for the container. The
// result is nil where there are none.
func BlockIO(b *specs.LinuxBlockIO) (*cgroup.BlockIO, error) {
	if b == nil {
		return nil, nil
	}
	if b.LeafWeight != nil && *b.LeafWeight != 0 {
		return nil, errors.New("leafWeight: no kernel has had it since Linux 5.0")
	}
	limits := new(cgroup.BlockIO)
	if w := b.Weight; w != nil && *w != 0 {
		if err := checkWeight(*w); err != nil {
			return nil, fmt.Errorf("weight: %w", err)
		}
		limits.Weight = *w
	}
	for i, d := range b.WeightDevice {
		if d.LeafWeight != nil && *d.LeafWeight != 0 {
			return nil, fmt.Errorf("weightDevice[%d].leafWeight: no kernel has had it since Linux 5.0", i)
		}
		if d.Weight == nil || *d.Weight == 0 {
			continue
		}
		if err := checkWeight(*d.Weight); err != nil {
			return nil, fmt.Errorf("weightDevice[%d].weight: %w", i, err)
		}
		limits.Weights = append(limits.Weights, cgroup.DiskValue{Major: d.Major, Minor: d.Minor, Value: uint64(*d.Weight)})
	}
	for _, t := range []struct {
		name              string
		list              []specs.LinuxThrottleDevice
		write, operations bool
	}{
		{"throttleReadBpsDevice", b.ThrottleReadBpsDevice, false, false}, {"throttleWriteBpsDevice", b.ThrottleWriteBpsDevice, true, false},
		{"throttleReadIOPSDevice", b.ThrottleReadIOPSDevice, false, true}, {"throttleWriteIOPSDevice", b.ThrottleWriteIOPSDevice, true, true},
	} {
		for i, d := range t.list {
			if d.Major < 0 || d.Minor < 0 {
				return nil, fmt.Errorf("%s[%d]: %d:%d is no device", t.name, i, d.Major, d.Minor)
			}
			limits.Rates = append(limits.Rates, cgroup.DiskRate{
				DiskValue: cgroup.DiskValue{Major: d.Major, Minor: d.Minor, Value: d.Rate}, Write: t.write, Operations: t.operations,
			})
		}
	}
	if limits.Weight == 0 && len(limits.Weights)+len(limits.Rates) == 0 {
		return nil, nil
	}
	return limits, nil
}

func checkWeight(w uint16) error {
	if w < 10 || w > 1000 {
		return fmt.Errorf("must be 10 to 1000, is %d", w)
	}
	return nil
}

// hugePages limits pages of one size, in bytes: those in use and those reserved.
func hugePages(files map[string]string, h specs.LinuxHugepageLimit) error {
	digits := strings.TrimRight(h.Pagesize, "KMGB")
	if _, err := strconv.ParseUint(digits, 10, 16); err != nil || !slices.Contains([]string{"KB", "MB", "GB"}, h.Pagesize[len(digits):]) {
		return fmt.Errorf("pageSize: must be a size such as 2MB, is %.20q", h.Pagesize)
	}
	if h.Pagesize != "2MB" && h.Limit == 0 {
		// There are none of these unless the machine is told to set some aside.
		return nil
	}
	if h.Pagesize != "2MB" && h.Pagesize != "1GB" {
		return fmt.Errorf("pageSize: the guest's kernel has pages of 2MB and 1GB, not of %s", h.Pagesize)
	}
	limit := strconv.FormatUint(h.Limit, 10)
	if h.Limit > math.MaxInt64 {
		limit = "max"
	}
	for _, file := range []string{"hugetlb." + h.Pagesize + ".max", "hugetlb." + h.Pagesize + ".rsvd.max"} {
		if _, twice := files[file]; twice {
			return fmt.Errorf("pageSize: there is a limit for %s already", h.Pagesize)
		}
		files[file] = limit
	}
	return nil
}
