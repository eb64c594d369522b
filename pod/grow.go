package pod

import (
	"cmp"
	"context"
	"fmt"

	"manis/api/agent"
)

// Size is a machine's.
type Size struct {
	MemoryBytes uint64
	VCPUs       int
}

// Grow makes the pod's machine one of this size, within what it had at its start and what it may become; sizes beyond
// are these. What is larger is in use when it returns. What is smaller is taken out of use: processors at once, memory as
// far as the guest can do without, and in its own time.
func (p *Pod) Grow(ctx context.Context, to Size) error {
	p.growing.Lock()
	defer p.growing.Unlock()
	p.mu.Lock()
	s, least, most := p.sandbox, p.least, p.most
	p.mu.Unlock()
	if s == nil {
		return fmt.Errorf("%w: the pod has no machine yet", ErrState)
	}
	to = Size{max(least.MemoryBytes, min(to.MemoryBytes, most.MemoryBytes)), max(least.VCPUs, min(to.VCPUs, most.VCPUs))}
	if err := s.VM().Grow(ctx, to.MemoryBytes, to.VCPUs); err != nil {
		return err
	}
	if err := s.Grow(ctx, &agent.GrowRequest{MemoryBytes: to.MemoryBytes - least.MemoryBytes, Vcpus: uint32(to.VCPUs)}); err != nil {
		return err
	}
	p.mu.Lock()
	p.used = to.VCPUs
	p.mu.Unlock()
	return nil
}

// Size is that of the machine now, or what it was asked to become, with the processors that are in use; the zero Size where there is
// no machine yet.
func (p *Pod) Size() Size {
	info := p.Info()
	if info == nil {
		return Size{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return Size{info.MemoryBytes, cmp.Or(p.used, info.VCPUs)}
}
