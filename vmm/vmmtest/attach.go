package vmmtest

import (
	"context"
	"errors"
	"testing"

	"manis/vmm"
)

// attach gives a VM disks while it runs, and takes them away.
func (s suite) attach(t *testing.T) {
	c, state := s.template(t, vmm.NIC{MAC: "52:54:00:00:00:01"})
	c.Frozen, c.MemoryFile, c.RunDir = &vmm.Frozen{Memory: c.MemoryFile, State: state}, "", t.TempDir()
	v, _ := Start(t, s.driver, c)
	c.Saved, c.Frozen, c.RunDir = s.saveVM(t, v), nil, t.TempDir()
	v, g := Start(t, s.driver, c)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	f := tempFile(t, 1<<20)
	if _, err := f.WriteAt([]byte("further"), 0); err != nil {
		t.Fatal(err)
	}
	before := g.Ask(t, "ls /sys/block")
	for range 2 {
		if err := v.Attach(ctx, vmm.Disk{Serial: "more", File: f}); err != nil {
			t.Fatal(err)
		}
		for {
			if got, err := g.Try("head /dev/vdc 7"); err == nil {
				if got != "further" {
					t.Errorf("the disk holds %q", got)
				}
				break
			} else if ctx.Err() != nil {
				t.Fatal("the guest does not see it:", err)
			}
		}
		for name, d := range map[string]vmm.Disk{
			"no file": {Serial: "other"}, "the same serial": {Serial: "more", File: f}, "a slot's serial": {Serial: "root", File: f},
			"a serial with a comma": {Serial: "a,b", File: f},
		} {
			if err := v.Attach(ctx, d); !errors.Is(err, vmm.ErrConfig) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := v.Save(ctx, nil, nil); !errors.Is(err, vmm.ErrConfig) {
			t.Errorf("saved with a disk that was plugged in: %v", err)
		}
		g.Ask(t, "put /dev/vdc written")
		if err := v.Detach(ctx, "more"); err != nil {
			t.Fatal(err)
		}
		if after := g.Ask(t, "ls /sys/block"); after != before {
			t.Errorf("after it was taken away: %s, before: %s", after, before)
		}
		b := make([]byte, 7)
		if _, err := f.ReadAt(b, 0); err != nil || string(b) != "written" {
			t.Errorf("the file holds %q, %v", b, err)
		}
		if _, err := f.WriteAt([]byte("further"), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Detach(ctx, "more"); !errors.Is(err, vmm.ErrConfig) {
		t.Errorf("a disk that there is not: %v", err)
	}
}
