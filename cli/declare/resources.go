package declare

import (
	"errors"
	"fmt"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"

	"manis/container"
	"manis/storage"
)

// SizeFlags adds the flags that set the size of a container's machine.
func SizeFlags(fs *pflag.FlagSet, r *container.Resources) {
	fs.VarP((*bytesValue)(&r.MemoryBytes), "memory", "m", "Memory limit of the containers")
	fs.Var((*cpusValue)(&r.MilliCPUs), "cpus", "Number of CPUs of the containers")
}

func (f *Flags) setResources(c *container.Config, _ *Image, _ []string, h Host) error {
	r := &c.Resources
	r.MemoryBytes = uint64(f.memory)
	r.MemorySwapBytes = uint64(f.swap)
	r.MemoryReservationBytes = uint64(f.reservation)
	switch {
	case r.MemoryBytes > 0 && r.MemoryBytes < minMemory:
		return errors.New("minimum memory limit allowed is 6MB")
	case r.MemorySwapBytes > 0 && r.MemoryBytes == 0 && r.MemorySwapBytes != unlimitedBytes:
		return errors.New("you should always set the memory limit when using --memory-swap")
	case r.MemorySwapBytes > 0 && r.MemorySwapBytes < r.MemoryBytes:
		return errors.New("minimum memoryswap limit should be larger than memory limit, see usage")
	case r.MemoryReservationBytes > 0 && r.MemoryBytes > 0 && r.MemoryReservationBytes > r.MemoryBytes:
		return errors.New("minimum memory limit can not be less than memory reservation limit, see usage")
	}

	r.MilliCPUs = uint64(f.cpus)
	if f.cpuQuota != 0 || f.cpuPeriod != 0 {
		if f.cpus != 0 {
			return errors.New("conflicting options: Nano CPUs and CPU Period or Quota cannot both be set")
		}
		period := f.cpuPeriod
		if period == 0 {
			period = 100_000
		}
		if period < 1000 || period > 1_000_000 {
			return errors.New("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
		}
		if f.cpuQuota > 0 {
			if f.cpuQuota < 1000 {
				return errors.New("CPU cfs quota can not be less than 1ms (i.e. 1000)")
			}
			r.MilliCPUs = uint64(max(1, f.cpuQuota*1000/period))
		}
	}
	if r.MilliCPUs > uint64(h.CPUs)*1000 {
		return fmt.Errorf("range of CPUs is from 0.01 to %d.00, as there are only %d CPUs available", h.CPUs, h.CPUs)
	}
	r.CPUShares = f.cpuShares
	if f.cpuShares != 0 && (f.cpuShares < 2 || f.cpuShares > 262144) {
		return fmt.Errorf("invalid --cpu-shares %d: the range is 2 to 262144", f.cpuShares)
	}
	if err := checkCPUSet(f.cpuset, h.CPUs); err != nil {
		return err
	}
	r.CPUSet = f.cpuset
	r.PidsLimit = f.pids
	if f.pids < -1 {
		return fmt.Errorf("invalid --pids-limit %d: set -1 for unlimited", f.pids)
	}
	if f.oomScore < -1000 || f.oomScore > 1000 {
		return fmt.Errorf("invalid value %d, range for oom score adj is [-1000, 1000]", f.oomScore)
	}
	r.OOMScore = f.oomScore

	for _, s := range f.ulimits {
		u, err := parseUlimit(s)
		if err != nil {
			return err
		}
		r.Ulimits = slices.DeleteFunc(r.Ulimits, func(old container.Ulimit) bool { return old.Name == u.Name })
		r.Ulimits = append(r.Ulimits, u)
	}
	for _, s := range f.devices {
		d, err := parseDevice(s)
		if err != nil {
			return err
		}
		r.DeviceList = append(r.DeviceList, d)
	}
	for _, s := range f.sysctls {
		key, value, _ := strings.Cut(s, "=")
		if c.Sysctls == nil {
			c.Sysctls = make(map[string]string)
		}
		c.Sysctls[key] = value
	}
	c.ShmBytes = uint64(f.shm)
	if c.ShmBytes == 0 {
		c.ShmBytes = defaultShm
	}
	for _, s := range f.storageOpt {
		if err := parseStorageOpt(s, &c.Scratch); err != nil {
			return err
		}
	}
	return nil
}

// checkCPUSet reads a list such as "0-2,4".
func checkCPUSet(s string, cpus int) error {
	if s == "" {
		return nil
	}
	for part := range strings.SplitSeq(s, ",") {
		from, to, isRange := strings.Cut(part, "-")
		a, err := strconv.ParseUint(from, 10, 16)
		b := a
		if err == nil && isRange {
			b, err = strconv.ParseUint(to, 10, 16)
		}
		if err != nil || b < a {
			return fmt.Errorf("invalid value %s for cpuset cpus", s)
		}
		if b >= uint64(cpus) {
			return fmt.Errorf("requested CPUs are not available - requested %s, available: 0-%d", s, cpus-1)
		}
	}
	return nil
}

var ulimitNames = []string{
	"core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc",
	"rss", "rtprio", "rttime", "sigpending", "stack",
}

func checkUlimit(s string) error { _, err := parseUlimit(s); return err }

// parseUlimit reads name=soft[:hard]; -1 is unlimited.
func parseUlimit(s string) (container.Ulimit, error) {
	name, limits, ok := strings.Cut(s, "=")
	if !ok {
		return container.Ulimit{}, fmt.Errorf("invalid ulimit argument: %s", s)
	}
	if !slices.Contains(ulimitNames, name) {
		return container.Ulimit{}, fmt.Errorf("invalid ulimit type: %s", name)
	}
	soft, hard, two := strings.Cut(limits, ":")
	u := container.Ulimit{Name: name}
	var err error
	if u.Soft, err = parseLimit(soft); err != nil {
		return u, fmt.Errorf("invalid ulimit %s: %w", s, err)
	}
	u.Hard = u.Soft
	if two {
		if u.Hard, err = parseLimit(hard); err != nil {
			return u, fmt.Errorf("invalid ulimit %s: %w", s, err)
		}
	}
	if u.Hard != -1 && (u.Soft == -1 || u.Soft > u.Hard) {
		return u, fmt.Errorf("ulimit soft limit must be less than or equal to hard limit: %s", s)
	}
	return u, nil
}

func parseLimit(s string) (int64, error) {
	if s == "unlimited" {
		return -1, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < -1 {
		return 0, fmt.Errorf("%q is no limit", s)
	}
	return n, nil
}

func checkDevice(s string) error { _, err := parseDevice(s); return err }

// parseDevice reads path[:path in container][:rwm]. The paths are the VM's.
func parseDevice(s string) (container.Device, error) {
	parts := strings.Split(s, ":")
	d := container.Device{Path: parts[0], PathInContainer: parts[0], Access: "rwm"}
	switch {
	case len(parts) == 2 && deviceAccess(parts[1]):
		d.Access = parts[1]
	case len(parts) == 2:
		d.PathInContainer = parts[1]
	case len(parts) == 3:
		d.PathInContainer = parts[1]
		d.Access = parts[2]
		if !deviceAccess(d.Access) {
			return d, fmt.Errorf("bad mode specified: %s", d.Access)
		}
	case len(parts) > 3:
		return d, fmt.Errorf("invalid device specification: %s", s)
	}
	if d.PathInContainer == "" {
		d.PathInContainer = d.Path
	}
	for _, p := range []string{d.Path, d.PathInContainer} {
		if !path.IsAbs(p) || path.Clean(p) != p || !strings.HasPrefix(p, "/dev/") {
			return d, fmt.Errorf("bad format for path: %s: devices are below /dev/", s)
		}
	}
	return d, nil
}

func deviceAccess(s string) bool {
	if s == "" || strings.Trim(s, "rwm") != "" {
		return false
	}
	for _, c := range "rwm" {
		if strings.Count(s, string(c)) > 1 {
			return false
		}
	}
	return true
}

func checkSysctl(s string) error {
	key, value, ok := strings.Cut(s, "=")
	if !ok || key == "" || value == "" || strings.ContainsAny(key, "\x00") || slices.Contains(strings.Split(key, "/"), "..") {
		return fmt.Errorf("%q is no sysctl: expected name=value", s)
	}
	return nil
}

func checkStorageOpt(s string) error { return parseStorageOpt(s, new(container.Scratch)) }

func parseStorageOpt(s string, scratch *container.Scratch) error {
	key, value, _ := strings.Cut(s, "=")
	switch key {
	case "size":
		n, err := storage.ParseStorageOption(s)
		if err != nil {
			return err
		}
		scratch.Bytes = uint64(n)
		return nil
	case "type":
		switch value {
		case "disk", "memory":
			scratch.Memory = value == "memory"
			return nil
		}
		return fmt.Errorf("invalid type %q: must be disk or memory", value)
	}
	return fmt.Errorf("unknown storage option %q: there are size and type", key)
}

// positiveSize reads an amount of storage: "10g".
func positiveSize(s string) (uint64, error) {
	n, err := units.RAMInBytes(s)
	if err != nil {
		return 0, err
	}
	if n <= 0 || n == math.MaxInt64 {
		return 0, fmt.Errorf("invalid size: %q is no possible one", s)
	}
	return uint64(n), nil
}
