package qemu

import (
	"context"
	"errors"
	"fmt"
	"time"

	"manis/vmm"
)

// growth names the device by which a machine has more memory than at its start, and its memory.
const growth = "growth"

// memoryBlock is the unit of that device, bytes: a huge page.
const memoryBlock = 2 << 20

// lookAgain is the pause between two looks at how much of the memory the guest has taken. QEMU tells changes at
// most once a second.
const lookAgain = 5 * time.Millisecond

// grown is what a machine has beyond its size at the start.
type grown struct {
	turn chan struct{} // holds one token: the right to change it
	// device says that the memory's is there. added is how much of it the guest was to have, bytes, and vcpus how
	// many processors it may use; 0: as many as at the start.
	device bool
	added  uint64
	vcpus  int
}

// Grow implements vmm.VM. Memory is that of a virtio-mem device, which is plugged in with the first of it and large enough for
// all that may follow: the guest takes from it block by block. Its memory is a file without a name and costs nothing
// as long as the guest has not touched it. The processors are there from the start.
func (v *machine) Grow(ctx context.Context, memoryBytes uint64, vcpus int) error {
	c := &v.config
	switch {
	case memoryBytes > max(c.MaxMemoryBytes, c.MemoryBytes):
		return fmt.Errorf("%w: the machine can have %d MiB of memory, not %d", vmm.ErrConfig, max(c.MaxMemoryBytes, c.MemoryBytes)>>20, memoryBytes>>20)
	case vcpus > max(c.MaxVCPUs, c.VCPUs, 1):
		return fmt.Errorf("%w: the machine can have %d processors, not %d", vmm.ErrConfig, max(c.MaxVCPUs, c.VCPUs, 1), vcpus)
	}
	select {
	case <-v.grown.turn:
		defer func() { v.grown.turn <- struct{}{} }()
	case <-ctx.Done():
		return ctx.Err()
	}
	v.mu.Lock()
	v.grown.vcpus = max(vcpus, v.vcpus())
	v.mu.Unlock()
	var wanted uint64
	if memoryBytes > c.MemoryBytes {
		wanted = (memoryBytes - c.MemoryBytes + memoryBlock - 1) / memoryBlock * memoryBlock
	}
	return v.addMemory(ctx, wanted)
}

// addMemory makes wanted bytes what the guest has beyond its size at the start.
func (v *machine) addMemory(ctx context.Context, wanted uint64) error {
	v.mu.Lock()
	before, device := v.grown.added, v.grown.device
	v.mu.Unlock()
	if wanted == before {
		return nil
	}
	if !device {
		if err := v.plugMemory(ctx); err != nil {
			return err
		}
	}
	if err := v.requestMemory(ctx, wanted); err != nil || wanted < before {
		return err
	}
	err := v.awaitMemory(ctx, wanted)
	if err != nil && !errors.Is(err, vmm.ErrEnded) {
		// What it has taken by now it gives back, as far as it does not use it.
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), withdrawTime)
		defer cancel()
		err = errors.Join(err, v.requestMemory(after, before))
	}
	return err
}

// withdrawTime bounds the withdrawal of a request for memory, which asks QEMU alone.
const withdrawTime = time.Second

// plugMemory plugs the device in, with nothing of it for the guest.
func (v *machine) plugMemory(ctx context.Context) error {
	size := (v.config.MaxMemoryBytes - v.config.MemoryBytes) / memoryBlock * memoryBlock
	if err := v.execute(ctx, "object-add", map[string]any{"qom-type": "memory-backend-memfd", "id": growth, "size": size, "share": true}, nil); err != nil {
		return err
	}
	err := v.execute(ctx, "device_add", map[string]any{
		"driver": "virtio-mem-pci", "id": growth, "bus": plugBus, "memdev": growth, "block-size": memoryBlock, "requested-size": 0,
	}, nil)
	if err != nil {
		return errors.Join(err, v.execute(context.WithoutCancel(ctx), "object-del", map[string]any{"id": growth}, nil))
	}
	v.mu.Lock()
	v.grown.device = true
	v.mu.Unlock()
	return nil
}

// property is one of the memory's device.
func property(name string) map[string]any {
	return map[string]any{"path": "/machine/peripheral/" + growth, "property": name}
}

func (v *machine) requestMemory(ctx context.Context, bytes uint64) error {
	request := property("requested-size")
	request["value"] = bytes
	if err := v.execute(ctx, "qom-set", request, nil); err != nil {
		return err
	}
	v.mu.Lock()
	v.grown.added = bytes
	v.mu.Unlock()
	return nil
}

// awaitMemory waits until the guest has taken so much.
func (v *machine) awaitMemory(ctx context.Context, bytes uint64) error {
	for {
		var taken uint64
		if err := v.execute(ctx, "qom-get", property("size"), &taken); err != nil {
			return err
		}
		if taken >= bytes {
			return nil
		}
		select {
		case <-time.After(lookAgain):
		case <-v.done:
			return vmm.ErrEnded
		case <-ctx.Done():
			return fmt.Errorf("the guest has taken %d of %d MiB of further memory: %w", taken>>20, bytes>>20, ctx.Err())
		}
	}
}

// vcpus is how many processors the guest may use; v.mu is held.
func (v *machine) vcpus() int { return max(v.grown.vcpus, v.config.VCPUs, 1) }
