package pod

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"manis/api/agent"
	"manis/bundle"
	"manis/container/workload"
	"manis/monitor"
	"manis/sandbox"
	"manis/trust"
	"manis/vmm"
)

// sealed is what a pod of the class confidential has besides.
type sealed struct {
	record  *monitor.Record
	permits *trust.Manifest // what the host reads in it, and decides nothing by
	roots   int             // of containers so far, by slots
}

// maxSealed is how many containers a confidential pod has at most: each has a slot for its root.
const maxSealed = 16

// rootSlot is the serial of the slot for the root of a container by its place in the manifest.
func rootSlot(i int) string { return fmt.Sprintf("root%d", i) }

// everywhere are the kernel parameters that containerd sets for every pod. Here they are not: the machine's are what they are.
var everywhere = []string{"net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range"}

// makeSealed makes the machine of a confidential pod: always by booting, with nothing of the host's but a network. It has
// admitted the manifest and got its secrets when this returns.
func (p *Pod) makeSealed(ctx context.Context, wanted *Machine, config sandbox.Config) (err error) {
	if p.waited != nil {
		p.release() // it goes on from a template
		p.waited = nil
	}
	defer func() {
		if err != nil {
			p.release()
		}
	}()
	m, err := trust.Peek(wanted.Trust.Manifest)
	switch {
	case err != nil:
		return err
	case len(m.Containers) > maxSealed:
		return fmt.Errorf("the manifest has %d containers: a confidential pod has at most %d", len(m.Containers), maxSealed)
	}
	for name := range wanted.Sysctls {
		if !slices.Contains(everywhere, name) {
			return fmt.Errorf("kernel parameter %s: a pod of the class confidential sets none (sysctls)", name)
		}
	}
	config.VM.Shares, config.Setup.Shares, config.Setup.Sysctls = nil, nil, nil
	for i := range m.Containers {
		config.VM.Disks = append(config.VM.Disks, vmm.Disk{Serial: rootSlot(i), ReadOnly: true})
	}
	if err := p.connect(wanted.Netns, &config); err != nil {
		return err
	}
	if p.network != nil && len(p.network.taken.Interfaces) > 1 {
		return fmt.Errorf("the pod has %d network interfaces: one of the class confidential has one, which stays as it is", len(p.network.taken.Interfaces))
	}
	// What changes in the namespace later, and name servers on its loopback, this machine does not hear of.
	p.network, p.servers = nil, nil
	s, boot, err := monitor.StartMeasured(ctx, config)
	if err != nil {
		return err
	}
	var files []string
	if wanted.Bundle != "" {
		files = []string{wanted.Bundle}
	}
	record := monitor.NewRecord(s, wanted.Trust, files...)
	p.sealed = &sealed{record: record, permits: m}
	p.mu.Lock()
	p.sandbox = s
	p.mu.Unlock()
	err = record.Admit(ctx)
	record.Keep(ctx)
	if err != nil {
		p.mu.Lock()
		p.sandbox, p.sealed = nil, nil
		p.mu.Unlock()
		return errors.Join(err, s.Kill())
	}
	return p.begin(ctx, s, boot, config.Setup)
}

// keepBundle writes the audit bundle of a confidential pod as far as the machine has told it.
func (p *Pod) keepBundle() {
	if p.sealed != nil {
		p.sealed.record.Keep(context.Background())
	}
}

// Permits reports whether the host may make a call; always for pods of other classes.
func (p *Pod) Permits(call string) bool { return p.sealed == nil || p.sealed.permits.Permits(call) }

// Sealed reports whether the pod is of the class confidential.
func (p *Pod) Sealed() bool { return p.sealed != nil }

// SealedRequest asks for a container of a confidential pod.
type SealedRequest struct {
	// ID, Bundle and Config are as in CreateRequest.
	ID, Bundle string
	Config     []byte
	// Create is complete but for id, streams, the root's disk, and what is the network's.
	Create *agent.CreateContainerRequest
	// Root is the image of the root filesystem, which is duplicated.
	Root *os.File
	// Resolver is what the container is told of name servers.
	Resolver []byte
}

// CreateSealed makes the next container of a confidential pod, if its manifest has it; the process does not run yet. It owns the
// attendant's streams.
func (p *Pod) CreateSealed(ctx context.Context, r *SealedRequest, a Attendant) error {
	return p.enrol(r.ID, &a, func(m *member) error { return p.fillSealed(ctx, m, r, &a) })
}

// fillSealed makes a container of the manifest.
func (p *Pod) fillSealed(ctx context.Context, m *member, r *SealedRequest, a *Attendant) (err error) {
	if p.sealed == nil {
		return fmt.Errorf("%w: the pod is of another class", ErrState)
	}
	m.alone = true
	if m.bundle, err = bundle.Parse(r.Bundle, r.Config); err != nil {
		return err
	}
	slot := min(p.sealed.roots, len(p.sealed.permits.Containers)-1)
	root := vmm.Disk{Serial: rootSlot(slot), ReadOnly: true}
	if slot == p.sealed.roots {
		root.File = r.Root
		if err := p.sandbox.VM().Insert(ctx, root); err != nil {
			return err
		}
	} // else the guest is asked anyhow, and says that there is one too many
	c := r.Create
	c.Id, c.Rootfs.Disk = r.ID, root.Serial
	p.tellNetwork(c, r.Resolver)
	streams := a.Streams
	a.Streams = Streams{}
	if !p.Permits("logs") {
		// Opened and closed: who reads them finds nothing.
		closeAll(streams.files())
		streams = Streams{}
	}
	if m.streams, err = newStreams(c.Process.Terminal, streams); err != nil {
		return err
	}
	if err := m.streams.connect(c.Process, p.sandbox.Stream); err != nil {
		return err
	}
	if _, err = p.sandbox.CreateContainer(ctx, c); err != nil {
		return err
	}
	p.sealed.roots++
	p.created(m)
	return nil
}

// tellNetwork completes the two files that tell of the pod's network.
func (p *Pod) tellNetwork(c *agent.CreateContainerRequest, resolver []byte) {
	for _, f := range c.Files {
		switch f.Path {
		case workload.HostsFile:
			for _, i := range p.setup.GetNetwork().GetInterfaces() {
				for _, a := range i.Addresses {
					if prefix, err := netip.ParsePrefix(a.Prefix); err == nil && !prefix.Addr().IsLoopback() && !prefix.Addr().IsLinkLocalUnicast() {
						f.Content = fmt.Appendf(f.Content, "%s\t%s\n", prefix.Addr(), c.Hostname)
					}
				}
			}
		case workload.ResolverFile:
			f.Content = resolver
		}
	}
}
