package monitor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"manis/api/agent"
	"manis/container"
	"manis/container/spec"
	"manis/host"
	"manis/image"
	"manis/image/rootfs"
	"manis/network"
	"manis/network/egress"
	"manis/origin"
	"manis/place"
	"manis/policy"
	"manis/sandbox"
	"manis/snapshot"
	"manis/storage"
	"manis/trace"
	"manis/vmm"
	"manis/vmm/qemu"
)

// Names by which host and guest mean the same thing.
const (
	rootSerial    = "root"
	scratchSerial = "scratch"
	bindsTag      = "binds"
	volumesTag    = "volumes"
	nicDevice     = "eth0"
)

// machine is a booted sandbox with the request for the container in it, and
// what must be released after it.
type machine struct {
	sandbox *sandbox.Sandbox
	request *agent.CreateContainerRequest
	ports   []container.Port
	address string
	gateway string
	mac     string
	boot    string // see container.State
	setup   *agent.SetupRequest
	// continued: the container is in it already, and hook is to be run there.
	continued bool
	hook      []string
	releases  []func()
	// populations are volumes that the agent fills while it creates the container.
	populations []*storage.Population
	// opened are the host's directories and files, until the machine has been started with them.
	opened []*os.File
}

// release frees everything in the reverse order of its making.
func (m *machine) release() {
	for i := len(m.releases) - 1; i >= 0; i-- {
		m.releases[i]()
	}
	m.releases = nil
}

func (m *machine) later(f func()) { m.releases = append(m.releases, f) }

// boot turns the configuration into a running sandbox. The machine is returned
// also with an error, to be released.
func (m *Monitor) boot(ctx context.Context) (*machine, error) {
	b := &machine{}
	defer b.closeOpened()
	vm, driver, err := Machine(ctx, m.places, m.cfg)
	if err != nil {
		return b, err
	}
	vm.RunDir = m.runDir()
	env := spec.Environment{RootDisk: rootSerial, BindsTag: bindsTag, VolumesTag: volumesTag, Filled: make(map[int]bool)}
	cfg := sandbox.Config{
		Driver: driver,
		VM:     vm,
		Setup:  &agent.SetupRequest{Hostname: m.cfg.Hostname, Domainname: m.cfg.Domainname},
	}
	b.setup = cfg.Setup
	from := m.cfg.Snapshot
	if m.state.Continued || m.copying {
		from = "" // only a container's first round goes on from it
	}
	var saved *snapshot.Snapshot
	if from != "" {
		if saved, err = snapshot.Open(m.places.Snapshots()).Use(from); err != nil {
			return b, err
		}
		defer saved.Close()
		if err := m.fork(ctx, saved); err != nil {
			return b, err
		}
	}
	if err := m.disks(ctx, b, &cfg, &env); err != nil {
		return b, err
	}
	if err := m.shares(ctx, b, &cfg, &env); err != nil {
		return b, err
	}
	if err := m.connect(ctx, b, &cfg, &env); err != nil {
		return b, err
	}
	if saved != nil {
		return b, m.goOn(ctx, b, &cfg, saved)
	}
	if b.request, err = spec.Build(m.cfg, env); err != nil {
		return b, err
	}
	b.request.Id, b.request.Ephemeral = containerID, m.throwaway()
	if m.confidential() {
		return b, m.bootMeasured(ctx, b, cfg)
	}
	if m.claimed(ctx, b, &cfg) {
		return b, nil
	}
	started, err := Start(ctx, m.places, m.cfg, cfg, driver)
	if err != nil {
		return b, err
	}
	b.later(started.Release)
	b.sandbox, b.boot = started.Sandbox, started.Boot
	return b, nil
}

// Machine is the machine that a container of this configuration gets, without its
// devices, and what starts it.
func Machine(ctx context.Context, places *place.Places, cfg *container.Config) (vmm.Config, *qemu.Driver, error) {
	driver := Driver(places)
	vm, _, err := Choose(ctx, places, driver, cfg)
	return vm, driver, err
}

// Choose is Machine for a driver that is there, and says why the machine's accelerator was chosen.
func Choose(ctx context.Context, places *place.Places, driver *qemu.Driver, cfg *container.Config) (vmm.Config, host.Choice, error) {
	guest, err := place.FindGuest()
	if err != nil {
		return vmm.Config{}, host.Choice{}, err
	}
	accel, err := Accelerators(places, driver, guest).Choose(ctx, cfg.Accel)
	if err != nil {
		return vmm.Config{}, host.Choice{}, err
	}
	memory, vcpus, err := spec.Machine(cfg)
	if err != nil {
		return vmm.Config{}, host.Choice{}, err
	}
	maxMemory, maxVCPUs, err := spec.Largest(memory, vcpus)
	if err != nil {
		return vmm.Config{}, host.Choice{}, err
	}
	return vmm.Config{
		Kernel: guest.Kernel, Initrd: guest.Initramfs,
		MemoryBytes: memory, VCPUs: vcpus, MaxMemoryBytes: maxMemory, MaxVCPUs: maxVCPUs,
		Accel: accel.Accel,
		Cmdline: []string{
			// The kernel's dummy driver would greet every container with a card.
			"dummy.numdummies=0",
			// In the agent's environment: its goroutines are preempted at function calls
			// only. A clone finds all of them overdue, and translating the code of the
			// signals that interrupt them would take longer than they run.
			"GODEBUG=asyncpreemptoff=1",
		},
	}, accel, nil
}

// Driver starts the machines of this user.
func Driver(places *place.Places) *qemu.Driver {
	driver := qemu.New("")
	driver.Cache = filepath.Join(places.Cache, "qemu")
	return driver
}

// Accelerators decides what executes the guest's code, for monitors and for
// front ends alike: they share what is remembered of this host.
func Accelerators(places *place.Places, driver *qemu.Driver, guest *place.Guest) *host.Accelerators {
	return &host.Accelerators{Driver: driver, Kernel: guest.Kernel, Cache: filepath.Join(places.Cache, "host")}
}

// disks opens the image and the writable layer.
func (m *Monitor) disks(ctx context.Context, b *machine, cfg *sandbox.Config, env *spec.Environment) error {
	_, span := trace.Start(ctx, "disks")
	defer span.End()
	images, err := image.Open(m.places.Images())
	if err != nil {
		return err
	}
	img, err := images.Resolve(m.cfg.ImageID)
	if err != nil {
		return err
	}
	root, release, err := images.Rootfs(ctx, img, nil)
	if err != nil {
		return err
	}
	b.later(release)
	env.Verity = VerityOf(root)
	cfg.VM.Disks = append(cfg.VM.Disks, vmm.Disk{Serial: rootSerial, File: root.File, ReadOnly: true})
	if m.cfg.ReadOnly || m.cfg.Scratch.Memory {
		return nil
	}
	if m.c == nil {
		env.ScratchDisk = scratchSerial // nothing is made of a draft
		return nil
	}
	scratch, err := m.scratch(ctx)
	if err != nil {
		return err
	}
	b.later(func() { scratch.Close() })
	sync := vmm.SyncFlush
	if m.cfg.AutoRemove && !m.copying || m.confidential() {
		sync = vmm.SyncUnsafe // nothing of it outlives the machine
	}
	cfg.VM.Disks = append(cfg.VM.Disks, vmm.Disk{Serial: scratchSerial, File: scratch, Sync: sync})
	env.ScratchDisk = scratchSerial
	return nil
}

// VerityOf says how the guest checks a root filesystem.
func VerityOf(root *rootfs.Image) *agent.Verity {
	return &agent.Verity{
		RootHash: root.RootHash, Salt: root.Salt, Algorithm: root.Algorithm,
		DataBlockBytes: uint32(root.BlockSize), HashBlockBytes: uint32(root.BlockSize),
		DataBlocks: uint64(root.DataBlocks), HashOffset: uint64(root.HashOffset),
	}
}

// scratch opens the container's writable layer and makes it the first time.
func (m *Monitor) scratch(ctx context.Context) (*os.File, error) {
	path := m.scratchPath()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		size := int64(m.cfg.Scratch.Bytes)
		if size == 0 {
			size = storage.DefaultScratchSize
		}
		if m.confidential() {
			err = storage.MakeEmpty(size, path) // its machine makes the file system
		} else {
			err = storage.NewBlanks(filepath.Join(m.places.Cache, "blank")).Clone(ctx, size, path)
		}
		if err != nil {
			return nil, err
		}
		f, err = os.OpenFile(path, os.O_RDWR, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("open the writable layer: %w", err)
	}
	return f, nil
}

// shares exports the host directories and volumes that are mounted.
func (m *Monitor) shares(ctx context.Context, b *machine, cfg *sandbox.Config, env *spec.Environment) error {
	binds := vmm.Share{Tag: bindsTag}
	volumes := vmm.Share{Tag: volumesTag, MapOwnership: true}
	store, err := storage.OpenVolumes(ctx, m.places.Volumes())
	if err != nil {
		return err
	}
	for i, mount := range m.cfg.Mounts {
		name := strconv.Itoa(i)
		switch mount.Type {
		case "bind":
			opened, err := m.open(b, mount)
			if err != nil {
				return err
			}
			binds.Entries = append(binds.Entries, vmm.ShareEntry{Name: name, HostPath: mount.Source, Opened: opened, ReadOnly: mount.ReadOnly, File: mount.File})
		case "volume":
			v, err := store.Get(mount.Source)
			if err != nil {
				return err
			}
			fill, err := m.populate(ctx, b, store, mount)
			if err != nil {
				return err
			}
			env.Filled[i] = !fill
			volumes.Entries = append(volumes.Entries, vmm.ShareEntry{Name: name, HostPath: v.Mountpoint, ReadOnly: mount.ReadOnly && !fill})
		}
	}
	for _, s := range []vmm.Share{binds, volumes} {
		if len(s.Entries) > 0 {
			cfg.VM.Shares = append(cfg.VM.Shares, s)
			cfg.Setup.Shares = append(cfg.Setup.Shares, &agent.Share{Tag: s.Tag})
		}
	}
	return nil
}

// open opens a directory or file of the host for the machine, and asks the operator's policy about what was opened: where the path led
// when the container was permitted it need not lead now. Nil: there is no policy.
func (m *Monitor) open(b *machine, mount container.Mount) (*os.File, error) {
	operator, err := policy.Load(m.places.Policy())
	if operator == nil || err != nil {
		return nil, err
	}
	f, err := origin.Open(mount.Source)
	if err != nil {
		return nil, fmt.Errorf("mount %s at %s: %w", mount.Source, mount.Destination, err)
	}
	b.opened = append(b.opened, f)
	return f, operator.Check(&policy.Request{Mounts: []policy.Mount{{Source: mount.Source, Opened: f, ReadOnly: mount.ReadOnly}}})
}

// closeOpened closes what was opened for the machine's start: while it is open, it could not be unmounted.
func (b *machine) closeOpened() {
	for _, f := range b.opened {
		f.Close()
	}
	b.opened = nil
}

// populate claims the filling of a volume that has never been used. It is
// done, for good, when the container has been created.
func (m *Monitor) populate(ctx context.Context, b *machine, store *storage.Volumes, mount container.Mount) (bool, error) {
	if mount.NoCopy {
		return false, nil
	}
	p, err := store.Populate(ctx, mount.Source)
	if p == nil || err != nil {
		return false, err
	}
	b.populations = append(b.populations, p)
	b.later(func() { p.Close() })
	return true, nil
}

// created is called when the agent has built the container: the volumes that
// it filled on the way have their content.
func (b *machine) created() error {
	var errs []error
	for _, p := range b.populations {
		errs = append(errs, p.Done())
	}
	b.populations = nil
	return errors.Join(errs...)
}

// connect makes the container's network.
func (m *Monitor) connect(ctx context.Context, b *machine, cfg *sandbox.Config, env *spec.Environment) error {
	if m.cfg.Network.Mode == "none" {
		cfg.Setup.Network = &agent.Network{}
		return nil
	}
	want := network.Config{
		DNS: m.cfg.Network.DNS, Search: m.cfg.Network.DNSSearch, DNSOptions: m.cfg.Network.DNSOption,
		AllowHostLoopback: m.cfg.Network.AllowHostLoopback,
		AllowLinkLocal:    m.cfg.Network.AllowLinkLocal,
	}
	var err error
	if want.Egress, err = m.egress(); err != nil {
		return err
	}
	if m.cfg.Network.MAC != "" {
		mac, err := net.ParseMAC(m.cfg.Network.MAC)
		if err != nil {
			return fmt.Errorf("network: %w", err)
		}
		want.MAC = mac
	}
	for _, h := range m.cfg.Network.AddHosts {
		host, err := network.ParseHost(h)
		if err != nil {
			return err
		}
		want.Hosts = append(want.Hosts, host)
	}
	if want.AllowHostLoopback {
		// The name that the flag promises; without an address it means the gateway.
		want.Hosts = append(want.Hosts, network.Host{Name: "host.docker.internal"})
	}
	ports := m.cfg.Network.Ports
	if m.copying {
		ports = nil // nobody in there answers
	}
	for _, p := range ports {
		want.Publish = append(want.Publish, network.PortMapping{HostIP: p.HostIP, HostPort: p.HostPort, GuestPort: p.ContainerPort, Proto: network.Proto(p.Protocol)})
	}
	stack, err := network.New(ctx, want)
	if err != nil {
		return err
	}
	b.later(func() { stack.Close() })
	for _, p := range stack.Ports() {
		b.ports = append(b.ports, container.Port{HostIP: p.HostIP, HostPort: p.HostPort, ContainerPort: p.GuestPort, Protocol: string(p.Proto)})
	}
	a := stack.Guest()
	cfg.Setup.Network = GuestNetwork(&a)
	cfg.MAC = a.MAC.String()
	cfg.Attach = stack.Serve
	b.address, b.gateway, b.mac = a.IPv4.Addr().String(), a.Gateway4.String(), a.MAC.String()
	env.Network = &a
	return nil
}

// egress are the rules for what the container connects to: the operator's, as they are now, and its user's.
func (m *Monitor) egress() ([]egress.Rules, error) {
	operator, err := policy.Load(m.places.Policy())
	if err != nil {
		return nil, err
	}
	asked, err := spec.Egress(m.cfg)
	if err != nil {
		return nil, err
	}
	return operator.EgressOf(asked), nil
}

// GuestNetwork is what the agent sets up of a network.
func GuestNetwork(a *network.Addresses) *agent.Network {
	n := &agent.Network{
		Device: nicDevice, Mac: a.MAC.String(), Mtu: uint32(a.MTU),
		Addresses: []string{a.IPv4.String()}, Gateways: []string{a.Gateway4.String()},
	}
	if a.IPv6.IsValid() {
		n.Addresses = append(n.Addresses, a.IPv6.String())
		n.Gateways = append(n.Gateways, a.Gateway6.String())
	}
	return n
}
