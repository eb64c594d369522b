package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	monitorapi "manis/api/monitor"
	"manis/cli/present"
	"manis/cli/terminal"
	"manis/container"
	"manis/monitor"
)

type statsFlags struct {
	all, noStream, noTrunc bool
	format                 string
}

func (a *app) statsCommand() *cobra.Command {
	var f statsFlags
	cmd := &cobra.Command{
		Use:               "stats [OPTIONS] [CONTAINER...]",
		Short:             "Display a live stream of container(s) resource usage statistics",
		Args:              needs(0, -1),
		ValidArgsFunction: a.containerNames(isRunning),
		RunE: func(cmd *cobra.Command, args []string) error {
			sig, ctx := catch(cmd.Context())
			defer sig.stop()
			return a.stats(ctx, args, f)
		},
	}
	cmd.Flags().BoolVarP(&f.all, "all", "a", false, "Show all containers (default shows just running)")
	cmd.Flags().StringVar(&f.format, "format", "", formatHelp)
	cmd.Flags().BoolVar(&f.noStream, "no-stream", false, "Disable streaming stats and only pull the first result")
	cmd.Flags().BoolVar(&f.noTrunc, "no-trunc", false, "Do not truncate output")
	return cmd
}

// statsRow is one container. Field names are docker's; HostMem is Manis's own: what
// the host pays for the machine and its monitor.
type statsRow struct {
	BlockIO   string
	CPUPerc   string
	Container string
	HostMem   string
	ID        string
	MemPerc   string
	MemUsage  string
	Name      string
	NetIO     string
	PIDs      string
}

var statsHeader = statsRow{
	BlockIO: "BLOCK I/O", CPUPerc: "CPU %", Container: "CONTAINER", HostMem: "HOST MEM", ID: "CONTAINER ID", MemPerc: "MEM %",
	MemUsage: "MEM USAGE / LIMIT", Name: "NAME", NetIO: "NET I/O", PIDs: "PIDS",
}

const statsTable = `{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.HostMem}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}`

// statsEvery is docker's pace.
const statsEvery = time.Second

func (a *app) stats(ctx context.Context, names []string, f statsFlags) error {
	watched := make(map[string]*meter)
	defer func() {
		for _, m := range watched {
			m.close()
		}
	}()
	live := terminal.Is(a.out) && !f.noStream && f.format != "json"
	tick := time.NewTicker(statsEvery)
	defer tick.Stop()
	for n := 0; ; n++ {
		list, err := a.statsTargets(names, f.all)
		if err != nil {
			return err
		}
		rows := a.measure(ctx, list, watched, f.noTrunc)
		// CPU use is a difference: the first look has none.
		if n > 0 {
			if err := a.showStats(rows, f.format, live); err != nil {
				return err
			}
		}
		if n > 0 && f.noStream {
			return nil
		}
		if n > 0 && len(names) > 0 && !anyLive(list) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil // Ctrl-C is how one leaves
		}
	}
}

func anyLive(list []listed) bool {
	for _, l := range list {
		if l.st.Status.Live() {
			return true
		}
	}
	return false
}

func (a *app) showStats(rows []statsRow, format string, live bool) error {
	var b bytes.Buffer
	if live {
		b.WriteString("\x1b[H\x1b[2J")
	}
	if err := present.List(&b, format, statsTable, statsHeader, rows); err != nil {
		return err
	}
	_, err := a.out.Write(b.Bytes())
	return err
}

// statsTargets finds the containers to show.
func (a *app) statsTargets(names []string, all bool) ([]listed, error) {
	if len(names) == 0 {
		list, err := a.list()
		if err != nil || all {
			return list, err
		}
		var running []listed
		for _, l := range list {
			if l.st.Status.Live() {
				running = append(running, l)
			}
		}
		return running, nil
	}
	var list []listed
	for _, name := range names {
		c, err := a.container(name)
		if err != nil {
			return nil, err
		}
		cfg, err := c.Config()
		if err != nil {
			return nil, err
		}
		st, err := c.State()
		if err != nil {
			return nil, err
		}
		list = append(list, listed{c, cfg, st})
	}
	return list, nil
}

// meter watches one container.
type meter struct {
	client *monitor.Client
	last   *monitorapi.StatsResponse
}

func (m *meter) close() {
	if m.client != nil {
		m.client.Close()
	}
}

// measure asks every container at the same time.
func (a *app) measure(ctx context.Context, list []listed, watched map[string]*meter, noTrunc bool) []statsRow {
	rows := make([]statsRow, len(list))
	var wg sync.WaitGroup
	for i, l := range list {
		m := watched[l.c.ID]
		if m == nil {
			m = new(meter)
			watched[l.c.ID] = m
		}
		wg.Go(func() {
			now, cpu := m.read(ctx, l.c)
			rows[i] = newStatsRow(l, now, cpu, noTrunc)
		})
	}
	wg.Wait()
	return rows
}

// read returns the present figures and the share of one CPU that was used since the
// last call, in percent. A container that does not answer has none.
func (m *meter) read(ctx context.Context, c *container.Container) (now *monitorapi.StatsResponse, cpu float64) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if m.client == nil {
		client, err := monitor.Connect(ctx, c)
		if err != nil {
			m.last = nil
			return nil, 0
		}
		m.client = client
	}
	now, err := m.client.API().Stats(ctx, &monitorapi.Empty{})
	if err != nil {
		if lost(m.client) || errors.Is(err, context.DeadlineExceeded) {
			m.close()
			m.client = nil
		}
		m.last = nil
		return nil, 0
	}
	cpu = cpuPercent(m.last, now)
	m.last = now
	return now, cpu
}

func cpuPercent(before, now *monitorapi.StatsResponse) float64 {
	if before == nil || now.CpuUsageUs < before.CpuUsageUs || now.ReadUnixNs <= before.ReadUnixNs {
		return 0
	}
	used := float64(now.CpuUsageUs-before.CpuUsageUs) * 1000
	return used / float64(now.ReadUnixNs-before.ReadUnixNs) * 100
}

func newStatsRow(l listed, s *monitorapi.StatsResponse, cpu float64, noTrunc bool) statsRow {
	const unknown = "--"
	r := statsRow{
		ID: shortened(l.c.ID, noTrunc), Container: shortened(l.c.ID, noTrunc), Name: l.cfg.Name,
		BlockIO: unknown + " / " + unknown, CPUPerc: unknown, MemPerc: unknown, MemUsage: unknown + " / " + unknown,
		NetIO: unknown + " / " + unknown, PIDs: unknown, HostMem: unknown,
	}
	if s == nil {
		return r
	}
	r.CPUPerc = fmt.Sprintf("%.2f%%", cpu)
	r.MemUsage = units.BytesSize(float64(s.MemoryBytes)) + " / " + units.BytesSize(float64(s.MemoryLimitBytes))
	if s.MemoryLimitBytes > 0 {
		r.MemPerc = fmt.Sprintf("%.2f%%", float64(s.MemoryBytes)/float64(s.MemoryLimitBytes)*100)
	}
	r.HostMem = units.BytesSize(float64(s.HostPssBytes))
	r.NetIO = humanSize(int64(s.RxBytes)) + " / " + humanSize(int64(s.TxBytes))
	r.BlockIO = humanSize(int64(s.ReadBytes)) + " / " + humanSize(int64(s.WriteBytes))
	r.PIDs = fmt.Sprint(s.Pids)
	return r
}
