package vmmtest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"manis/vmm"
)

// The sizes of a VM that grows.
const (
	growMemory = 512 << 20
	growVCPUs  = 3
)

// grow makes VMs larger while they run.
func (s suite) grow(t *testing.T) {
	t.Run("booted", func(t *testing.T) {
		c := base(t)
		c.MaxMemoryBytes, c.MaxVCPUs = growMemory, growVCPUs
		v, g := Start(t, s.driver, c)
		for name, size := range map[string]struct {
			memory uint64
			vcpus  int
		}{"memory": {growMemory + 1<<20, 1}, "processors": {0, growVCPUs + 1}} {
			if err := v.Grow(t.Context(), size.memory, size.vcpus); !errors.Is(err, vmm.ErrConfig) {
				t.Errorf("beyond its bound in %s: %v", name, err)
			}
		}
		s.grows(t, v, g)
	})
	t.Run("saved", func(t *testing.T) {
		c, state := s.template(t, vmm.NIC{MAC: "52:54:00:00:00:01"})
		c.Frozen, c.MemoryFile, c.RunDir = &vmm.Frozen{Memory: c.MemoryFile, State: state}, "", t.TempDir()
		v, _ := Start(t, s.driver, c)
		saved := s.saveVM(t, v)
		// One that was frozen grows, and one that was saved.
		c.RunDir = t.TempDir()
		v, g := Start(t, s.driver, c)
		s.grows(t, v, g)
		if _, err := v.Save(t.Context(), nil, nil); !errors.Is(err, vmm.ErrConfig) {
			t.Errorf("saved when it had grown: %v", err)
		}
		c.Saved, c.Frozen, c.RunDir = saved, nil, t.TempDir()
		v, g = Start(t, s.driver, c)
		s.grows(t, v, g)
	})
	t.Run("fixed", func(t *testing.T) {
		v, _ := Start(t, s.driver, base(t))
		if err := v.Grow(t.Context(), growMemory, 1); !errors.Is(err, vmm.ErrConfig) {
			t.Errorf("memory of one that keeps its size: %v", err)
		}
		if err := v.Grow(t.Context(), 64<<20, 1); err != nil {
			t.Errorf("what it has already: %v", err)
		}
	})
}

// grows has one VM grow in two steps, and shrink.
func (s suite) grows(t *testing.T, v vmm.VM, g *Guest) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	begins := v.Info().VCPUs
	begun := time.Now()
	for _, size := range []uint64{256 << 20, growMemory} {
		before, more := g.memory(t), size-v.Info().MemoryBytes
		if err := v.Grow(ctx, size, 1); err != nil {
			t.Fatal(err)
		}
		t.Logf("%d MiB after %v", size>>20, time.Since(begun))
		// It has taken it, and puts it into use.
		for g.memory(t)-before < int64(more) {
			if ctx.Err() != nil {
				t.Fatalf("grown to %d MiB, it uses %d more", size>>20, (g.memory(t)-before)>>20)
			}
		}
		t.Logf("in use after %v", time.Since(begun))
	}
	begun = time.Now()
	if err := v.Grow(ctx, growMemory, growVCPUs); err != nil {
		t.Fatal(err)
	}
	for n := begins; n < growVCPUs; n++ {
		name := fmt.Sprintf("cpu%d", n)
		path := "/sys/devices/system/cpu/" + name + "/online"
		for {
			if _, err := g.Try("write %s 1", path); err == nil {
				break
			} else if ctx.Err() != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		t.Logf("%s in use after %v", name, time.Since(begun))
	}
	if got := strings.TrimSpace(g.Ask(t, "cat /sys/devices/system/cpu/online")); got != "0-2" {
		t.Errorf("it uses the processors %q", got)
	}
	if i := v.Info(); i.MemoryBytes != growMemory || i.VCPUs != growVCPUs {
		t.Errorf("it says that it has %d MiB and %d processors", i.MemoryBytes>>20, i.VCPUs)
	}
	if err := v.Grow(ctx, 0, 0); err != nil {
		t.Fatal(err)
	}
	if i := v.Info(); i.MemoryBytes != 128<<20 || i.VCPUs != growVCPUs {
		t.Errorf("shrunk, it says that it has %d MiB and %d processors", i.MemoryBytes>>20, i.VCPUs)
	}
	if err := v.Grow(ctx, growMemory, 0); err != nil {
		t.Errorf("grown again: %v", err)
	}
}

// memory is how much of it the guest's kernel has, bytes.
func (g *Guest) memory(t testing.TB) int64 {
	t.Helper()
	text := g.Ask(t, "cat /proc/meminfo")
	var kib int64
	if _, err := fmt.Sscanf(text, "MemTotal: %d kB", &kib); err != nil {
		t.Fatalf("%v in %.80q", err, text)
	}
	return kib << 10
}
