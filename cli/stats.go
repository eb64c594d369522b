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
	all, noStream, noTrunc, engines bool
	format                          string
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
	cmd.Flags().BoolVar(&f.engines, "engines", false, "Show the containers of Kubernetes, containerd, Docker and Podman instead")
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
		list, err := a.statsTargets(ctx, names, f)
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

// measured is a container whose figures are shown.
type measured struct {
	id, name string
	live     bool
	own      *container.Container // nil: it is an engine's
	engine   *engineContainer
}

func ownMeasured(l listed) measured {
	return measured{id: l.c.ID, name: l.cfg.Name, live: l.st.Status.Live(), own: l.c}
}

func engineMeasured(e *engineContainer) measured {
	return measured{id: e.id(), name: e.name(), live: e.live(), engine: e}
}

func anyLive(list []measured) bool {
	for _, m := range list {
		if m.live {
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
func (a *app) statsTargets(ctx context.Context, names []string, f statsFlags) ([]measured, error) {
	var list []measured
	if len(names) == 0 {
		add := func(m measured) {
			if f.all || m.live {
				list = append(list, m)
			}
		}
		if f.engines {
			pods, err := a.listEngines(ctx)
			for _, p := range pods {
				for _, c := range p.Description.Containers {
					add(engineMeasured(&engineContainer{p, &c}))
				}
			}
			return list, err
		}
		own, err := a.list()
		for _, l := range own {
			add(ownMeasured(l))
		}
		return list, err
	}
	for _, name := range names {
		c, err := a.container(name)
		if e, err := a.orEngines(ctx, name, err); err != nil {
			return nil, err
		} else if e != nil {
			if err := e.inside(); err != nil {
				return nil, err
			}
			list = append(list, engineMeasured(e))
			continue
		}
		cfg, err := c.Config()
		if err != nil {
			return nil, err
		}
		st, err := c.State()
		if err != nil {
			return nil, err
		}
		list = append(list, ownMeasured(listed{c, cfg, st}))
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
func (a *app) measure(ctx context.Context, list []measured, watched map[string]*meter, noTrunc bool) []statsRow {
	rows := make([]statsRow, len(list))
	var wg sync.WaitGroup
	for i, l := range list {
		m := watched[l.id]
		if m == nil {
			m = new(meter)
			watched[l.id] = m
		}
		wg.Go(func() {
			now, cpu := m.read(ctx, l)
			rows[i] = newStatsRow(l, now, cpu, noTrunc)
		})
	}
	wg.Wait()
	return rows
}

// read returns the present figures and the share of one CPU that was used since the
// last call, in percent. A container that does not answer has none.
func (m *meter) read(ctx context.Context, of measured) (now *monitorapi.StatsResponse, cpu float64) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var err error
	if of.own != nil {
		now, err = m.ask(ctx, of.own)
	} else {
		now, err = engineFigures(ctx, of.engine)
	}
	if err != nil {
		m.last = nil
		return nil, 0
	}
	cpu = cpuPercent(m.last, now)
	m.last = now
	return now, cpu
}

// ask asks the container's monitor, to which it stays connected.
func (m *meter) ask(ctx context.Context, c *container.Container) (*monitorapi.StatsResponse, error) {
	if m.client == nil {
		client, err := monitor.Connect(ctx, c)
		if err != nil {
			return nil, err
		}
		m.client = client
	}
	now, err := m.client.API().Stats(ctx, &monitorapi.Empty{})
	if err != nil && (lost(m.client) || errors.Is(err, context.DeadlineExceeded)) {
		m.close()
		m.client = nil
	}
	return now, err
}

func cpuPercent(before, now *monitorapi.StatsResponse) float64 {
	if before == nil || now.CpuUsageUs < before.CpuUsageUs || now.ReadUnixNs <= before.ReadUnixNs {
		return 0
	}
	used := float64(now.CpuUsageUs-before.CpuUsageUs) * 1000
	return used / float64(now.ReadUnixNs-before.ReadUnixNs) * 100
}

func newStatsRow(l measured, s *monitorapi.StatsResponse, cpu float64, noTrunc bool) statsRow {
	const unknown = "--"
	r := statsRow{
		ID: shortened(l.id, noTrunc), Container: shortened(l.id, noTrunc), Name: printable(l.name),
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
