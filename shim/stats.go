package shim

import (
	"context"
	"errors"

	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"google.golang.org/protobuf/proto"

	"manis/api/agent"
	"manis/cgroup"
)

// metrics are a container's counters, which are of the guest's control group of version 2, in the shape that
// callers expect on this host.
func metrics(s *agent.StatsResponse, unified bool) proto.Message {
	if unified {
		return unifiedMetrics(s)
	}
	return hierarchyMetrics(s)
}

// podMetrics are the counters of a whole pod: processors and memory of its control group on the host, which has the machine and this
// process in it, and what the guest's network card counts.
func (s *service) podMetrics(ctx context.Context, g *ground) (*anypb.Any, error) {
	u := g.group.Usage()
	all := &agent.StatsResponse{
		CpuUsageUs: uint64(u.CPU.Microseconds()), CpuUserUs: uint64(u.User.Microseconds()), CpuSystemUs: uint64(u.System.Microseconds()),
		MemoryBytes: u.MemoryBytes, MemoryStat: u.Memory, Pids: u.Pids,
	}
	// Any container knows the machine's network, which all have in common.
	for _, c := range s.inMachine() {
		if !g.pod.Permits("stats") {
			break
		}
		var one *agent.StatsResponse
		err := within(ctx, answerTime, func(ctx context.Context) (err error) {
			one, err = g.pod.Stats(ctx, c.id)
			return err
		})
		if err == nil {
			all.RxBytes, all.RxPackets, all.TxBytes, all.TxPackets = one.RxBytes, one.RxPackets, one.TxBytes, one.TxPackets
			break
		}
		if errors.Is(err, context.DeadlineExceeded) {
			break // the others would not answer either
		}
	}
	return typeurl.MarshalAnyToProto(metrics(all, cgroup.Unified()))
}

// inMachine are the containers that run in the machine.
func (s *service) inMachine() []*container {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*container
	for _, c := range s.containers {
		if status, _ := c.init.state(); !c.pause && status == task.Status_RUNNING {
			list = append(list, c)
		}
	}
	return list
}

func unifiedMetrics(s *agent.StatsResponse) *v2.Metrics {
	m := s.MemoryStat
	return &v2.Metrics{
		Pids: &v2.PidsStat{Current: s.Pids, Limit: s.PidsLimit},
		CPU:  &v2.CPUStat{UsageUsec: s.CpuUsageUs, UserUsec: s.CpuUserUs, SystemUsec: s.CpuSystemUs},
		Memory: &v2.MemoryStat{
			Usage: s.MemoryBytes, UsageLimit: s.MemoryLimitBytes,
			Anon: m["anon"], File: m["file"], KernelStack: m["kernel_stack"], Slab: m["slab"], Sock: m["sock"], Shmem: m["shmem"],
			FileMapped: m["file_mapped"], FileDirty: m["file_dirty"], FileWriteback: m["file_writeback"], AnonThp: m["anon_thp"],
			InactiveAnon: m["inactive_anon"], ActiveAnon: m["active_anon"], InactiveFile: m["inactive_file"], ActiveFile: m["active_file"],
			Unevictable: m["unevictable"], SlabReclaimable: m["slab_reclaimable"], SlabUnreclaimable: m["slab_unreclaimable"],
			Pgfault: m["pgfault"], Pgmajfault: m["pgmajfault"],
		},
		MemoryEvents: &v2.MemoryEvents{OomKill: s.OomKills},
		Io:           &v2.IOStat{Usage: []*v2.IOEntry{{Rbytes: s.ReadBytes, Wbytes: s.WriteBytes}}},
		Network:      []*v2.NetworkStat{{Name: "eth0", RxBytes: s.RxBytes, RxPackets: s.RxPackets, TxBytes: s.TxBytes, TxPackets: s.TxPackets}},
	}
}

// noLimit is what version 1 has for a limit of memory that is not set.
const noLimit = 1<<63 - 4096

func hierarchyMetrics(s *agent.StatsResponse) *v1.Metrics {
	m := s.MemoryStat
	limit := s.MemoryLimitBytes
	if limit == 0 {
		limit = noLimit
	}
	return &v1.Metrics{
		Pids: &v1.PidsStat{Current: s.Pids, Limit: s.PidsLimit},
		CPU: &v1.CPUStat{
			Usage:      &v1.CPUUsage{Total: s.CpuUsageUs * 1000, Kernel: s.CpuSystemUs * 1000, User: s.CpuUserUs * 1000},
			Throttling: new(v1.Throttle),
		},
		Memory: &v1.MemoryStat{
			Usage: &v1.MemoryEntry{Usage: s.MemoryBytes, Limit: limit, Failcnt: s.OomKills},
			Swap:  new(v1.MemoryEntry), Kernel: new(v1.MemoryEntry), KernelTCP: new(v1.MemoryEntry),
			HierarchicalMemoryLimit: limit,
			Cache:                   m["file"], TotalCache: m["file"], RSS: m["anon"], TotalRSS: m["anon"],
			MappedFile: m["file_mapped"], TotalMappedFile: m["file_mapped"], Dirty: m["file_dirty"], TotalDirty: m["file_dirty"],
			Writeback: m["file_writeback"], TotalWriteback: m["file_writeback"],
			PgFault: m["pgfault"], TotalPgFault: m["pgfault"], PgMajFault: m["pgmajfault"], TotalPgMajFault: m["pgmajfault"],
			InactiveAnon: m["inactive_anon"], TotalInactiveAnon: m["inactive_anon"], ActiveAnon: m["active_anon"], TotalActiveAnon: m["active_anon"],
			InactiveFile: m["inactive_file"], TotalInactiveFile: m["inactive_file"], ActiveFile: m["active_file"], TotalActiveFile: m["active_file"],
			Unevictable: m["unevictable"], TotalUnevictable: m["unevictable"],
		},
		Blkio: &v1.BlkIOStat{IoServiceBytesRecursive: []*v1.BlkIOEntry{{Op: "Read", Value: s.ReadBytes}, {Op: "Write", Value: s.WriteBytes}}},
		Network: []*v1.NetworkStat{{
			Name: "eth0", RxBytes: s.RxBytes, RxPackets: s.RxPackets, TxBytes: s.TxBytes, TxPackets: s.TxPackets,
		}},
		MemoryOomControl: &v1.MemoryOomControl{OomKill: s.OomKills},
	}
}
