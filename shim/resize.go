package shim

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/containerd/containerd/api/types/task"
	"github.com/opencontainers/runtime-spec/specs-go"

	declared "manis/container"
	"manis/container/spec"
	"manis/pod"
)

// share is what a container is limited to of its pod's machine; 0: nothing.
type share struct {
	memoryBytes uint64
	milliCPUs   uint64
}

// shareOf reads limits. What they do not name is as before.
func shareOf(r *specs.LinuxResources, before share) share {
	if r == nil {
		return before
	}
	if m := r.Memory; m != nil && m.Limit != nil {
		before.memoryBytes = uint64(max(0, *m.Limit)) // -1 is none
	}
	if c := r.CPU; c != nil && c.Quota != nil {
		before.milliCPUs = 0
		period := uint64(100000) // the kernel's own
		if c.Period != nil && *c.Period > 0 {
			period = *c.Period
		}
		if *c.Quota > 0 {
			before.milliCPUs = uint64(*c.Quota) * 1000 / period
		}
	}
	return before
}

// growTime is how long a machine may take to become larger.
const growTime = 30 * time.Second

// leastMemory is a limit, bytes, for which there is a machine in any case: a container may have less of it.
const leastMemory = 16 << 20

// sizeFor is the machine that the pod's containers need together, with now as what c is limited to. limited says that all of them
// have a limit of memory: then a machine that was larger may become as small again.
func (s *service) sizeFor(c *container, now share) (size pod.Size, limited bool, err error) {
	all, limited := now, now.memoryBytes > 0
	s.mu.Lock()
	for _, other := range s.containers {
		if status, _ := other.init.state(); other != c && !other.pause && status != task.Status_STOPPED {
			all.memoryBytes += other.share.memoryBytes
			all.milliCPUs += other.share.milliCPUs
			limited = limited && other.share.memoryBytes > 0
		}
	}
	s.mu.Unlock()
	size.VCPUs = int(min(all.milliCPUs+999, 1<<30) / 1000)
	if all.memoryBytes > 0 {
		size.MemoryBytes, _, err = spec.Machine(&declared.Config{Resources: declared.Resources{MemoryBytes: max(all.memoryBytes, leastMemory)}})
	}
	return size, limited, err
}

// makeRoom makes the machine large enough for limits of a container that grow. Those that do not are as good as before.
func (s *service) makeRoom(ctx context.Context, g *ground, c *container, before, now share) error {
	size, _, err := s.sizeFor(c, now)
	if err != nil {
		return err
	}
	is := g.pod.Size()
	if now.memoryBytes <= before.memoryBytes {
		size.MemoryBytes = 0
	}
	if now.milliCPUs <= before.milliCPUs {
		size.VCPUs = 0
	}
	if size.MemoryBytes <= is.MemoryBytes && size.VCPUs <= is.VCPUs {
		return nil
	}
	size = pod.Size{MemoryBytes: max(size.MemoryBytes, is.MemoryBytes), VCPUs: max(size.VCPUs, is.VCPUs)}
	err = within(ctx, growTime, func(ctx context.Context) error { return g.pod.Grow(ctx, size) })
	if err != nil {
		return fmt.Errorf("resize container %s: the pod's virtual machine, which has %d MiB of memory and %d processors, does not become one of %d MiB and %d: %w",
			c.id, is.MemoryBytes>>20, is.VCPUs, size.MemoryBytes>>20, size.VCPUs, err)
	}
	return nil
}

// giveRoom takes from the machine what no limit of its containers, which have become smaller, needs any more. That it cannot be had is
// no reason to refuse them.
func (s *service) giveRoom(ctx context.Context, g *ground, c *container, now share) {
	size, limited, err := s.sizeFor(c, now)
	is := g.pod.Size()
	if !limited {
		size.MemoryBytes = is.MemoryBytes
	}
	if err != nil || size.MemoryBytes >= is.MemoryBytes && size.VCPUs >= is.VCPUs {
		return
	}
	size = pod.Size{MemoryBytes: min(size.MemoryBytes, is.MemoryBytes), VCPUs: min(size.VCPUs, is.VCPUs)}
	if err := within(ctx, answerTime, func(ctx context.Context) error { return g.pod.Grow(ctx, size) }); err != nil {
		fmt.Fprintf(os.Stderr, "make the pod's virtual machine smaller: %s\n", pod.Text(err))
	}
}
