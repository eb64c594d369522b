package vmmtest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"manis/vmm"
)

// plug gives a VM network interfaces while it runs, and takes them away.
func (s suite) plug(t *testing.T) {
	t.Run("booted", func(t *testing.T) {
		c := base(t)
		c.NIC = &vmm.NIC{MAC: "52:54:00:00:00:01"}
		v, g := Start(t, s.driver, c)
		s.plugged(t, v, g)
		for n := range vmm.MaxNICs - 1 {
			if err := v.Plug(t.Context(), vmm.NIC{MAC: "52:54:00:00:01:0" + string("0123456789abcdef"[n]), Tap: newTap(t).file}); err != nil {
				t.Fatalf("interface %d: %v", n+1, err)
			}
		}
		for name, n := range map[string]vmm.NIC{
			"one more":              {MAC: "52:54:00:00:02:00", Tap: newTap(t).file},
			"the same address":      {MAC: "52:54:00:00:01:00", Tap: newTap(t).file},
			"no tap":                {MAC: "52:54:00:00:02:00"},
			"not a unicast address": {MAC: "53:54:00:00:02:00", Tap: newTap(t).file},
		} {
			if err := v.Plug(t.Context(), n); !errors.Is(err, vmm.ErrConfig) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := v.Unplug(t.Context(), "52:54:00:00:02:00"); !errors.Is(err, vmm.ErrConfig) {
			t.Errorf("an interface that there is not: %v", err)
		}
	})
	t.Run("saved", func(t *testing.T) {
		c, state := s.template(t, vmm.NIC{MAC: "52:54:00:00:00:01"})
		c.Frozen, c.MemoryFile, c.RunDir = &vmm.Frozen{Memory: c.MemoryFile, State: state}, "", t.TempDir()
		v, _ := Start(t, s.driver, c)
		c.Saved, c.Frozen, c.RunDir = s.saveVM(t, v), nil, t.TempDir()
		if err := v.Kill(); err != nil {
			t.Fatal(err)
		}
		v, g := Start(t, s.driver, c)
		s.plugged(t, v, g)
		if err := v.Plug(t.Context(), vmm.NIC{MAC: "52:54:00:00:00:02", Tap: newTap(t).file}); err != nil {
			t.Fatal(err)
		}
		if _, err := v.Save(t.Context(), nil, nil); !errors.Is(err, vmm.ErrConfig) {
			t.Errorf("saved with an interface that was plugged in: %v", err)
		}
		g.Ask(t, "echo it goes on")
	})
}

// plugged plugs one interface, uses it and takes it away, twice.
func (s suite) plugged(t *testing.T, v vmm.VM, g *Guest) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	const mac = "52:54:00:00:00:AA"
	for range 2 {
		p := newTap(t)
		before := strings.Fields(g.Ask(t, "ls /sys/class/net"))
		begun := time.Now()
		if err := v.Plug(ctx, vmm.NIC{MAC: mac, Tap: p.file}); err != nil {
			t.Fatal(err)
		}
		var device string
		for device == "" {
			if ctx.Err() != nil {
				t.Fatal("the guest does not see it")
			}
			for _, name := range strings.Fields(g.Ask(t, "ls /sys/class/net")) {
				if !slices.Contains(before, name) {
					device = name
				}
			}
		}
		t.Logf("it is there after %v", time.Since(begun))
		if got := strings.TrimSpace(g.Ask(t, "cat /sys/class/net/%s/address", device)); !strings.EqualFold(got, mac) {
			t.Fatalf("%q has the address %q", device, got)
		}
		p.receives(t, g, device, "plugged")
		begun = time.Now()
		if err := v.Unplug(ctx, mac); err != nil {
			t.Fatal(err)
		}
		t.Logf("it is gone after %v", time.Since(begun))
		if after := strings.Fields(g.Ask(t, "ls /sys/class/net")); !slices.Equal(after, before) {
			t.Errorf("after it was taken away: %v, before: %v", after, before)
		}
	}
}
