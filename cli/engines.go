package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"

	"manis/cli/filter"
	"manis/cli/present"
	"manis/container"
	"manis/pod"
)

// Engines have their containers in pods of their own. What follows is the operator's view of these: their life
// is their engine's.

// engineContainer is a container of an engine's, or a pod.
type engineContainer struct {
	pod *pod.Found
	c   *pod.Described // nil: the pod itself
}

func (e *engineContainer) id() string {
	if e.c != nil {
		return e.c.ID
	}
	return e.pod.Description.ID
}

func (e *engineContainer) name() string {
	if e.c != nil {
		return e.c.Name
	}
	return e.pod.Description.Name
}

// created is when the engine asked for it; of a pod, when it had its machine.
func (e *engineContainer) created() time.Time {
	if e.c != nil {
		return e.c.Created
	}
	return e.pod.Description.Began
}

// engine is the engine's name, with its namespace.
func (e *engineContainer) engine() string {
	d := e.pod.Description
	if d.Namespace != "" {
		return d.Engine + "/" + d.Namespace
	}
	return d.Engine
}

// inside fails for a pod: what was asked for is a container's.
func (e *engineContainer) inside() error {
	d := e.pod.Description
	switch {
	case e.pod.Err != nil:
		return fmt.Errorf("%s %s: %w", e.kind(), e.id(), e.pod.Err)
	case e.c != nil:
		return nil
	case len(d.Containers) == 0:
		return fmt.Errorf("%s is a pod, and no container is in it", d.ID)
	}
	var ids []string
	for _, c := range d.Containers {
		ids = append(ids, present.ShortID(c.ID))
	}
	return fmt.Errorf("%s is a pod: name one of its containers (%s)", d.ID, strings.Join(ids, ", "))
}

func (e *engineContainer) kind() string {
	if e.c == nil {
		return "pod"
	}
	return "container"
}

// state is as in docker's inspect, with unknown for a pod that does not answer.
func (e *engineContainer) state() string {
	d := e.pod.Description
	switch {
	case e.pod.Err != nil:
		return "unknown"
	case e.c == nil && d.Ended != "":
		return "exited"
	case e.c == nil && d.Machine == nil:
		return "created"
	case e.c == nil:
		return "running"
	}
	switch s := string(e.c.Status); s {
	case "creating":
		return "created"
	case "stopped":
		return "exited"
	default:
		return s
	}
}

// live is what a list shows without --all.
func (e *engineContainer) live() bool {
	switch e.state() {
	case "running", "paused", "unknown":
		return true
	case "created":
		return e.c == nil
	}
	return false
}

// statusText is docker's sentence.
func (e *engineContainer) statusText(now time.Time) string {
	d := e.pod.Description
	switch state := e.state(); {
	case state == "unknown":
		return "Not answering"
	case e.c == nil && state == "created":
		return "Starting"
	case e.c == nil && state == "exited":
		return "Exited: " + printable(d.Ended)
	case e.c == nil:
		return "Up " + units.HumanDuration(now.Sub(d.Began)) + " (no container runs)"
	case state == "created":
		return "Created"
	case state == "exited" && e.c.Exit != nil:
		return fmt.Sprintf("Exited (%d) %s", e.c.Exit.Code, ago(e.c.Exit.At, now))
	case state == "exited":
		return "Exited"
	case state == "paused":
		return "Up " + units.HumanDuration(now.Sub(e.c.Started)) + " (Paused)"
	}
	return "Up " + units.HumanDuration(now.Sub(e.c.Started))
}

// listEngines are the pods of all engines, newest first.
func (a *app) listEngines(ctx context.Context) ([]*pod.Found, error) {
	places, err := a.places()
	if err != nil {
		return nil, err
	}
	list, err := pod.List(ctx, places)
	slices.SortStableFunc(list, func(x, y *pod.Found) int { return y.Description.Began.Compare(x.Description.Began) })
	return list, err
}

// rowsOf are a pod's containers, newest first, that are wanted: where there is none, the pod, unless that is there for one
// container only.
func rowsOf(p *pod.Found, wanted func(*engineContainer) bool) []*engineContainer {
	var rows []*engineContainer
	for _, c := range slices.Backward(p.Description.Containers) {
		if e := (&engineContainer{p, &c}); wanted(e) {
			rows = append(rows, e)
		}
	}
	if e := (&engineContainer{p, nil}); len(rows) == 0 && !ofOne(p) && wanted(e) {
		rows = append(rows, e)
	}
	return rows
}

// ofOne reports whether the pod is only there for a container, whose id it has.
func ofOne(p *pod.Found) bool {
	return slices.ContainsFunc(p.Description.Containers, func(c pod.Described) bool { return c.ID == p.Description.ID })
}

// orEngines looks for what was no container of this command line's among those of engines. Both results are nil when err is.
func (a *app) orEngines(ctx context.Context, ref string, err error) (*engineContainer, error) {
	if err == nil || !errors.Is(err, container.ErrNotFound) {
		return nil, err
	}
	e, other := a.inEngines(ctx, ref)
	if errors.Is(other, container.ErrNotFound) {
		return nil, err
	}
	return e, other
}

// inEngines finds a container of an engine's, or a pod, by its id, its name, or the beginning of its id.
func (a *app) inEngines(ctx context.Context, ref string) (*engineContainer, error) {
	list, err := a.listEngines(ctx)
	if err != nil {
		return nil, err
	}
	var all []*engineContainer
	for _, p := range list {
		for _, c := range p.Description.Containers {
			all = append(all, &engineContainer{p, &c})
		}
		if !ofOne(p) {
			all = append(all, &engineContainer{p, nil})
		}
	}
	found := func(match func(*engineContainer) bool) (some []*engineContainer) {
		for _, e := range all {
			if match(e) {
				some = append(some, e)
			}
		}
		return some
	}
	for _, match := range []func(*engineContainer) bool{
		func(e *engineContainer) bool { return e.id() == ref },
		func(e *engineContainer) bool { return e.name() == ref && e.live() },
		func(e *engineContainer) bool { return e.name() == ref },
		func(e *engineContainer) bool { return strings.HasPrefix(e.id(), ref) },
	} {
		switch some := found(match); {
		case ref == "" || len(some) == 0:
		case len(some) == 1:
			return some[0], nil
		default:
			return nil, fmt.Errorf("%w: %s (among the containers of engines)", container.ErrAmbiguous, ref)
		}
	}
	return nil, fmt.Errorf("%w: %s", container.ErrNotFound, ref)
}

const psEnginesTable = `{{.ID}}\t{{.Names}}\t{{.Engine}}\t{{.Image}}\t{{.RunningFor}}\t{{.Status}}\t{{.Machine}}`

// enginesRow is one line of ps --engines. Names of fields are docker's where it has them.
type enginesRow struct {
	Command    string
	CreatedAt  string
	Engine     string
	ID         string
	Image      string
	Machine    string
	Names      string
	Owner      string
	Pod        string
	RunningFor string
	Size       string
	State      string
	Status     string
}

var enginesHeader = enginesRow{
	Command: "COMMAND", CreatedAt: "CREATED AT", Engine: "ENGINE", ID: "CONTAINER ID", Image: "IMAGE", Machine: "MACHINE", Names: "NAMES",
	Owner: "OWNER", Pod: "POD", RunningFor: "CREATED", Size: "SIZE", State: "STATE", Status: "STATUS",
}

func newEnginesRow(e *engineContainer, noTrunc bool, now time.Time) enginesRow {
	// What is not known has a mark, so that columns stay where they are.
	known := func(s string) string {
		if s == "" {
			return "-"
		}
		return printable(s)
	}
	d := e.pod.Description
	r := enginesRow{
		ID: known(shortened(e.id(), noTrunc)), Names: known(e.name()), Engine: known(e.engine()), Image: "-", Command: "-", CreatedAt: "-", RunningFor: "-",
		Machine: "-", Size: "-", Owner: "-", Pod: known(shortened(d.ID, noTrunc)), State: e.state(), Status: e.statusText(now),
	}
	if at := e.created(); !at.IsZero() {
		r.CreatedAt, r.RunningFor = at.Local().Format(timeFormat), ago(at, now)
	}
	if e.c != nil {
		r.Image = known(e.c.Image)
		command := printable(strings.Join(e.c.Args, " "))
		if !noTrunc {
			command = present.Ellipsis(command, 20)
		}
		r.Command = fmt.Sprintf("%q", command)
	}
	if d.PID != 0 {
		r.Owner = fmt.Sprint(d.PID)
	}
	if d.Machine != nil && d.Ended == "" {
		r.Machine = fmt.Sprint(d.Machine.PID)
		r.Size = fmt.Sprintf("%s, %d CPUs", units.BytesSize(float64(d.Machine.MemoryBytes)), d.Machine.VCPUs)
	}
	return r
}

var enginesFilters = []string{"id", "name", "status"}

func (a *app) psEngines(ctx context.Context, f psFlags) error {
	if f.last >= 0 || f.latest || f.size {
		return &usageError{errors.New("--last, --latest and --size do not go with --engines")}
	}
	set, err := filter.Parse(f.filters, enginesFilters...)
	if err != nil {
		return err
	}
	list, err := a.listEngines(ctx)
	if err != nil {
		return err
	}
	all := f.all || set.Has("status")
	var rows []enginesRow
	now := time.Now()
	for _, p := range list {
		for _, e := range rowsOf(p, func(e *engineContainer) bool {
			return (all || e.live()) && set.Match("id", e.id()) && set.Match("name", e.name()) && set.Exact("status", e.state())
		}) {
			if f.quiet {
				fmt.Fprintln(a.out, printable(shortened(e.id(), f.noTrunc)))
				continue
			}
			rows = append(rows, newEnginesRow(e, f.noTrunc, now))
		}
	}
	if f.quiet {
		return nil
	}
	return present.List(a.out, f.format, psEnginesTable, enginesHeader, rows)
}
