package qemu

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"manis/vmm"
)

// attached is a disk that was plugged in.
type attached struct {
	id  string // of the device and of its block node
	set int    // of its descriptor
	// gone is closed when the guest has let go of it.
	gone chan struct{}
}

// firstSet is the first set of descriptors of disks that are plugged in: those of slots have smaller numbers.
const firstSet = 1 << 20

// Attach implements vmm.VM.
func (v *machine) Attach(ctx context.Context, d vmm.Disk) (err error) {
	check := v.config
	check.Disks = append(slices.Clone(v.config.Disks), d)
	if d.File == nil {
		return fmt.Errorf("%w: a disk that is plugged in needs a file", vmm.ErrConfig)
	}
	v.mu.Lock()
	for serial := range v.attached {
		check.Disks = append(check.Disks, vmm.Disk{Serial: serial})
	}
	if err = check.Check(); err != nil {
		v.mu.Unlock()
		return err
	}
	v.attaches++
	a := &attached{id: fmt.Sprintf("further%d", v.attaches), set: firstSet + v.attaches, gone: make(chan struct{})}
	if v.attached == nil {
		v.attached = map[string]*attached{}
	}
	v.attached[d.Serial] = a
	v.mu.Unlock()
	after := context.WithoutCancel(ctx)
	var undo []func()
	defer func() {
		if err == nil {
			return
		}
		for _, f := range slices.Backward(undo) {
			f()
		}
		v.mu.Lock()
		delete(v.attached, d.Serial)
		v.mu.Unlock()
	}()
	node, err := fileNode(a.id, a.set, d)
	if err != nil {
		return err
	}
	if err := v.monitor.pass(ctx, "add-fd", map[string]any{"fdset-id": a.set}, d.File); err != nil {
		return err
	}
	undo = append(undo, func() { v.execute(after, "remove-fd", map[string]any{"fdset-id": a.set}, nil) })
	if err := v.execute(ctx, "blockdev-add", node, nil); err != nil {
		return err
	}
	undo = append(undo, func() { v.execute(after, "blockdev-del", map[string]any{"node-name": a.id}, nil) })
	return v.execute(ctx, "device_add", map[string]any{
		"driver": "virtio-blk-pci", "id": a.id, "bus": plugBus, "drive": a.id, "serial": d.Serial,
		"write-cache": "on", "rerror": "report", "werror": "report", "disable-legacy": "on",
	}, nil)
}

// Detach implements vmm.VM.
func (v *machine) Detach(ctx context.Context, serial string) error {
	v.mu.Lock()
	a := v.attached[serial]
	v.mu.Unlock()
	if a == nil {
		return fmt.Errorf("%w: no disk %s was plugged in", vmm.ErrConfig, serial)
	}
	if err := v.execute(ctx, "device_del", map[string]any{"id": a.id}, nil); err != nil {
		if errors.Is(err, vmm.ErrEnded) {
			return nil // it has taken everything with it
		}
		return err
	}
	select {
	case <-a.gone:
	case <-v.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the guest to let go of disk %s: %w", serial, ctx.Err())
	}
	err := errors.Join(
		v.execute(ctx, "blockdev-del", map[string]any{"node-name": a.id}, nil),
		v.execute(ctx, "remove-fd", map[string]any{"fdset-id": a.set}, nil))
	v.mu.Lock()
	delete(v.attached, serial)
	v.mu.Unlock()
	return err
}
