package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"manis/api/agent"
	"manis/pod"
)

// event is one line of the verb events, as runc prints it.
type event struct {
	Type string `json:"type"`
	ID   string `json:"id"`
	Data any    `json:"data,omitempty"`
}

// stats are a container's counters in the shape of runc's.
type stats struct {
	CPU struct {
		Usage struct {
			Total  uint64 `json:"total"` // nanoseconds
			Kernel uint64 `json:"kernel"`
			User   uint64 `json:"user"`
		} `json:"usage"`
		Throttling struct{} `json:"throttling"`
	} `json:"cpu"`
	CPUSet struct{} `json:"cpuset"`
	Memory struct {
		Cache     uint64            `json:"cache"`
		Usage     memoryEntry       `json:"usage"`
		Swap      memoryEntry       `json:"swap"`
		Kernel    memoryEntry       `json:"kernel"`
		KernelTCP memoryEntry       `json:"kernelTCP"`
		Raw       map[string]uint64 `json:"raw,omitempty"`
	} `json:"memory"`
	Pids struct {
		Current uint64 `json:"current"`
		Limit   uint64 `json:"limit,omitempty"`
	} `json:"pids"`
	Blkio struct {
		Bytes []blkioEntry `json:"ioServiceBytesRecursive,omitempty"`
	} `json:"blkio"`
	Network []networkInterface `json:"network_interfaces"`
}

type memoryEntry struct {
	Limit   uint64 `json:"limit"`
	Usage   uint64 `json:"usage,omitempty"`
	Max     uint64 `json:"max,omitempty"`
	Failcnt uint64 `json:"failcnt"`
}

type blkioEntry struct {
	Op    string `json:"op"`
	Value uint64 `json:"value"`
}

type networkInterface struct {
	Name      string
	RxBytes   uint64
	RxPackets uint64
	TxBytes   uint64
	TxPackets uint64
}

// statsOf translates the guest's counters.
func statsOf(s *agent.StatsResponse) *stats {
	r := new(stats)
	r.CPU.Usage.Total = s.CpuUsageUs * 1000
	r.CPU.Usage.Kernel, r.CPU.Usage.User = s.CpuSystemUs*1000, s.CpuUserUs*1000
	r.Memory.Cache = s.MemoryCacheBytes
	r.Memory.Usage = memoryEntry{Limit: s.MemoryLimitBytes, Usage: s.MemoryBytes, Failcnt: s.OomKills}
	r.Memory.Raw = s.MemoryStat
	r.Pids.Current, r.Pids.Limit = s.Pids, s.PidsLimit
	r.Blkio.Bytes = []blkioEntry{{"Read", s.ReadBytes}, {"Write", s.WriteBytes}}
	r.Network = []networkInterface{{"eth0", s.RxBytes, s.RxPackets, s.TxBytes, s.TxPackets}}
	return r
}

func (a *app) eventsCommand() *cobra.Command {
	var interval time.Duration
	var once bool
	cmd := &cobra.Command{
		Use: "events ID", Short: "Print a container's counters and when it ran out of memory, as JSON lines", Args: one,
		RunE: func(cmd *cobra.Command, args []string) error {
			if interval <= 0 {
				return errors.New("duration interval must be greater than 0")
			}
			st, client, err := a.load(args[0])
			if err != nil {
				return err
			}
			if once {
				s, err := client.Stats(cmd.Context(), st.ID)
				if gone(err) {
					return fmt.Errorf("container with id %s is not running", st.ID)
				}
				if err != nil {
					return err
				}
				return json.NewEncoder(a.out).Encode(event{"stats", st.ID, statsOf(s)})
			}
			return a.events(cmd.Context(), st.ID, client, interval)
		},
	}
	cmd.Flags().DurationVar(&interval, "interval", 5*time.Second, "time between two lines of counters")
	cmd.Flags().BoolVar(&once, "stats", false, "print the counters once")
	return cmd
}

// events prints counters until the container ends, and when it has run out of memory: at the latest then, for a
// process that is killed for that often is the only one.
func (a *app) events(ctx context.Context, id string, client *pod.Client, interval time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan bool, 1)
	go func() {
		exit, err := client.Await(ctx, id)
		ended <- err == nil && exit.OOM
	}()
	out := json.NewEncoder(a.out)
	oom := func() error { return out.Encode(event{Type: "oom", ID: id}) }
	var kills uint64
	told := false
	for first := true; ; first = false {
		s, err := client.Stats(ctx, id)
		switch {
		case gone(err) && first:
			return fmt.Errorf("container with id %s is not running", id)
		case gone(err):
			if <-ended && !told {
				return oom()
			}
			return nil
		case err != nil:
			return err
		}
		if !first && s.OomKills > kills {
			told = true
			if err := oom(); err != nil {
				return err
			}
		}
		kills = s.OomKills
		if err := out.Encode(event{"stats", id, statsOf(s)}); err != nil {
			return err
		}
		select {
		case <-time.After(interval):
		case is := <-ended:
			if is && !told {
				return oom()
			}
			return nil
		}
	}
}

// gone says of an error of a pod's that the container has ended.
func gone(err error) bool { return errors.Is(err, pod.ErrGone) || errors.Is(err, pod.ErrNotFound) }
