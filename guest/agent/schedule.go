package agent

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	api "manis/api/agent"
	"manis/launch"
)

// ioprioWhoProcess is IOPRIO_WHO_PROCESS of <linux/ioprio.h>.
const ioprioWhoProcess = 1

// schedule appends when and where the process runs, before it loses the right to choose.
func schedule(b *launch.Program, p *api.Process) {
	if s := p.Scheduler; s != nil {
		// struct sched_attr of sched_setattr(2), in its first form.
		const size = 48
		attr := make([]byte, 0, size)
		attr = binary.NativeEndian.AppendUint32(attr, size)
		attr = binary.NativeEndian.AppendUint32(attr, s.Policy)
		attr = binary.NativeEndian.AppendUint64(attr, s.Flags)
		attr = binary.NativeEndian.AppendUint32(attr, uint32(s.Nice))
		attr = binary.NativeEndian.AppendUint32(attr, s.Priority)
		attr = binary.NativeEndian.AppendUint64(attr, s.RuntimeNs)
		attr = binary.NativeEndian.AppendUint64(attr, s.DeadlineNs)
		attr = binary.NativeEndian.AppendUint64(attr, s.PeriodNs)
		b.Call("set scheduler", unix.SYS_SCHED_SETATTR, 0, attr, 0)
	}
	if p.IoPriority != 0 {
		b.Call("set I/O priority", unix.SYS_IOPRIO_SET, ioprioWhoProcess, 0, int(p.IoPriority))
	}
	if len(p.CpuAffinity) > 0 {
		b.Call("set CPU affinity", unix.SYS_SCHED_SETAFFINITY, 0, len(p.CpuAffinity), p.CpuAffinity)
	}
	if p.Personality != 0 {
		b.Call("set personality", unix.SYS_PERSONALITY, int(p.Personality))
	}
}
