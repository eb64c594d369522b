package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"manis/container"
	"manis/place"
	"manis/sandbox"
	"manis/template"
	"manis/trace"
	"manis/vmm"
	"manis/vmm/qemu"
)

// templateMAC is the hardware address that templates have; the agent gives each clone
// its own.
const templateMAC = "02:00:00:00:00:01"

// freezeWord tells a guest's kernel, and by it the agent, that it is going to be frozen:
// what every clone would do first, the agent does at once.
const freezeWord = "manis.freeze"

// Templates is the store of templates of this user, for monitors and front ends alike.
func Templates(places *place.Places, driver *qemu.Driver) *template.Store {
	return template.Open(filepath.Join(places.Cache, "template"), driver)
}

// TemplateOf is the machine whose template a machine like c goes on from: it has the
// devices that every template has, with those of c in their places and the others
// empty.
func TemplateOf(c vmm.Config) vmm.Config {
	disks := []vmm.Disk{{Serial: rootSerial, ReadOnly: true}, {Serial: scratchSerial}}
	for i := range disks {
		for _, d := range c.Disks {
			if d.Serial == disks[i].Serial {
				disks[i] = d
			}
		}
	}
	shares := []vmm.Share{{Tag: bindsTag}, {Tag: volumesTag, MapOwnership: true}}
	for i := range shares {
		for _, s := range c.Shares {
			if s.Tag == shares[i].Tag {
				shares[i] = s
			}
		}
	}
	c.Disks, c.Shares = disks, shares
	nic := &vmm.NIC{MAC: templateMAC}
	if c.NIC != nil {
		nic.Tap = c.NIC.Tap // what it can do is fixed when a template boots
	}
	c.NIC = nic
	c.Cmdline = append(c.Cmdline[:len(c.Cmdline):len(c.Cmdline)], freezeWord)
	return c
}

// Started is a machine that Start has made.
type Started struct {
	Sandbox *sandbox.Sandbox
	// Boot says where it came from, see container.State.
	Boot     string
	template *template.Template
}

// Release gives back what the machine goes on from. It comes after the end of the machine.
func (s *Started) Release() {
	if s.template != nil {
		s.template.Close()
	}
}

// Start makes the machine that config describes, which is of the size that cfg asks for: from a
// template, or where that cannot be by booting; the reason is in Boot and on standard error. Without
// an error the caller releases what it returns.
func Start(ctx context.Context, places *place.Places, cfg *container.Config, config sandbox.Config, driver *qemu.Driver) (*Started, error) {
	t, boot, err := templateFor(ctx, places, cfg, &config, driver)
	if err != nil {
		return nil, err
	}
	s := &Started{Boot: boot, template: t}
	if t == nil {
		s.Sandbox, err = sandbox.Start(ctx, config)
	} else {
		var exercised bool
		if s.Sandbox, exercised, err = startClone(ctx, config, t); exercised {
			s.Boot += ", exercised"
		}
	}
	if err != nil {
		s.Release()
		return nil, err
	}
	return s, nil
}

// templateFor finds the template of a machine and makes config one that goes on from it. There is
// none where the machine has to boot.
func templateFor(ctx context.Context, places *place.Places, cfg *container.Config, config *sandbox.Config, driver *qemu.Driver) (*template.Template, string, error) {
	if cfg.Boot == "cold" {
		return nil, "cold (asked for)", nil
	}
	ctx, span := trace.Start(ctx, "template")
	defer span.End()
	vm := TemplateOf(config.VM)
	t, err := Templates(places, driver).Get(ctx, vm, nil)
	if err != nil {
		if ctx.Err() != nil || cfg.Boot == "template" {
			return nil, "", err
		}
		fmt.Fprintf(os.Stderr, "booting instead of cloning a template: %v\n", err)
		return nil, fmt.Sprintf("cold (%v)", err), nil
	}
	if t.Saved() == nil && !t.Built {
		// The second start of a size: there may be more.
		exerciseLater(places, t, cfg, vm.NIC.Tap != nil)
	}
	config.VM = vm
	if config.MAC == "" {
		config.MAC = templateMAC
	}
	return t, "template " + t.Info.Key, nil
}

// startClone starts a machine that goes on from a template: from the saved one, when there is one that can be
// continued, else from the frozen one. exercised says which it was.
func startClone(ctx context.Context, cfg sandbox.Config, t *template.Template) (s *sandbox.Sandbox, exercised bool, err error) {
	var rejected error
	if cfg.VM.Saved = t.Saved(); cfg.VM.Saved != nil {
		if s, err = sandbox.Start(ctx, cfg); err == nil || !errors.Is(err, vmm.ErrRejected) {
			return s, true, err
		}
		rejected = err
		fmt.Fprintf(os.Stderr, "cloning the template instead of continuing a saved machine: %v\n", rejected)
	}
	cfg.VM.Saved, cfg.VM.Frozen = nil, t.Frozen()
	// Where nothing can be started it is not the saved machine's fault.
	if s, err = sandbox.Start(ctx, cfg); err == nil && rejected != nil {
		t.Distrust(rejected)
	}
	return s, false, err
}
