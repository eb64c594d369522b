package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"manis/vmm"
)

// attached is a disk that was plugged in.
type attached struct {
	id   string // of the device and of its block node
	sets []int  // of its descriptors
	// gone is closed when the guest has let go of it.
	gone chan struct{}
}

// firstSet is the first set of descriptors of disks that are plugged in: those of slots have smaller numbers.
const firstSet = 1 << 20

// Attach implements vmm.VM.
func (v *machine) Attach(ctx context.Context, d vmm.Disk) (err error) {
	check := v.config
	check.Disks = append(slices.Clone(v.config.Disks), d)
	if (d.File == nil) == (len(d.Parts) == 0) || len(d.Parts) > 0 && !d.ReadOnly {
		return fmt.Errorf("%w: a disk that is plugged in needs a file, or parts that are only read", vmm.ErrConfig)
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
	a := &attached{id: fmt.Sprintf("further%d", v.attaches), gone: make(chan struct{})}
	for range len(d.Parts) + 1 {
		v.sets++
		a.sets = append(a.sets, firstSet+v.sets)
	}
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
	files := []*os.File{d.File}
	var node map[string]any
	if len(d.Parts) == 0 {
		node, err = fileNode(a.id, a.sets[0], d)
	} else {
		var description []byte
		if description, err = describeParts(d.Parts, a.sets[1:]); err != nil {
			return fmt.Errorf("disk %s: %w", d.Serial, err)
		}
		files[0], err = memoryFile(d.Serial, description)
		if err == nil {
			defer files[0].Close()
			files = append(files, d.Parts...)
			node = partsNode(a.id, a.sets)
		}
	}
	if err != nil {
		return err
	}
	for i, f := range files {
		remove, err := v.passTo(ctx, a.sets[i], f)
		if err != nil {
			return err
		}
		undo = append(undo, remove)
	}
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
	err := v.execute(ctx, "blockdev-del", map[string]any{"node-name": a.id}, nil)
	for _, set := range a.sets {
		err = errors.Join(err, v.execute(ctx, "remove-fd", map[string]any{"fdset-id": set}, nil))
	}
	v.mu.Lock()
	delete(v.attached, serial)
	v.mu.Unlock()
	return err
}
