package qemu

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"manis/vmm"
)

// plugBus is the bridge that further network interfaces are plugged into while the guest runs: QEMU does not
// plug anything into q35's root. It has 31 slots, and its guest hears of them by ACPI.
const plugBus = "plug"

// card is a network interface that was plugged in.
type card struct {
	id string // of the device; what carries its frames has that of carrier
	// gone is closed when the guest has let go of it.
	gone chan struct{}
}

func (c *card) carrier() string { return "of-" + c.id }

// Plug implements vmm.VM.
func (v *machine) Plug(ctx context.Context, n vmm.NIC) (err error) {
	n.MAC = strings.ToLower(n.MAC)
	if err := n.Check(); err != nil {
		return fmt.Errorf("%w: %w", vmm.ErrConfig, err)
	}
	if n.Tap == nil {
		return fmt.Errorf("%w: only a tap device can be behind a network interface that is plugged in", vmm.ErrConfig)
	}
	v.mu.Lock()
	present := len(v.cards)
	if v.config.NIC != nil {
		present++
	}
	v.plugged++
	c := &card{id: fmt.Sprintf("card%d", v.plugged), gone: make(chan struct{})}
	switch {
	case v.cards[n.MAC] != nil:
		err = fmt.Errorf("%w: the machine has a network interface %s already", vmm.ErrConfig, n.MAC)
	case present >= vmm.MaxNICs:
		err = fmt.Errorf("%w: the machine has %d network interfaces, at most %d", vmm.ErrConfig, present, vmm.MaxNICs)
	default:
		if v.cards == nil {
			v.cards = map[string]*card{}
		}
		v.cards[n.MAC] = c
	}
	v.mu.Unlock()
	if err != nil {
		return err
	}
	var undo []func()
	defer func() {
		if err == nil {
			return
		}
		for i := len(undo) - 1; i >= 0; i-- {
			undo[i]()
		}
		v.mu.Lock()
		delete(v.cards, n.MAC)
		v.mu.Unlock()
	}()
	after := context.WithoutCancel(ctx)
	if err := v.monitor.pass(ctx, "getfd", map[string]any{"fdname": c.carrier()}, n.Tap); err != nil {
		return err
	}
	undo = append(undo, func() { v.execute(after, "closefd", map[string]any{"fdname": c.carrier()}, nil) })
	if err := v.execute(ctx, "netdev_add", map[string]any{"type": "tap", "id": c.carrier(), "fd": c.carrier(), "vhost": false}, nil); err != nil {
		return err
	}
	undo[0] = func() { v.execute(after, "netdev_del", map[string]any{"id": c.carrier()}, nil) }
	return v.execute(ctx, "device_add", map[string]any{
		"driver": "virtio-net-pci", "id": c.id, "bus": plugBus, "netdev": c.carrier(), "mac": n.MAC,
		"romfile": "", "disable-legacy": "on", "guest_announce": false,
	}, nil)
}

// Unplug implements vmm.VM. What carries its frames goes at once; the device when the guest lets go of it.
func (v *machine) Unplug(ctx context.Context, mac string) error {
	v.mu.Lock()
	c := v.cards[strings.ToLower(mac)]
	v.mu.Unlock()
	if c == nil {
		return fmt.Errorf("%w: no network interface %s was plugged in", vmm.ErrConfig, mac)
	}
	err := v.execute(ctx, "netdev_del", map[string]any{"id": c.carrier()}, nil)
	if err := errors.Join(err, v.execute(ctx, "device_del", map[string]any{"id": c.id}, nil)); err != nil {
		return err
	}
	select {
	case <-c.gone:
		return nil
	case <-v.done:
		return vmm.ErrEnded
	case <-ctx.Done():
		return fmt.Errorf("wait for the guest to let go of network interface %s: %w", mac, ctx.Err())
	}
}

// deleted is told that a device is no more; v.mu is held.
func (v *machine) deleted(id string) {
	for mac, c := range v.cards {
		if c.id == id {
			delete(v.cards, mac)
			close(c.gone)
		}
	}
	for _, a := range v.attached {
		if a.id == id {
			select {
			case <-a.gone:
			default:
				close(a.gone)
			}
		}
	}
}
