package monitor

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"manis/api/agent"
	"manis/container"
	"manis/container/spec"
	"manis/place"
	"manis/sandbox"
	"manis/trust"
	"manis/vmm"
)

// BundleFile is where in its directory a confidential container's audit bundle is kept.
const BundleFile = "audit.json"

// confidential reports whether the host's administrator is not trusted with the container: neither is this process
// then, which only carries what owner, broker and guest say to each other.
func (m *Monitor) confidential() bool { return m.cfg.Class == container.Confidential }

// logged reports whether the manifest says that the machine hands output over. Should it say otherwise than this
// believes, the machine refuses the container.
func (m *Monitor) logged() bool {
	manifest, err := trust.Peek(m.cfg.Trust.Manifest)
	return err == nil && manifest.Permits("logs")
}

// measuredOrigin is where confidential machines come from, see container.State.
const measuredOrigin = "cold (class confidential)"

// StartMeasured starts the machine that config describes as one of the class confidential: it boots by firmware that measures. Where it
// comes from is returned, too.
func StartMeasured(ctx context.Context, config sandbox.Config) (s *sandbox.Sandbox, boot string, err error) {
	if config.VM, err = measured(config.VM); err != nil {
		return nil, "", err
	}
	config.Measured, config.BootTimeout, config.Attempts = true, measuredBoot, 1
	s, err = sandbox.Start(ctx, config)
	return s, measuredOrigin, err
}

// measured makes a machine one that boots by firmware that measures.
func measured(vm vmm.Config) (vmm.Config, error) {
	guest, err := place.FindGuest()
	if err != nil {
		return vm, err
	}
	if vm.Kernel, vm.Initrd, err = guest.Measured(); err != nil {
		return vm, err
	}
	vm.Firmware, err = place.FindFirmware()
	return vm, err
}

// Measured is the machine of a confidential container, without its disks, and the kernel's command line that its
// firmware measures.
func Measured(ctx context.Context, places *place.Places, cfg *container.Config) (vmm.Config, string, error) {
	vm, driver, err := Machine(ctx, places, cfg)
	if err != nil {
		return vm, "", err
	}
	if vm, err = measured(vm); err != nil {
		return vm, "", err
	}
	cmdline, err := driver.Cmdline(vm)
	return vm, cmdline, err
}

// Request is what the agent of a confidential container's machine would be asked to create, without starting
// anything: what a manifest is made of.
func Request(ctx context.Context, places *place.Places, cfg *container.Config) (*agent.CreateContainerRequest, error) {
	// Like a copy's: no port is published.
	m, b := &Monitor{cfg: cfg, places: places, copying: true}, &machine{}
	defer b.release()
	env := spec.Environment{RootDisk: rootSerial, Filled: make(map[int]bool)}
	var unused sandbox.Config
	unused.Setup = &agent.SetupRequest{}
	if err := m.disks(ctx, b, &unused, &env); err != nil {
		return nil, err
	}
	if err := m.connect(ctx, b, &unused, &env); err != nil {
		return nil, err
	}
	r, err := spec.Build(cfg, env)
	if err != nil {
		return nil, err
	}
	r.Id = containerID
	return r, nil
}

// measuredBoot bounds the boot of a measured machine: firmware is slow where it is emulated.
const measuredBoot = 5 * time.Minute

// bootMeasured boots the machine, has the manifest enforced in it and its secrets released to it.
func (m *Monitor) bootMeasured(ctx context.Context, b *machine, cfg sandbox.Config) (err error) {
	if b.sandbox, b.boot, err = StartMeasured(ctx, cfg); err != nil {
		return err
	}
	m.mu.Lock()
	m.run.sandbox = b.sandbox // for the log, should it go no further
	m.mu.Unlock()
	files := []string{filepath.Join(m.c.Dir(), BundleFile)}
	if path := m.cfg.Trust.Bundle; path != "" {
		files = append(files, path)
	}
	m.record = NewRecord(b.sandbox, m.cfg.Trust, files...)
	if err := m.record.Admit(ctx); err != nil {
		m.record.Keep(ctx)
		return errors.Join(err, b.sandbox.Kill())
	}
	return nil
}

// keepBundle writes the audit bundle of a confidential container as far as there is one. It is called by the round's goroutine.
func (m *Monitor) keepBundle(ctx context.Context, r *round) {
	if m.record != nil && r.sandbox != nil {
		m.record.Keep(ctx)
	}
}
