package monitor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

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

// Templates is the store of templates of this user, for monitors and front ends alike.
func Templates(places *place.Places, driver *qemu.Driver) *template.Store {
	return template.Open(filepath.Join(places.Cache, "template"), driver)
}

// template makes the machine go on from a template instead of booting. Where that cannot be it
// boots, and the reason stands in the monitor's log.
func (m *Monitor) template(ctx context.Context, b *machine, cfg *sandbox.Config, driver *qemu.Driver) error {
	if os.Getenv("MANIS_BOOT") == "cold" {
		return nil
	}
	ctx, span := trace.Start(ctx, "template")
	defer span.End()
	vm := slots(cfg.VM)
	t, err := Templates(m.places, driver).Get(ctx, vm, nil)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "booting instead of cloning a template: %v\n", err)
		return nil
	}
	b.later(t.Close)
	vm.Frozen = t.Frozen()
	cfg.VM = vm
	if cfg.MAC == "" {
		cfg.MAC = templateMAC
	}
	return nil
}

// slots gives a machine the devices that every template has, with those of c in their
// places and the others empty.
func slots(c vmm.Config) vmm.Config {
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
	if c.NIC == nil {
		c.NIC = &vmm.NIC{MAC: templateMAC}
	}
	return c
}
