package bundle

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"manis/api/agent"
)

// policies are the numbers of <linux/sched.h>.
var policies = map[specs.LinuxSchedulerPolicy]uint32{
	specs.SchedOther: 0, specs.SchedFIFO: 1, specs.SchedRR: 2, specs.SchedBatch: 3, specs.SchedIdle: 5, specs.SchedDeadline: 6,
}

// scheduleFlags are the SCHED_FLAG_* of the same file, but for those of utilization clamping,
// which the guest's kernel does not have.
var scheduleFlags = map[specs.LinuxSchedulerFlag]uint64{
	specs.SchedFlagResetOnFork: 0x01, specs.SchedFlagReclaim: 0x02, specs.SchedFlagDLOverrun: 0x04,
	specs.SchedFlagKeepPolicy: 0x08, specs.SchedFlagKeepParams: 0x10,
}

// scheduler checks which values go with which policy, as sched(7) says.
func scheduler(s *specs.Scheduler) (*agent.Scheduler, error) {
	if s == nil {
		return nil, nil
	}
	policy, ok := policies[s.Policy]
	if !ok {
		return nil, fmt.Errorf("process.scheduler.policy: the guest's kernel has no %q (SCHED_OTHER is one)", s.Policy)
	}
	realTime := s.Policy == specs.SchedFIFO || s.Policy == specs.SchedRR
	deadline := s.Policy == specs.SchedDeadline
	switch {
	case s.Nice != 0 && s.Policy != specs.SchedOther && s.Policy != specs.SchedBatch:
		return nil, fmt.Errorf("process.scheduler.nice: goes with SCHED_OTHER and SCHED_BATCH only, the policy is %s", s.Policy)
	case s.Nice < -20 || s.Nice > 19:
		return nil, fmt.Errorf("process.scheduler.nice: must be -20 to 19, is %d", s.Nice)
	case s.Priority != 0 && !realTime:
		return nil, fmt.Errorf("process.scheduler.priority: goes with SCHED_FIFO and SCHED_RR only, the policy is %s", s.Policy)
	case realTime && (s.Priority < 1 || s.Priority > 99):
		return nil, fmt.Errorf("process.scheduler.priority: must be 1 to 99, is %d", s.Priority)
	case !deadline && (s.Runtime != 0 || s.Deadline != 0 || s.Period != 0):
		return nil, fmt.Errorf("process.scheduler: runtime, deadline and period go with SCHED_DEADLINE only, the policy is %s", s.Policy)
	case deadline && (s.Runtime < 1024 || s.Runtime > s.Deadline || s.Period != 0 && s.Deadline > s.Period):
		return nil, errors.New("process.scheduler: of SCHED_DEADLINE, 1024 ns <= runtime <= deadline <= period must hold")
	}
	a := &agent.Scheduler{
		Policy: policy, Nice: s.Nice, Priority: uint32(s.Priority),
		RuntimeNs: s.Runtime, DeadlineNs: s.Deadline, PeriodNs: s.Period,
	}
	for i, name := range s.Flags {
		bit, ok := scheduleFlags[name]
		if !ok {
			return nil, fmt.Errorf("process.scheduler.flags[%d]: the guest's kernel has no %q", i, name)
		}
		a.Flags |= bit
	}
	return a, nil
}

// ioPriority gives the argument of ioprio_set(2).
func ioPriority(s *specs.LinuxIOPriority) (uint32, error) {
	if s == nil {
		return 0, nil
	}
	if s.Priority < 0 || s.Priority > 7 {
		return 0, fmt.Errorf("process.ioPriority.priority: must be 0 to 7, is %d", s.Priority)
	}
	for i, class := range []specs.IOPriorityClass{specs.IOPRIO_CLASS_RT, specs.IOPRIO_CLASS_BE, specs.IOPRIO_CLASS_IDLE} {
		if s.Class == class {
			return uint32(i+1)<<13 | uint32(s.Priority), nil
		}
	}
	return 0, fmt.Errorf("process.ioPriority.class: %q is not one (IOPRIO_CLASS_BE is)", s.Class)
}

// affinity gives the CPUs of further processes as a bit mask. A process begins its
// life in the container's cgroup, so of the two moments that the runtime-spec names only
// the final one is left.
func affinity(s *specs.CPUAffinity) ([]byte, error) {
	field, list := "final", s.Final
	if list == "" {
		field, list = "initial", s.Initial
	}
	for _, given := range []string{s.Initial, s.Final} {
		if _, err := parseList(given); err != nil {
			return nil, fmt.Errorf("process.execCPUAffinity: %w", err)
		}
	}
	cpus, err := parseList(list)
	if err != nil {
		return nil, fmt.Errorf("process.execCPUAffinity.%s: %w", field, err)
	}
	var mask []byte
	for _, c := range cpus {
		for len(mask) <= c/8 {
			mask = append(mask, 0)
		}
		mask[c/8] |= 1 << (c % 8)
	}
	return mask, nil
}

// maxCPU bounds the numbers of CPUs and memory nodes.
const maxCPU = 8192

// parseList reads "0-2,4" (cpuset(7), "List format").
func parseList(s string) ([]int, error) {
	if s == "" {
		return nil, nil
	}
	bad := fmt.Errorf("must be a list such as 0-2,4, is %.40q", s)
	seen := make(map[int]bool)
	var list []int
	for part := range strings.SplitSeq(s, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		a, err := strconv.ParseUint(from, 10, 32)
		b := a
		if err == nil && isRange {
			b, err = strconv.ParseUint(to, 10, 32)
		}
		if err != nil || b < a || b >= maxCPU {
			return nil, bad
		}
		for n := int(a); n <= int(b); n++ {
			if !seen[n] {
				seen[n] = true
				list = append(list, n)
			}
		}
	}
	return list, nil
}
