package cli

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"manis/cli/declare"
	"manis/cli/filter"
	"manis/cli/present"
	"manis/container"
)

const (
	psTable     = `{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}`
	psTableSize = psTable + `\t{{.Size}}`
)

var psFilters = []string{
	"id", "name", "label", "label!", "status", "exited", "ancestor", "before", "since", "volume",
	"network", "publish", "expose", "health",
}

type psFlags struct {
	all, quiet, noTrunc, size, latest, engines bool
	last                                       int
	format                                     string
	filters                                    []string
}

func (a *app) psCommand() *cobra.Command {
	var f psFlags
	cmd := &cobra.Command{
		Use:     "ps [OPTIONS]",
		Aliases: []string{"list", "ls"},
		Short:   "List containers",
		Long: `List containers of this command line, or with --engines those that engines run with Manis on this host: Kubernetes and containerd, Docker, Podman.

With --engines a pod has a row of its own as long as no container of it is shown, or when it does not answer. Filters are then id, name and status. MACHINE is the
process of the virtual machine, which the containers of a pod share.`,
		Args:              needs(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return a.ps(cmd.Context(), f) },
	}
	fs := cmd.Flags()
	fs.BoolVarP(&f.all, "all", "a", false, "Show all containers (default shows just running)")
	fs.BoolVar(&f.engines, "engines", false, "Show the containers of Kubernetes, containerd, Docker and Podman instead")
	fs.VarP((*declare.List)(&f.filters), "filter", "f", "Filter output based on conditions provided")
	fs.StringVar(&f.format, "format", "", formatHelp)
	fs.IntVarP(&f.last, "last", "n", -1, "Show n last created containers (includes all states)")
	fs.BoolVarP(&f.latest, "latest", "l", false, "Show the latest created container (includes all states)")
	fs.BoolVar(&f.noTrunc, "no-trunc", false, "Don't truncate output")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "Only display container IDs")
	fs.BoolVarP(&f.size, "size", "s", false, "Display total file sizes")
	return cmd
}

// formatHelp is the help of every list's --format.
const formatHelp = `Format output: "table", "table TEMPLATE", "json" or a Go template`

// listed is a container with what a list shows of it.
type listed struct {
	c   *container.Container
	cfg *container.Config
	st  *container.State
}

// list reads every container, newest first. One that is being removed is left out.
func (a *app) list() ([]listed, error) {
	store, err := a.containers()
	if err != nil {
		return nil, err
	}
	all, err := store.List()
	if err != nil {
		return nil, err
	}
	var found []listed
	for _, c := range all {
		cfg, err := c.Config()
		if err != nil {
			continue
		}
		st, err := c.State()
		if err != nil {
			continue
		}
		found = append(found, listed{c, cfg, st})
	}
	return found, nil
}

func (a *app) ps(ctx context.Context, f psFlags) error {
	if f.engines {
		return a.psEngines(ctx, f)
	}
	set, err := filter.Parse(f.filters, psFilters...)
	if err != nil {
		return err
	}
	a.sweep(ctx)
	all, err := a.list()
	if err != nil {
		return err
	}
	if f.latest {
		f.last = 1
	}
	match, err := a.containerFilter(all, set)
	if err != nil {
		return err
	}
	showAll := f.all || f.last >= 0 || set.Has("status") || set.Has("exited")
	var rows []psRow
	shown := 0
	for _, l := range all {
		if !showAll && !l.st.Status.Live() || !match(l) {
			continue
		}
		if f.last >= 0 && shown >= f.last {
			break
		}
		shown++
		if f.quiet {
			fmt.Fprintln(a.out, shortened(l.c.ID, f.noTrunc))
			continue
		}
		rows = append(rows, newPsRow(l, f.noTrunc, f.size || strings.Contains(f.format, ".Size"), time.Now()))
	}
	if f.quiet {
		return nil
	}
	table := psTable
	if f.size {
		table = psTableSize
	}
	return present.List(a.out, f.format, table, psHeader, rows)
}

func shortened(id string, whole bool) string {
	if whole {
		return id
	}
	return present.ShortID(id)
}

// psRow is one line of ps. Field names are docker's.
type psRow struct {
	Command      string
	CreatedAt    string
	ID           string
	Image        string
	Labels       string
	LocalVolumes string
	Mounts       string
	Names        string
	Networks     string
	Platform     string
	Ports        string
	RunningFor   string
	Size         string
	State        string
	Status       string
	labels       map[string]string
}

var psHeader = psRow{
	Command: "COMMAND", CreatedAt: "CREATED AT", ID: "CONTAINER ID", Image: "IMAGE", Labels: "LABELS",
	LocalVolumes: "LOCAL VOLUMES", Mounts: "MOUNTS", Names: "NAMES", Networks: "NETWORKS",
	Platform: "PLATFORM", Ports: "PORTS", RunningFor: "CREATED", Size: "SIZE", State: "STATE", Status: "STATUS",
}

// Label is the value of one label; in the header, its name.
func (r psRow) Label(name string) string {
	if r.ID == psHeader.ID {
		return labelTitle(name)
	}
	return r.labels[name]
}

// labelTitle is the last part of a label's name as a column's title.
func labelTitle(name string) string {
	name = name[strings.LastIndexByte(name, '.')+1:]
	return strings.NewReplacer("-", " ", "_", " ").Replace(name)
}

func newPsRow(l listed, noTrunc, size bool, now time.Time) psRow {
	command := printable(strings.Join(l.cfg.Process.Args, " "))
	if !noTrunc {
		command = present.Ellipsis(command, 20)
	}
	r := psRow{
		Command:   strconv.Quote(command),
		CreatedAt: l.cfg.Created.Local().Format(timeFormat),
		ID:        shortened(l.c.ID, noTrunc),
		Image:     imageName(l.cfg, noTrunc),
		Labels:    labelList(l.cfg.Labels),
		Names:     l.cfg.Name,
		Networks:  l.cfg.Network.Mode,
		Platform:  l.cfg.Platform,
		Ports:     portList(l.st.Ports),
		State:     string(l.st.Status),
		Status:    statusText(l.st, now),
		labels:    l.cfg.Labels,
	}
	r.RunningFor = ago(l.cfg.Created, now)
	volumes := 0
	var mounts []string
	for _, m := range l.cfg.Mounts {
		if m.Type == "volume" {
			volumes++
		}
		if m.Source != "" {
			name := m.Source
			if !noTrunc {
				name = present.Ellipsis(name, 15)
			}
			mounts = append(mounts, name)
		}
	}
	r.LocalVolumes = strconv.Itoa(volumes)
	r.Mounts = strings.Join(mounts, ",")
	if size {
		r.Size = humanSize(writtenBytes(l.c))
	}
	return r
}

// timeFormat is how docker writes a time in a list.
const timeFormat = "2006-01-02 15:04:05 -0700 MST"

func ago(t, now time.Time) string {
	return units.HumanDuration(now.Sub(t)) + " ago"
}

func humanSize(n int64) string { return units.HumanSizeWithPrecision(float64(n), 3) }

func imageName(cfg *container.Config, noTrunc bool) string {
	if strings.HasPrefix(cfg.Image, "sha256:") {
		return shortened(cfg.Image, noTrunc)
	}
	return cfg.Image
}

func labelList(labels map[string]string) string {
	var list []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		list = append(list, k+"="+labels[k])
	}
	return strings.Join(list, ",")
}

// statusText is docker's sentence on a container's state.
func statusText(st *container.State, now time.Time) string {
	switch st.Status {
	case container.Created:
		return "Created"
	case container.Restarting:
		return fmt.Sprintf("Restarting (%d) %s", st.ExitCode, ago(st.FinishedAt, now))
	case container.Exited:
		return fmt.Sprintf("Exited (%d) %s", st.ExitCode, ago(st.FinishedAt, now))
	case container.Dead:
		return "Dead"
	}
	up := "Up " + units.HumanDuration(now.Sub(st.StartedAt))
	switch {
	case st.Status == container.Paused:
		return up + " (Paused)"
	case st.Health != nil && st.Health.Status == "starting":
		return up + " (health: starting)"
	case st.Health != nil && st.Health.Status != "" && st.Health.Status != "none":
		return up + " (" + st.Health.Status + ")"
	}
	return up
}

// portList is docker's list of published ports, neighbours joined to ranges.
func portList(ports []container.Port) string {
	type mapping struct {
		ip                                 string
		proto                              string
		host, hostEnd, container, contaEnd uint16
	}
	var all []mapping
	for _, p := range ports {
		ips := []string{"0.0.0.0", "[::]"}
		if p.HostIP.IsValid() {
			ips = []string{p.HostIP.String()}
			if p.HostIP.Is6() {
				ips[0] = "[" + ips[0] + "]"
			}
		}
		for _, ip := range ips {
			all = append(all, mapping{ip, p.Protocol, p.HostPort, p.HostPort, p.ContainerPort, p.ContainerPort})
		}
	}
	slices.SortStableFunc(all, func(x, y mapping) int {
		return cmp.Or(cmp.Compare(x.ip, y.ip), cmp.Compare(x.proto, y.proto), cmp.Compare(x.container, y.container))
	})
	var merged []mapping
	for _, m := range all {
		if n := len(merged) - 1; n >= 0 {
			last := &merged[n]
			if last.ip == m.ip && last.proto == m.proto && last.contaEnd+1 == m.container && last.hostEnd+1 == m.host {
				last.contaEnd, last.hostEnd = m.container, m.host
				continue
			}
		}
		merged = append(merged, m)
	}
	span := func(from, to uint16) string {
		if from == to {
			return strconv.Itoa(int(from))
		}
		return fmt.Sprintf("%d-%d", from, to)
	}
	texts := make([]string, len(merged))
	for i, m := range merged {
		texts[i] = fmt.Sprintf("%s:%s->%s/%s", m.ip, span(m.host, m.hostEnd), span(m.container, m.contaEnd), m.proto)
	}
	return strings.Join(texts, ", ")
}

// writtenBytes is what the container's directory takes on the disk: its writable
// layer and its logs.
func writtenBytes(c *container.Container) int64 {
	var sum int64
	filepath.WalkDir(c.Dir(), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			sum += allocated(path)
		}
		return nil
	})
	return sum
}

// allocated is what a file takes on the disk: scratch disks are sparse.
func allocated(path string) int64 {
	fi, err := os.Lstat(path)
	if err != nil {
		return 0
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return fi.Size()
}

// containerFilter makes the test of ps --filter and of prune.
func (a *app) containerFilter(all []listed, set filter.Set) (func(listed) bool, error) {
	for _, s := range set["status"] {
		known := []string{"created", "restarting", "running", "removing", "paused", "exited", "dead"}
		if !slices.Contains(known, s) {
			return nil, fmt.Errorf("invalid filter \"status=%s\": known are %s", s, strings.Join(known, ", "))
		}
	}
	for _, s := range set["exited"] {
		if _, err := strconv.Atoi(s); err != nil {
			return nil, fmt.Errorf("invalid filter \"exited=%s\": expected a number", s)
		}
	}
	// The time of the containers that before and since name.
	bound := func(key string) (times []time.Time, err error) {
		for _, ref := range set[key] {
			c, err := a.container(ref)
			if err != nil {
				return nil, err
			}
			for _, l := range all {
				if l.c.ID == c.ID {
					times = append(times, l.cfg.Created)
				}
			}
		}
		return times, nil
	}
	before, err := bound("before")
	if err != nil {
		return nil, err
	}
	since, err := bound("since")
	if err != nil {
		return nil, err
	}
	ancestors, err := a.ancestors(set["ancestor"])
	if err != nil {
		return nil, err
	}
	for _, key := range []string{"publish", "expose"} {
		for _, s := range set[key] {
			if _, _, _, err := parsePortFilter(s); err != nil {
				return nil, err
			}
		}
	}
	return func(l listed) bool {
		health := "none"
		if l.st.Health != nil && l.st.Health.Status != "" {
			health = l.st.Health.Status
		}
		return set.Match("id", l.c.ID) &&
			set.Any("name", func(v string) bool { return filter.Set{"name": {v}}.Match("name", l.cfg.Name, "/"+l.cfg.Name) }) &&
			set.Labels("label", l.cfg.Labels) && set.NoLabels("label!", l.cfg.Labels) &&
			set.Exact("status", string(l.st.Status)) &&
			set.Any("exited", func(v string) bool {
				return (l.st.Status == container.Exited || l.st.Status == container.Dead) && v == strconv.Itoa(l.st.ExitCode)
			}) &&
			!slices.ContainsFunc(before, func(t time.Time) bool { return !l.cfg.Created.Before(t) }) &&
			!slices.ContainsFunc(since, func(t time.Time) bool { return !l.cfg.Created.After(t) }) &&
			(ancestors == nil || ancestors(l.cfg)) &&
			set.Any("volume", func(v string) bool {
				return slices.ContainsFunc(l.cfg.Mounts, func(m container.Mount) bool { return m.Source == v || m.Destination == v })
			}) &&
			set.Any("network", func(v string) bool {
				return v == l.cfg.Network.Mode || l.cfg.Network.Mode == "user" && (v == "bridge" || v == "default")
			}) &&
			set.Any("publish", func(v string) bool { return portFilter(v, l.st.Ports, true) }) &&
			set.Any("expose", func(v string) bool { return portFilter(v, l.cfg.Network.Ports, false) }) &&
			set.Exact("health", health)
	}, nil
}

// ancestors tests for containers made from one of the images.
func (a *app) ancestors(refs []string) (func(*container.Config) bool, error) {
	if len(refs) == 0 {
		return nil, nil
	}
	images, err := a.images()
	if err != nil {
		return nil, err
	}
	var ids, names []string
	for _, ref := range refs {
		names = append(names, tagged(ref))
		if img, err := images.Resolve(ref); err == nil {
			ids = append(ids, img.ID)
		}
	}
	return func(cfg *container.Config) bool {
		return slices.Contains(ids, cfg.ImageID) || slices.Contains(names, tagged(cfg.Image))
	}, nil
}

func parsePortFilter(s string) (from, to uint16, proto string, err error) {
	ports, proto, _ := strings.Cut(s, "/")
	if proto == "" {
		proto = "tcp"
	}
	first, last, isRange := strings.Cut(ports, "-")
	if !isRange {
		last = first
	}
	f, err1 := strconv.ParseUint(first, 10, 16)
	t, err2 := strconv.ParseUint(last, 10, 16)
	if err1 != nil || err2 != nil || t < f {
		return 0, 0, "", fmt.Errorf("invalid filter: %q is neither port nor range of ports", s)
	}
	return uint16(f), uint16(t), proto, nil
}

func portFilter(s string, ports []container.Port, host bool) bool {
	from, to, proto, err := parsePortFilter(s)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(ports, func(p container.Port) bool {
		n := p.ContainerPort
		if host {
			n = p.HostPort
		}
		return p.Protocol == proto && n >= from && n <= to
	})
}
