package cli

import (
	"context"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	monitorapi "manis/api/monitor"
	"manis/monitor"
	"manis/pod"
	"manis/vmm"
)

// asking asks the pod of a container with a deadline. Its guest may have to answer.
func asking(ctx context.Context, what string, e *engineContainer, ask func(context.Context) error) error {
	if err := e.inside(); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	err := ask(limited)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		err = context.DeadlineExceeded
	}
	if err != nil {
		return engineFailed(what, e, err)
	}
	return nil
}

// engineProcess is the process that a container was made with.
func (a *app) engineProcess(ctx context.Context, e *engineContainer) (p *specs.Process, err error) {
	err = asking(ctx, "run a command in", e, func(ctx context.Context) error {
		p, err = e.pod.Process(ctx, e.c.ID)
		return err
	})
	return p, err
}

// topOfEngine is top of a container of an engine's.
func (a *app) topOfEngine(ctx context.Context, e *engineContainer) error {
	return asking(ctx, "list the processes of", e, func(ctx context.Context) error {
		list, err := e.pod.Processes(ctx, e.c.ID)
		if err != nil {
			return err
		}
		return a.showProcesses(monitor.Processes(list))
	})
}

// engineFigures are a container's counters.
func engineFigures(ctx context.Context, e *engineContainer) (figures *monitorapi.StatsResponse, err error) {
	err = asking(ctx, "count what is used by", e, func(ctx context.Context) error {
		counters, err := e.pod.Stats(ctx, e.c.ID)
		if err == nil {
			d := e.pod.Description
			var info vmm.Info
			if d.Machine != nil {
				info = *d.Machine
			}
			figures = monitor.Figures(counters, info, d.PID)
		}
		return err
	})
	return figures, err
}

// engineShape is inspect of a container of an engine's, or of a pod. What docker has, too, has its name and place.
type engineShape struct {
	ID      string `json:"Id"`
	Created time.Time
	Path    string
	Args    []string
	State   stateShape
	Image   string
	Name    string
	Config  engineConfigShape
	Engine  engineOfShape
	Manis   engineManisShape
}

type engineConfigShape struct {
	Tty         bool
	Annotations map[string]string `json:",omitempty"`
}

// engineOfShape says where a container belongs.
type engineOfShape struct {
	Name      string
	Namespace string `json:",omitempty"`
	// Pod and PodName are the pod's.
	Pod     string
	PodName string `json:",omitempty"`
	// Containers are the ids of those in the pod.
	Containers []string
	Bundle     string `json:",omitempty"`
}

type engineManisShape struct {
	Boot string `json:",omitempty"`
	// Confidential: the pod is of this class.
	Confidential bool
	// MonitorPid is the process that owns the machine: containerd's shim, or the pod's.
	MonitorPid int
	VM         *vmm.Info `json:",omitempty"`
	// Jail is the part of VM that says what confines it.
	Jail      []vmm.Confinement `json:",omitempty"`
	Directory string
}

func engineShapeOf(e *engineContainer) *engineShape {
	d := e.pod.Description
	s := &engineShape{
		ID: e.id(), Created: e.created(), Name: "/" + e.name(), Args: []string{},
		Engine: engineOfShape{Name: d.Engine, Namespace: d.Namespace, Pod: d.ID, PodName: d.Name, Containers: []string{}},
		Manis:  engineManisShape{Boot: d.Boot, Confidential: d.Confidential, MonitorPid: d.PID, VM: d.Machine, Directory: e.pod.Dir},
	}
	state := e.state()
	s.State = stateShape{Status: state, Running: state == "running" || state == "paused", Paused: state == "paused", Error: d.Ended}
	if e.pod.Err != nil {
		s.State.Error = pod.Text(e.pod.Err)
	}
	if d.Machine != nil {
		s.State.PID, s.Manis.Jail = d.Machine.PID, d.Machine.Jail
	}
	for _, c := range d.Containers {
		s.Engine.Containers = append(s.Engine.Containers, c.ID)
	}
	if e.c == nil {
		s.State.StartedAt = d.Began
		return s
	}
	s.Image, s.Engine.Bundle = e.c.Image, e.c.Bundle
	s.Config = engineConfigShape{Tty: e.c.Terminal, Annotations: e.c.Annotations}
	s.State.StartedAt = e.c.Started
	if len(e.c.Args) > 0 {
		s.Path, s.Args = e.c.Args[0], e.c.Args[1:]
	}
	if x := e.c.Exit; x != nil {
		s.State.ExitCode, s.State.FinishedAt, s.State.OOMKilled, s.State.PID = x.Code, x.At, x.OOM, 0
		if x.Reason != "" {
			s.State.Error = x.Reason
		}
	}
	return s
}
