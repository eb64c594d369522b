package pod

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"manis/api/agent"
	"manis/bundle"
	"manis/monitor"
	"manis/sandbox"
	"manis/snapshot/dump"
	"manis/vmm"
)

// restore makes a container that goes on from a checkpoint's image, in a machine of its own. It takes the
// attendant's streams when it makes the member's of them.
func (p *Pod) restore(ctx context.Context, m *member, r *CreateRequest, plan *bundle.Plan, a *Attendant) (err error) {
	key, err := dump.OpenKey(p.places.Root)
	if err != nil {
		return err
	}
	image, err := dump.Open(r.Image, key)
	if err != nil {
		return err
	}
	defer image.Close()
	saved := &image.Container
	fail := func(format string, args ...any) error {
		return fmt.Errorf("restore from %s: %w", r.Image, fmt.Errorf(format, args...))
	}
	switch terminal := plan.Create.Process.Terminal; {
	case p.sandbox != nil:
		return fail("it goes on in a machine of its own, and cannot join the pod of another container")
	case r.JoinPID != "" || r.JoinIPC != "" || r.JoinUTS != "" || r.SharePID || r.ShareIPC || r.ShareUTS:
		return fail("it had namespaces of its own, and cannot join others now")
	case terminal && !saved.Terminal:
		return fail("config.json wants a terminal, and the container had none")
	case !terminal && saved.Terminal:
		return fail("the container had a terminal, and config.json wants none")
	case r.UserNetwork:
		return fail("it cannot have the user-mode network that manis.network asks for")
	case r.Accel == string(vmm.AccelKVM):
		return fail("its machine is an emulated one, and manis.accel asks for KVM")
	}
	entries, err := savedEntries(saved.Mounts, plan)
	if err != nil {
		return fail("%w", err)
	}
	config := sandbox.Config{
		Driver: monitor.Driver(p.places),
		VM: vmm.Config{
			MemoryBytes: saved.MemoryBytes, VCPUs: saved.VCPUs, Accel: vmm.AccelTCG, RunDir: p.dir,
			Shares: []vmm.Share{{Tag: bindsTag, Entries: entries, Grows: true}},
		},
		Setup: &agent.SetupRequest{Hostname: plan.Create.Hostname, Domainname: plan.Create.Domainname, Network: &agent.Network{}},
	}
	// Whatever fails from here on, dropping the last member releases it.
	if err := p.connect(r.Netns, &config); err != nil {
		return err
	}
	s, err := monitor.Continue(ctx, config, image.Saved())
	if err != nil {
		return fail("%w", inItsWords(err, saved.Mounts))
	}
	p.made = 1 // the names of the entries are the first one's
	if err := p.begin(ctx, s, "checkpoint", config.Setup); err != nil {
		return fail("%w", err)
	}
	if err := again(ctx, func() error { return p.resolve(ctx, m.resolvConf) }); err != nil {
		return fail("%w", err)
	}
	m.mounts = saved.Mounts
	if err := m.goOn(ctx, saved, a); err != nil {
		return fail("%w", err)
	}
	return nil
}

// goOn connects the container that was saved.
func (m *member) goOn(ctx context.Context, saved *dump.Container, a *Attendant) error {
	ctx, cancel := context.WithTimeout(ctx, returnTime)
	defer cancel()
	p := m.pod
	streams, err := newStreams(saved.Terminal, a.Streams)
	a.Streams = Streams{}
	if err != nil {
		return err
	}
	m.streams = streams
	request := &agent.Process{}
	if err := m.streams.connect(request, p.sandbox.Stream); err != nil {
		return err
	}
	if err := p.sandbox.Adopt(ctx, &agent.AdoptRequest{Id: saved.ID, NewId: m.id, Stdin: request.Stdin, Stdout: request.Stdout, Stderr: request.Stderr}); err != nil {
		return err
	}
	if saved.Paused {
		// Engines pause a container to save it. One that is restored runs.
		if err := p.sandbox.Resume(ctx, m.id); err != nil {
			return err
		}
	}
	m.streams.pump()
	m.runs()
	m.fit(ctx, "", m.streams)
	go m.wait()
	return nil
}

// savedEntries are what a saved container had of the host's files, with what the configuration has in
// the same places now.
func savedEntries(mounts []dump.Mount, plan *bundle.Plan) ([]vmm.ShareEntry, error) {
	destinations := make(map[string]string)
	for _, m := range plan.Create.Mounts {
		if m.Type == "share" {
			destinations[strings.TrimPrefix(m.Source, bindsTag+"/")] = m.Destination
		}
	}
	used := make([]bool, len(plan.Binds))
	var entries []vmm.ShareEntry
	for _, m := range mounts {
		if m.Destination == "/" {
			entries = append(entries, vmm.ShareEntry{Name: m.Name, HostPath: plan.Root, ReadOnly: plan.Create.Rootfs.Readonly})
			continue
		}
		found := false
		for i, b := range plan.Binds {
			if found = !used[i] && destinations[b.Name] == m.Destination; found {
				if b.File != m.File {
					return nil, fmt.Errorf("config.json: %s is to be a %s, and was a %s", m.Destination, kindOf(b.File), kindOf(m.File))
				}
				used[i] = true
				entries = append(entries, vmm.ShareEntry{Name: m.Name, HostPath: b.HostPath, Opened: b.Opened, ReadOnly: b.ReadOnly, WritableBelow: b.WritableBelow, File: b.File})
				break
			}
		}
		if !found {
			return nil, fmt.Errorf("config.json has no mount of the host at %s, where the container had one", m.Destination)
		}
	}
	for i, b := range plan.Binds {
		if !used[i] {
			return nil, fmt.Errorf("config.json has a mount of the host at %s, where the container had none", destinations[b.Name])
		}
	}
	if len(entries) == 0 {
		return nil, errors.New("its manifest names no root")
	}
	return entries, nil
}

func kindOf(file bool) string {
	if file {
		return "file"
	}
	return "directory"
}
