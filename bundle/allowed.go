package bundle

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"manis/origin"
)

// Allowed is what of the host's files a policy has allowed the container of a plan. Who makes the container by another plan of the
// same configuration, maybe in another process, holds its own to it.
type Allowed struct {
	Binds []AllowedBind
	// Devices are as in policy.Request: a path that led to a directory may lead to a device now.
	Devices []string
}

// AllowedBind is a bind that was allowed.
type AllowedBind struct {
	Source         origin.Origin
	Writable, File bool
}

// Open opens what the plan's binds are of, until Close.
func (p *Plan) Open() error {
	for i := range p.Binds {
		f, err := origin.Open(p.Binds[i].HostPath)
		if err != nil {
			p.Close()
			return fmt.Errorf("%s: mounts: source: %w", configName, err)
		}
		p.Binds[i].Opened = f
	}
	return nil
}

// Close closes what Open or Hold has opened; the plan can be used on.
func (p *Plan) Close() {
	for i := range p.Binds {
		if f := p.Binds[i].Opened; f != nil {
			f.Close()
			p.Binds[i].Opened = nil
		}
	}
}

// allowed is for a plan that was opened and decided on.
func (p *Plan) allowed() (*Allowed, error) {
	a := &Allowed{Devices: p.deviceNames()}
	for _, b := range p.Binds {
		source, err := origin.Of(b.Opened)
		if err != nil {
			return nil, fmt.Errorf("%s: mounts: source: %w", configName, err)
		}
		a.Binds = append(a.Binds, AllowedBind{Source: source, Writable: b.writable(), File: b.File})
	}
	return a, nil
}

// writable reports whether anything of a bind can be written to.
func (b *Bind) writable() bool { return !b.ReadOnly || b.WritableBelow }

// Hold opens what the plan's binds are of, until Close, and refuses a plan that has anything else of the host's files than was allowed:
// paths may lead elsewhere since. Nil allows everything, and nothing is opened.
func (p *Plan) Hold(a *Allowed) error {
	if a == nil {
		return nil
	}
	fail := func(what string, err error) error {
		p.Close()
		return fmt.Errorf("%s: mounts: %s: %w", configName, what, err)
	}
	if len(p.Binds) != len(a.Binds) || !slices.Equal(p.deviceNames(), a.Devices) {
		return fail("directories, files and devices", origin.ErrChanged)
	}
	for i := range p.Binds {
		b, was := &p.Binds[i], &a.Binds[i]
		if b.File != was.File || b.writable() && !was.Writable {
			return fail(b.HostPath, origin.ErrChanged)
		}
		f, err := was.Source.Open(unix.O_PATH)
		if err != nil {
			return fail(b.HostPath, err)
		}
		b.Opened = f
	}
	return nil
}
