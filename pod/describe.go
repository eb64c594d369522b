package pod

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"manis/vmm"
)

// Description is what a pod says of itself. Its guest is not asked.
type Description struct {
	Identity
	// Machine is nil before there is one.
	Machine *vmm.Info `json:",omitempty"`
	// Boot is where it came from, as in container.State.
	Boot string `json:",omitempty"`
	// Began is when the machine became the pod's.
	Began time.Time
	// Ended says why the machine has ended, in words for people; empty: it runs, or there is none yet.
	Ended string `json:",omitempty"`
	// Confidential: the pod is of that class.
	Confidential bool `json:",omitempty"`
	// Containers are in the order of their creation.
	Containers []Described
}

// Described is a container in a Description.
type Described struct {
	ID string
	// Name is NAMESPACE/POD/CONTAINER of Kubernetes; empty: the engine has not told it.
	Name string `json:",omitempty"`
	// Image is its reference; empty: the engine has not told it.
	Image string `json:",omitempty"`
	// Args are those of the first process.
	Args []string `json:",omitempty"`
	// Bundle is the bundle's directory.
	Bundle      string            `json:",omitempty"`
	Annotations map[string]string `json:",omitempty"`
	Terminal    bool              `json:",omitempty"`
	// Status is creating, created, running, paused or stopped.
	Status           specs.ContainerState
	Created, Started time.Time // Started is zero before it was
	// Exit is how it has ended; nil: it has not.
	Exit *Exit `json:",omitempty"`
}

// Describe says what the pod is and has. It waits for no guest, but for who changes the state of a container.
func (p *Pod) Describe() *Description {
	p.mu.Lock()
	d := &Description{Identity: p.identity, Boot: p.boot, Began: p.began, Confidential: p.sealed != nil}
	s := p.sandbox
	members := make([]*member, 0, len(p.members))
	for _, m := range p.members {
		members = append(members, m)
	}
	p.mu.Unlock()
	if s != nil {
		info := s.VM().Info()
		d.Machine = &info
		select {
		case <-s.Done():
			if d.Ended = p.Why(); d.Ended == "" {
				d.Ended = "it is not known why"
			}
		default:
		}
	}
	for _, m := range members {
		d.Containers = append(d.Containers, m.describe())
	}
	slices.SortFunc(d.Containers, func(a, b Described) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	return d
}

func (m *member) describe() Described {
	d := Described{ID: m.id, Created: m.created, Status: m.report().Status}
	if d.Status == specs.StateCreating {
		return d // what it is to be is still being read
	}
	m.mu.Lock()
	d.Started = m.started
	m.mu.Unlock()
	select {
	case <-m.done:
		e := m.exit
		d.Exit = &e
	default:
	}
	s := m.bundle.Spec
	d.Bundle, d.Annotations = m.bundle.Dir, s.Annotations
	d.Name, d.Image = containerName(s.Annotations), imageName(s.Annotations)
	if s.Process != nil {
		d.Args, d.Terminal = s.Process.Args, s.Process.Terminal
	}
	return d
}

// Describe asks a pod what it is and has.
func (c *Client) Describe(ctx context.Context) (*Description, error) {
	d := new(Description)
	return d, c.call(ctx, "describe", struct{}{}, d)
}
