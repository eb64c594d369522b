package pod

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"manis/api/agent"
	"manis/bundle"
	"manis/container"
	"manis/monitor"
	"manis/place"
	"manis/sandbox"
	"manis/vmm"
)

// rootEntry is the name of a container's root in the share of host directories.
const (
	bindsTag  = "binds"
	rootEntry = "root"
)

// Pod is one machine with its containers.
type Pod struct {
	places *place.Places
	dir    string // of its own, for the machine's sockets

	// making is held while a container is being made: the first one makes the machine.
	making sync.Mutex
	made   int // containers so far

	mu       sync.Mutex
	members  map[string]*member
	sandbox  *sandbox.Sandbox
	releases []func()
	// ended is closed when the last container has gone.
	ended chan struct{}
}

func newPod(places *place.Places, dir string) *Pod {
	return &Pod{places: places, dir: dir, members: make(map[string]*member), ended: make(chan struct{})}
}

// create makes a container, and with the first one the machine. It owns the files.
func (p *Pod) create(ctx context.Context, r *CreateRequest, files []*os.File) (err error) {
	if len(files) == 0 {
		return fmt.Errorf("the request lacks the proxy")
	}
	m := &member{pod: p, id: r.ID, proxy: files[0], status: specs.StateCreating, done: make(chan struct{}), execs: make(map[string]*execution)}
	files = files[1:]
	defer func() {
		if err != nil {
			closeAll(files)
			m.proxy.Close()
		}
	}()
	p.making.Lock()
	defer p.making.Unlock()
	if err := p.add(m); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			p.drop(m)
		}
	}()
	if m.bundle, err = bundle.Parse(r.Bundle, r.Config); err != nil {
		return err
	}
	plan, err := m.bundle.Plan(bundle.Environment{BindsTag: bindsTag})
	if err != nil {
		return err
	}
	plan.Create.Id, plan.Create.FindCommand, plan.Create.KeepMountOrder = r.ID, true, true
	plan.Create.JoinPid, plan.Create.JoinIpc, plan.Create.JoinUts = r.JoinPID, r.JoinIPC, r.JoinUTS
	plan.Create.Process.Rows, plan.Create.Process.Columns = r.Rows, r.Columns
	if len(plan.Create.StartHooks) > 0 {
		// The agent adds what only it knows.
		b, err := json.Marshal(map[string]any{
			"ociVersion": specs.Version, "status": specs.StateCreated, "bundle": r.Bundle, "annotations": m.bundle.Spec.Annotations,
		})
		if err != nil {
			return err
		}
		plan.Create.HookState = string(b)
	}
	entries := p.entries(plan)
	if p.sandbox == nil {
		err = p.start(ctx, r, plan, entries)
	} else {
		err = p.admit(ctx, entries)
	}
	if err != nil {
		return err
	}
	m.streams, err = newStreams(plan.Create.Process.Terminal, files)
	files = nil
	if err != nil {
		return err
	}
	if err := attach(plan.Create.Process, m.streams, p.sandbox); err != nil {
		m.streams.close()
		return err
	}
	if _, err = p.sandbox.CreateContainer(ctx, plan.Create); err != nil {
		m.streams.close()
		return err
	}
	m.streams.pump()
	m.set(specs.StateCreated)
	go m.obey(m.proxy, m.done, "", m.streams)
	return nil
}

// entries are what a container has of the host's files. Their names are the container's own.
func (p *Pod) entries(plan *bundle.Plan) []vmm.ShareEntry {
	prefix := strconv.Itoa(p.made) + "."
	p.made++
	root := vmm.ShareEntry{Name: prefix + rootEntry, HostPath: plan.Root, ReadOnly: plan.Create.Rootfs.Readonly}
	plan.Create.Rootfs.Share = bindsTag + "/" + root.Name
	list := []vmm.ShareEntry{root}
	renamed := make(map[string]string)
	for _, b := range plan.Binds {
		name := prefix + b.Name
		// The container's table of mounts ends the path of a bind with its name on the host, as everywhere.
		if base := filepath.Base(b.HostPath); vmm.Plain(base) {
			name += "/" + base
		}
		renamed[bindsTag+"/"+b.Name] = bindsTag + "/" + name
		list = append(list, vmm.ShareEntry{Name: name, HostPath: b.HostPath, ReadOnly: b.ReadOnly, File: b.File})
	}
	for _, m := range plan.Create.Mounts {
		if source, ok := renamed[m.Source]; ok && m.Type == "share" {
			m.Source = source
		}
	}
	return list
}

// admit shows a running machine the files of a further container.
func (p *Pod) admit(ctx context.Context, entries []vmm.ShareEntry) error {
	p.mu.Lock()
	live := p.live()
	p.mu.Unlock()
	if live <= 1 { // the new one itself
		return fmt.Errorf("%w: the other containers of its pod have stopped", ErrState)
	}
	for _, e := range entries {
		if err := p.sandbox.VM().Share(ctx, bindsTag, e); err != nil {
			return err
		}
	}
	return nil
}

// start makes the machine.
func (p *Pod) start(ctx context.Context, r *CreateRequest, plan *bundle.Plan, entries []vmm.ShareEntry) (err error) {
	// What of a machine's size and origin a container of the command line has, too.
	cfg := &container.Config{Accel: r.Accel, Boot: r.Boot, Resources: plan.Resources}
	vm, driver, err := monitor.Machine(ctx, p.places, cfg)
	if err != nil {
		return err
	}
	vm.RunDir = p.dir
	vm.Shares = []vmm.Share{{Tag: bindsTag, Entries: entries, Grows: true}}
	config := sandbox.Config{
		Driver: driver, VM: vm,
		Setup: &agent.SetupRequest{
			Hostname: plan.Create.Hostname, Domainname: plan.Create.Domainname,
			Shares: []*agent.Share{{Tag: bindsTag}}, Network: &agent.Network{},
		},
	}
	if err := p.network(r.Netns, &config); err != nil {
		p.release()
		return err
	}
	m, err := monitor.Start(ctx, p.places, cfg, config, driver)
	if err != nil {
		p.release()
		return err
	}
	p.releases = append(p.releases, m.Release)
	p.mu.Lock()
	p.sandbox = m.Sandbox
	p.mu.Unlock()
	go p.watch()
	return nil
}

// watch ends every container when the machine has ended.
func (p *Pod) watch() {
	<-p.sandbox.Done()
	p.mu.Lock()
	members := make([]*member, 0, len(p.members))
	for _, m := range p.members {
		members = append(members, m)
	}
	p.mu.Unlock()
	for _, m := range members {
		if m.is(specs.StateCreated) {
			m.end(exitGone)
		}
	}
}

func (p *Pod) release() {
	for i := len(p.releases) - 1; i >= 0; i-- {
		p.releases[i]()
	}
	p.releases = nil
}

func (p *Pod) add(m *member) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.members[m.id] != nil {
		return fmt.Errorf("container with id exists: %s", m.id)
	}
	p.members[m.id] = m
	return nil
}

// drop forgets a container. When it was the last, the machine ends and with it the pod.
func (p *Pod) drop(m *member) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.members[m.id] != m {
		return
	}
	delete(p.members, m.id)
	if len(p.members) == 0 {
		p.finish()
	}
}

// live counts the containers whose processes have not ended; p.mu is held.
func (p *Pod) live() int {
	n := 0
	for _, m := range p.members {
		if !m.is(specs.StateStopped) {
			n++
		}
	}
	return n
}

// finish ends the machine and the pod; p.mu is held.
func (p *Pod) finish() {
	select {
	case <-p.ended:
		return
	default:
	}
	if p.sandbox != nil {
		if err := p.sandbox.Kill(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	p.release()
	close(p.ended)
}

// member finds a container.
func (p *Pod) member(id string) (*member, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m := p.members[id]; m != nil {
		return m, nil
	}
	return nil, fmt.Errorf("%w: %s", ErrNotFound, id)
}

// remove forgets a container that does not run.
func (p *Pod) remove(m *member) error {
	if m.is(specs.StateCreated) {
		m.end(exitGone)
	}
	if err := m.need("delete", specs.StateStopped); err != nil {
		return err
	}
	p.drop(m)
	return nil
}

// idleTime is how long a pod waits for its first container.
const idleTime = 30 * time.Second

// Socket is the path of a pod's socket in its directory.
func Socket(dir string) string { return filepath.Join(dir, "pod") }
