package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"

	"manis/api/agent"
	"manis/bundle"
	"manis/container"
	"manis/monitor"
	"manis/place"
	"manis/sandbox"
	"manis/vmm"
)

// Names of a container's root in the share of host directories, and of what it consists of.
const (
	bindsTag   = "binds"
	rootEntry  = "root"
	imageEntry = "image"
	layerEntry = "layer"
)

// Pod is one machine with its containers.
type Pod struct {
	places *place.Places
	dir    string // of its own, for the machine's sockets

	// making is held while a container is being made: the first one makes the machine.
	making sync.Mutex
	made   int // containers so far
	// attached counts the block devices so far.
	attached int
	// growing is held while the machine's size changes.
	growing sync.Mutex

	mu       sync.Mutex
	identity Identity // whose it is; empty: nobody has said it
	members  map[string]*member
	sandbox  *sandbox.Sandbox
	boot     string              // where the machine came from, see container.State
	began    time.Time           // when the machine became the pod's
	setup    *agent.SetupRequest // for a further session with its agent
	releases []func()
	// least and most are the machine's size at its start, and what it may become.
	least, most Size
	used        int              // processors that it uses since it has grown; 0: it has not
	waited      *monitor.Standby // the machine that was claimed for it; nil: there is none, any more
	held        bool             // the machine lives without containers, too
	servers     *servers         // nil without a network namespace, as network
	network     *network
	sealed      *sealed // nil: the pod is not of the class confidential
	projections projections
	// finishing says that the pod ends, and takes no more containers.
	finishing bool
	// ended is closed when it has.
	ended    chan struct{}
	finished sync.Once
}

// New returns a pod without a machine, which keeps its things in dir, a directory of its own that the caller
// removes. It lives until its last container is removed, or with Boot until End.
func New(places *place.Places, dir string) *Pod {
	p := &Pod{places: places, dir: dir, members: make(map[string]*member), ended: make(chan struct{})}
	p.projections.pod = p
	return p
}

// Use gives a pod that has none yet the machine that has waited. It is the pod's from then on; should it not work when it is
// needed, another one is started in its place.
func (p *Pod) Use(s *monitor.Standby) {
	p.waited = s
	p.releases = append(p.releases, s.Release)
}

// Create makes a container; its process does not run yet. With the first one comes the machine, unless
// Boot has made it. It owns the attendant's streams.
func (p *Pod) Create(ctx context.Context, r *CreateRequest, a Attendant) error {
	return p.enrol(r.ID, &a, func(m *member) error { return p.fill(ctx, m, r, &a) })
}

// enrol adds a container that fill makes, and takes it away where that fails. It owns the attendant's streams but for those that
// fill has taken.
func (p *Pod) enrol(id string, a *Attendant, fill func(m *member) error) (err error) {
	m := &member{pod: p, id: id, ended: a.Ended, created: time.Now(), status: specs.StateCreating, done: make(chan struct{}), execs: make(map[string]*execution)}
	defer func() {
		if err == nil {
			return
		}
		if m.streams != nil {
			m.streams.close()
		} else {
			closeAll(a.Streams.files())
		}
	}()
	p.making.Lock()
	defer p.making.Unlock()
	if err := p.add(m); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			p.dismiss(m)
			p.drop(m)
			p.keepBundle()
		}
	}()
	return fill(m)
}

// created lets a container that the guest has made be one.
func (p *Pod) created(m *member) {
	m.streams.pump()
	m.set(specs.StateCreated)
	select {
	case <-p.sandbox.Done():
		// watch may have looked before.
		m.end(p.goneWithMachine())
	default:
	}
}

// fill makes a container of a bundle.
func (p *Pod) fill(ctx context.Context, m *member, r *CreateRequest, a *Attendant) (err error) {
	if m.bundle, err = bundle.Parse(r.Bundle, r.Config); err != nil {
		return err
	}
	p.identify(m)
	plan, err := m.bundle.Plan(bundle.Environment{BindsTag: bindsTag, Disks: r.Disks, Maps: r.Maps})
	if err != nil {
		return err
	}
	if err := plan.Hold(r.Allowed); err != nil {
		return err
	}
	defer plan.Close()
	plan.Create.Id, plan.Create.FindCommand, plan.Create.KeepMountOrder = r.ID, true, true
	plan.Create.JoinPid, plan.Create.JoinIpc, plan.Create.JoinUts = r.JoinPID, r.JoinIPC, r.JoinUTS
	plan.Create.SharePid, plan.Create.ShareIpc, plan.Create.ShareUts = r.SharePID, r.ShareIPC, r.ShareUTS
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
	m.alone = !plan.Create.SharePid && plan.Create.JoinPid == ""
	m.resolvConf = conf(plan)
	if r.Image != "" {
		return p.restore(ctx, m, r, plan, a)
	}
	if r.Projections {
		p.projections.take(m, plan)
	}
	entries := p.entries(plan, r.Layers)
	m.mounts = hostMounts(plan, entries)
	if p.sandbox == nil && slices.ContainsFunc(entries, func(e vmm.ShareEntry) bool { return e.IDs != nil }) {
		return errors.New("mounts with mapped ids (uidMappings, gidMappings, idmap) need a machine that runs, as that of a pod of CRI does")
	}
	if p.sandbox == nil {
		err = p.makeMachine(ctx, &Machine{
			Resources: plan.Resources, Accel: r.Accel, Boot: r.Boot, Netns: r.Netns, UserNetwork: r.UserNetwork, Egress: r.Egress,
			Hostname: plan.Create.Hostname, Domainname: plan.Create.Domainname,
		}, entries)
	} else {
		err = p.admit(ctx, m, entries)
	}
	if err != nil {
		return err
	}
	if err = p.attachLayers(ctx, m, plan.Create.Rootfs, r.Layers); err != nil {
		return err
	}
	if err = p.attach(ctx, m, plan.Disks); err != nil {
		return err
	}
	if err = p.resolve(ctx, m.resolvConf); err != nil {
		return err
	}
	streams, err := newStreams(plan.Create.Process.Terminal, a.Streams)
	a.Streams = Streams{}
	if err != nil {
		return err
	}
	m.streams = streams
	if err := m.streams.connect(plan.Create.Process, p.sandbox.Stream); err != nil {
		return err
	}
	err = p.projections.with(m, plan.Create, func() error {
		_, err := p.sandbox.CreateContainer(ctx, plan.Create)
		return err
	})
	if err != nil {
		return err
	}
	p.created(m)
	return nil
}

// entries are what a container has of the host's files. Their names are the container's own.
func (p *Pod) entries(plan *bundle.Plan, layers *Layers) []vmm.ShareEntry {
	prefix := strconv.Itoa(p.made) + "."
	p.made++
	var list []vmm.ShareEntry
	if layers != nil {
		if layers.Image != "" {
			image := vmm.ShareEntry{Name: prefix + imageEntry, HostPath: layers.Image, ReadOnly: true, File: true}
			plan.Create.Rootfs.Image = bindsTag + "/" + image.Name
			list = append(list, image)
		}
		if layers.Layer != "" {
			layer := vmm.ShareEntry{Name: prefix + layerEntry, HostPath: layers.Layer}
			plan.Create.Rootfs.Layer = bindsTag + "/" + layer.Name
			list = append(list, layer)
		}
	} else {
		root := vmm.ShareEntry{Name: prefix + rootEntry, HostPath: plan.Root, ReadOnly: plan.Create.Rootfs.Readonly}
		plan.Create.Rootfs.Share = bindsTag + "/" + root.Name
		if root.ReadOnly {
			makePoints(plan)
		}
		list = append(list, root)
	}
	renamed := make(map[string]string)
	for _, b := range plan.Binds {
		name := prefix + b.Name
		// The container's table of mounts ends the path of a bind with its name on the host, as everywhere.
		if base := filepath.Base(b.HostPath); vmm.Plain(base) {
			name += "/" + base
		}
		renamed[bindsTag+"/"+b.Name] = bindsTag + "/" + name
		list = append(list, vmm.ShareEntry{Name: name, HostPath: b.HostPath, Opened: b.Opened, ReadOnly: b.ReadOnly, WritableBelow: b.WritableBelow, File: b.File, Follows: b.Follows, IDs: idMap(b)})
	}
	for _, m := range plan.Create.Mounts {
		if source, ok := renamed[m.Source]; ok && m.Type == "share" {
			m.Source = source
		}
	}
	return list
}

// idMap is how the owners of a bind's files are mapped.
func idMap(b bundle.Bind) *vmm.IDMap {
	if len(b.UIDs) == 0 {
		return nil
	}
	ranges := func(list []specs.LinuxIDMapping) []vmm.IDRange {
		var all []vmm.IDRange
		for _, m := range list {
			all = append(all, vmm.IDRange{Host: m.ContainerID, Seen: m.HostID, Size: m.Size})
		}
		return all
	}
	return &vmm.IDMap{Users: ranges(b.UIDs), Groups: ranges(b.GIDs), Below: b.MapsBelow}
}

// admit shows a running machine the files of a further container.
func (p *Pod) admit(ctx context.Context, m *member, entries []vmm.ShareEntry) error {
	p.mu.Lock()
	live, held := p.live(), p.held
	p.mu.Unlock()
	if live <= 1 && !held { // the new one itself
		return fmt.Errorf("%w: the other containers of its pod have stopped", ErrState)
	}
	for _, e := range entries {
		if err := p.sandbox.VM().Share(ctx, bindsTag, e); err != nil {
			return err
		}
		m.added = append(m.added, e)
	}
	return nil
}

// dismiss takes away what a machine that lives on was shown for a container.
func (p *Pod) dismiss(m *member) {
	ctx, cancel := context.WithTimeout(context.Background(), removeTime)
	defer cancel()
	m.mu.Lock()
	added, disks, projected := m.added, m.disks, m.projected
	m.added, m.disks, m.projected = nil, nil, nil
	m.mu.Unlock()
	p.projections.drop(projected)
	for _, serial := range disks {
		if err := p.sandbox.VM().Detach(ctx, serial); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	for _, e := range added {
		if err := p.sandbox.VM().Unshare(ctx, bindsTag, e); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

// Machine is what a pod's machine is to be like.
type Machine struct {
	// Resources are those that the machine's size depends on.
	Resources container.Resources
	// Accel and Boot are as in container.Config.
	Accel, Boot string
	// Netns is a path of the network namespace whose interfaces the machine takes over; empty: there are none.
	Netns string
	// UserNetwork gives it the user-mode network in its place.
	UserNetwork bool
	// Egress are lists of rules for it, as in CreateRequest.
	Egress [][]string
	// Hostname and Domainname are the machine's: those of containers that share its UTS namespace.
	Hostname, Domainname string
	// Sysctls are kernel parameters of the machine and of the namespaces that containers share with it, by their
	// names with dots.
	Sysctls map[string]string
	// Trust makes it one of the class confidential: its containers come by CreateSealed.
	Trust *container.Trust
	// Bundle is the file that gets its audit bundle.
	Bundle string
}

// Boot makes the machine before the first container is. From then on it lives until End, whatever becomes of
// the containers.
func (p *Pod) Boot(ctx context.Context, m *Machine) error {
	p.making.Lock()
	defer p.making.Unlock()
	if p.sandbox != nil {
		return fmt.Errorf("%w: the pod has its machine already", ErrState)
	}
	if err := p.makeMachine(ctx, m, nil); err != nil {
		return err
	}
	p.mu.Lock()
	p.held = true
	p.mu.Unlock()
	return nil
}

func (p *Pod) makeMachine(ctx context.Context, wanted *Machine, entries []vmm.ShareEntry) (err error) {
	// What of a machine's size and origin a container of the command line has, too.
	cfg := &container.Config{Accel: wanted.Accel, Boot: wanted.Boot, Resources: wanted.Resources}
	vm, driver, err := monitor.Machine(ctx, p.places, cfg)
	if err != nil {
		return err
	}
	vm.RunDir = p.dir
	vm.Shares = []vmm.Share{{Tag: bindsTag, Entries: entries, Grows: true}}
	p.least, p.most = Size{vm.MemoryBytes, vm.VCPUs}, Size{vm.MaxMemoryBytes, vm.MaxVCPUs}
	config := sandbox.Config{
		Driver: driver, VM: vm,
		Setup: &agent.SetupRequest{
			Hostname: wanted.Hostname, Domainname: wanted.Domainname, Sysctls: wanted.Sysctls,
			Shares: []*agent.Share{{Tag: bindsTag}}, Network: &agent.Network{},
		},
	}
	if wanted.Trust != nil {
		return p.makeSealed(ctx, wanted, config)
	}
	if wanted.UserNetwork {
		err = p.connectUser(ctx, &config, wanted.Egress)
	} else {
		err = p.connect(wanted.Netns, &config)
	}
	if err != nil {
		p.release()
		return err
	}
	if p.waited != nil {
		err := p.useWaited(ctx, config, entries)
		if err == nil || ctx.Err() != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "starting a machine instead of using the one that waited: %v\n", err)
		p.release()
		p.waited = nil
		return p.makeMachine(ctx, wanted, entries)
	}
	m, err := monitor.Start(ctx, p.places, cfg, config, driver)
	if err != nil {
		p.release()
		return err
	}
	p.releases = append(p.releases, m.Release)
	return p.begin(ctx, m.Sandbox, m.Boot, config.Setup)
}

// waitedTime bounds how long a machine that has waited may take to become the pod's.
const waitedTime = 20 * time.Second

// useWaited makes the machine that has waited the one that config describes.
func (p *Pod) useWaited(ctx context.Context, config sandbox.Config, entries []vmm.ShareEntry) error {
	ctx, cancel := context.WithTimeout(ctx, waitedTime)
	defer cancel()
	s := p.waited.Sandbox()
	for _, e := range entries {
		if err := s.VM().Share(ctx, bindsTag, e); err != nil {
			return err
		}
	}
	if err := s.Claim(ctx, sandbox.Config{Setup: config.Setup}); err != nil {
		return err
	}
	return p.begin(ctx, s, p.waited.Boot(), config.Setup)
}

// begin makes a machine the pod's.
func (p *Pod) begin(ctx context.Context, s *sandbox.Sandbox, boot string, setup *agent.SetupRequest) error {
	setup = proto.CloneOf(setup)
	setup.Shares = nil // they are mounted already
	p.mu.Lock()
	p.sandbox, p.boot, p.setup, p.began = s, boot, setup, time.Now()
	p.mu.Unlock()
	go p.watch()
	if p.network != nil {
		return p.network.begin(ctx)
	}
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
			m.end(p.goneWithMachine())
		}
	}
}

func (p *Pod) goneWithMachine() Exit { return gone(exitGone, sandbox.ErrEnded.Error()) }

func (p *Pod) release() {
	for i := len(p.releases) - 1; i >= 0; i-- {
		p.releases[i]()
	}
	p.releases = nil
}

func (p *Pod) add(m *member) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.finishing {
		return ErrGone
	}
	if p.members[m.id] != nil {
		return fmt.Errorf("container with id exists: %s", m.id)
	}
	p.members[m.id] = m
	return nil
}

// drop forgets a container. When it was the last, the machine ends and with it the pod.
func (p *Pod) drop(m *member) {
	p.mu.Lock()
	last := p.members[m.id] == m && len(p.members) == 1 && !p.held
	if p.members[m.id] == m {
		delete(p.members, m.id)
	}
	p.finishing = p.finishing || last
	p.mu.Unlock()
	if last {
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

// finish ends the machine and the pod, and returns when that is done. p.mu is not held: what is released waits for others
// that may want it, such as who follows the network.
func (p *Pod) finish() {
	p.finished.Do(func() {
		p.keepBundle()
		if err := p.Kill(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		p.projections.close()
		p.release()
		close(p.ended)
	})
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
		m.end(gone(exitGone, ""))
	}
	if err := m.need("delete", specs.StateStopped); err != nil {
		return err
	}
	p.dismiss(m)
	p.drop(m)
	return nil
}

// idleTime is how long a pod waits for its first container.
const idleTime = 30 * time.Second

// Socket is the path of a pod's socket in its directory.
func Socket(dir string) string { return filepath.Join(dir, "pod") }
