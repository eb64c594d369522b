package spec

import (
	"fmt"
	"math/bits"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"manis/container"
)

const (
	// minMemory is the least limit, docker's.
	minMemory = 6 << 20
	// defaultMemory is the machine's size when no limit is declared: room for a
	// web server, an interpreter or a small database. Memory that the guest never
	// touches costs the host nothing, but the kernel's own tables grow with the size
	// and are touched at boot.
	defaultMemory = 512 << 20
	// overhead is what kernel and agent need besides the container's limit, and
	// overheadShare what of it grows with the memory: one struct page of 64 bytes for each
	// 4 KiB, and the 64th part that the agent keeps for itself.
	overhead      = 64 << 20
	overheadShare = 32
	// memoryUnit is what sizes are rounded up to: a huge page. With a limit they are
	// rounded up further, to steps of which every doubling has memorySteps: machines of
	// the same size share a template.
	memoryUnit  = 2 << 20
	memorySteps = 8
	// defaultVCPUs bounds the virtual CPUs when none are declared: each is a
	// thread of the host and, under emulation, a translator with its own cost.
	defaultVCPUs = 2
)

// HostOverhead bounds what the processes of a machine need of the host's memory besides the guest's, bytes: QEMU with
// its cache of translated code, and who owns it. Some 100 MiB were measured for a machine alone
// (docs/SPECIFICATION.md); limits on the host leave room for the worst, so that no machine is killed for what it
// needs itself.
const HostOverhead = 256 << 20

// GuestOverhead is how much larger a machine is than the limit of its container, bytes, before it is
// rounded up.
func GuestOverhead(limit uint64) uint64 { return overhead + limit/overheadShare }

// Machine is the size of the virtual machine for a container: memory in
// bytes and the number of virtual CPUs. The machine is larger than the
// container's limit by what kernel and agent need, so that the container can use all
// that was declared, but never larger than the host.
func Machine(cfg *container.Config) (memoryBytes uint64, vcpus int, err error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, 0, fmt.Errorf("read the host's memory: %w", err)
	}
	return machine(&cfg.Resources, uint64(info.Totalram)*uint64(info.Unit), runtime.NumCPU())
}

func machine(r *container.Resources, hostBytes uint64, hostCPUs int) (uint64, int, error) {
	if r.MemoryBytes > 0 && r.MemoryBytes < minMemory {
		return 0, 0, fmt.Errorf("minimum memory limit allowed is 6MB")
	}
	want := uint64(defaultMemory)
	if r.MemoryBytes > 0 {
		// A limit beyond the host's memory is none.
		limit := min(r.MemoryBytes, hostBytes)
		want = limit + GuestOverhead(limit)
	}
	memory := (want + memoryUnit - 1) / memoryUnit * memoryUnit
	step := max(memoryUnit, uint64(1)<<(bits.Len64(memory-1)-1)/memorySteps)
	memory = (memory + step - 1) / step * step
	memory = min(memory, hostBytes/memoryUnit*memoryUnit)
	if memory < minMemory+overhead {
		return 0, 0, fmt.Errorf("the host has %d MiB of memory, a virtual machine needs %d", hostBytes>>20, (minMemory+overhead)>>20)
	}

	if r.MilliCPUs > uint64(hostCPUs)*1000 {
		return 0, 0, fmt.Errorf("range of CPUs is from 0.01 to %d.00, as there are only %d CPUs available", hostCPUs, hostCPUs)
	}
	vcpus := min(hostCPUs, defaultVCPUs)
	if r.MilliCPUs > 0 {
		vcpus = int(r.MilliCPUs+999) / 1000
	}
	highest, err := highestCPU(r.CPUSet)
	if err != nil {
		return 0, 0, err
	}
	if highest >= hostCPUs {
		return 0, 0, fmt.Errorf("requested CPUs are not available - requested %s, available: 0-%d", r.CPUSet, hostCPUs-1)
	}
	// The container is bound to virtual CPUs of these numbers: they must be there.
	return memory, max(vcpus, highest+1), nil
}

// mostVCPUs bounds how many processors a machine of fewer can be given while it runs: all of them are there, unused, from the
// start. mostMemory bounds the memory, bytes: more would need longer physical addresses than an emulated processor has.
const (
	mostVCPUs  = 4
	mostMemory = 512 << 30
)

// Largest is what a machine of this size may become while it runs: as large as the host, whose memory is rounded up so that
// machines are the same on hosts, and under kernels, that differ a little.
func Largest(memoryBytes uint64, vcpus int) (maxMemoryBytes uint64, maxVCPUs int, err error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, 0, fmt.Errorf("read the host's memory: %w", err)
	}
	maxMemoryBytes, maxVCPUs = largest(memoryBytes, vcpus, uint64(info.Totalram)*uint64(info.Unit), runtime.NumCPU())
	return maxMemoryBytes, maxVCPUs, nil
}

func largest(memoryBytes uint64, vcpus int, hostBytes uint64, hostCPUs int) (uint64, int) {
	host := uint64(1) << bits.Len64(hostBytes-1)
	return max(memoryBytes, min(host, mostMemory)), max(vcpus, min(hostCPUs, mostVCPUs))
}

// highestCPU is the largest number in a list such as "0-2,4"; -1 if it is empty.
func highestCPU(s string) (int, error) {
	highest := -1
	if s == "" {
		return highest, nil
	}
	for part := range strings.SplitSeq(s, ",") {
		from, to, isRange := strings.Cut(part, "-")
		a, err := strconv.ParseUint(from, 10, 16)
		b := a
		if err == nil && isRange {
			b, err = strconv.ParseUint(to, 10, 16)
		}
		if err != nil || b < a {
			return 0, fmt.Errorf("invalid value %s for cpuset cpus", s)
		}
		highest = max(highest, int(b))
	}
	return highest, nil
}
