package monitor

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"manis/api/agent"
	"manis/audit"
	"manis/broker"
	"manis/container"
	"manis/container/spec"
	"manis/place"
	"manis/sandbox"
	"manis/trace"
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
func (m *Monitor) bootMeasured(ctx context.Context, b *machine, cfg sandbox.Config) error {
	cfg.Measured, cfg.BootTimeout, cfg.Attempts = true, measuredBoot, 1
	var err error
	if b.sandbox, err = sandbox.Start(ctx, cfg); err != nil {
		return err
	}
	b.boot = measuredOrigin
	m.mu.Lock()
	m.run.sandbox = b.sandbox // for the log, should it go no further
	m.mu.Unlock()
	if err := m.admit(ctx, b.sandbox); err != nil {
		m.keepBundle(ctx, m.run)
		return errors.Join(err, b.sandbox.Kill())
	}
	return nil
}

// admit hands the manifest over, and carries evidence to the broker and its answer back.
func (m *Monitor) admit(ctx context.Context, s *sandbox.Sandbox) (err error) {
	m.kept = 0
	m.evidence, err = Admit(ctx, s, m.cfg.Trust)
	return err
}

// Admit has a manifest enforced in a measured machine, and carries its evidence to the broker and the broker's answer back. The
// evidence is returned also with an error, as far as there is some.
func Admit(ctx context.Context, s *sandbox.Sandbox, t *container.Trust) (evidence []byte, err error) {
	ctx, span := trace.Start(ctx, "attest")
	defer span.End()
	if err := s.Admit(ctx, t.Manifest, t.Owner); err != nil {
		return nil, err
	}
	manifest, err := trust.Peek(t.Manifest)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, 32)
	rand.Read(nonce)
	if manifest.Broker == nil {
		return s.Attest(ctx, nonce)
	}
	url := t.Broker
	if url == "" {
		url = manifest.Broker.URL
	}
	client := broker.Client{URL: url}
	if nonce, err = client.Challenge(ctx); err != nil {
		return nil, err
	}
	if evidence, err = s.Attest(ctx, nonce); err != nil {
		return nil, err
	}
	answer, err := client.Release(ctx, evidence, t.Manifest)
	if err != nil {
		return evidence, err
	}
	return evidence, s.Release(ctx, answer)
}

// bundleTime bounds the fetching of a log.
const bundleTime = 10 * time.Second

// ReadBundle makes the audit bundle of a machine from what it tells of its log; with an error it ends where that came.
func ReadBundle(ctx context.Context, s *sandbox.Sandbox, t *container.Trust, evidence []byte) (bundle audit.Bundle, err error) {
	ctx, cancel := context.WithTimeout(ctx, bundleTime)
	defer cancel()
	bundle = audit.Bundle{Format: audit.BundleFormat, Envelope: t.Manifest, Evidence: evidence}
	size := 0
	for len(bundle.Entries) < audit.MaxEvents {
		some, err := s.Events(ctx, uint32(len(bundle.Entries)))
		if err != nil {
			return bundle, fmt.Errorf("read the machine's audit log: %w", err)
		}
		if len(some) == 0 {
			break
		}
		for _, e := range some {
			// A guest that lies is not to fill this host's memory or disk.
			if size += len(e); size > audit.MaxBundle/2 || !json.Valid(e) {
				return bundle, errors.New("read the machine's audit log: an event is not JSON, or there is too much of it")
			}
			bundle.Entries = append(bundle.Entries, e)
		}
	}
	return bundle, nil
}

// keepBundle writes the audit bundle of a confidential container as far as there is one. It is called by the round's goroutine.
func (m *Monitor) keepBundle(ctx context.Context, r *round) {
	if !m.confidential() || r.sandbox == nil || m.evidence == nil {
		return
	}
	bundle, err := ReadBundle(ctx, r.sandbox, m.cfg.Trust, m.evidence)
	if len(bundle.Entries) >= m.kept { // else the machine is gone, and what it has told before is worth more
		m.kept = len(bundle.Entries)
		err = errors.Join(err, WriteBundle(&bundle, filepath.Join(m.c.Dir(), BundleFile)))
		if path := m.cfg.Trust.Bundle; path != "" {
			err = errors.Join(err, WriteBundle(&bundle, path))
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "keep the audit bundle: %v\n", err)
	}
}

// WriteBundle replaces a file in one step.
func WriteBundle(bundle *audit.Bundle, path string) error {
	b, err := json.Marshal(bundle)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
