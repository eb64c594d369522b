package vmmtest

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"manis/vmm"
)

// template boots a VM with empty slots and freezes it, and returns its configuration and state.
func (s suite) template(t *testing.T, nic vmm.NIC) (vmm.Config, *os.File) {
	t.Helper()
	c := base(t)
	c.VCPUs = 2
	c.MaxMemoryBytes, c.MaxVCPUs = growMemory, growVCPUs
	c.MemoryFile = filepath.Join(t.TempDir(), "memory")
	memory, err := os.OpenFile(c.MemoryFile, os.O_RDWR|os.O_CREATE, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	if err := errors.Join(memory.Chmod(0o666), memory.Truncate(int64(c.MemoryBytes))); err != nil {
		t.Fatal(err)
	}
	// The jail's user must reach it.
	for dir := filepath.Dir(c.MemoryFile); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		os.Chmod(dir, 0o755)
	}
	c.Disks = []vmm.Disk{{Serial: "root", ReadOnly: true}, {Serial: "scratch"}}
	c.Shares = []vmm.Share{{Tag: "b"}}
	c.NIC = &nic
	v, err := s.driver.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Kill()
	select {
	case <-v.Listening():
	case <-v.Done():
		t.Fatalf("ended: %+v", v.Exit())
	case <-time.After(patience):
		t.Fatalf("the guest does not listen: %s", v.Console())
	}
	time.Sleep(200 * time.Millisecond)
	state, err := os.OpenFile(filepath.Join(t.TempDir(), "state"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { state.Close() })
	if err := v.Freeze(t.Context(), state); err != nil {
		t.Fatal(err)
	}
	if err := v.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(c.MemoryFile, 0o400); err != nil {
		t.Fatal(err)
	}
	return c, state
}

// freeze saves a VM and goes on with it twice, with other devices behind its slots.
func (s suite) freeze(t *testing.T) {
	c, state := s.template(t, vmm.NIC{MAC: "52:54:00:00:00:01"})
	before, err := os.ReadFile(c.MemoryFile)
	if err != nil {
		t.Fatal(err)
	}
	clone := func(content string) (vmm.VM, *Guest) {
		t.Helper()
		state, err := os.Open(state.Name())
		if err != nil {
			t.Fatal(err)
		}
		defer state.Close()
		c := c
		c.Frozen, c.MemoryFile, c.RunDir = &vmm.Frozen{Memory: c.MemoryFile, State: state}, "", t.TempDir()
		root, scratch := tempFile(t, 1<<20), tempFile(t, 1<<20)
		if _, err := root.WriteAt([]byte(content), 0); err != nil {
			t.Fatal(err)
		}
		if root, err = os.Open(root.Name()); err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		c.Disks = []vmm.Disk{{Serial: "root", ReadOnly: true, File: root}, {Serial: "scratch", File: scratch}}
		return Start(t, s.driver, c)
	}
	one, g1 := clone("first")
	two, g2 := clone("other")
	if a, b := g1.Ask(t, "head /dev/vda 5"), g2.Ask(t, "head /dev/vda 5"); a != "first" || b != "other" {
		t.Errorf("the clones' disks hold %q and %q", a, b)
	}
	g1.Ask(t, "write /x one")
	g2.Refused(t, "no such file", "cat /x")
	g2.Ask(t, "write /x two")
	if a, b := g1.Ask(t, "cat /x"), g2.Ask(t, "cat /x"); a != "one" || b != "two" {
		t.Errorf("the clones' files hold %q and %q", a, b)
	}
	if err := one.Pause(t.Context()); err != nil {
		t.Error(err)
	}
	if err := one.Resume(t.Context()); err != nil {
		t.Error(err)
	}
	if err := one.Freeze(t.Context(), state); !errors.Is(err, vmm.ErrConfig) {
		t.Errorf("freezing a clone: %v, want ErrConfig", err)
	}
	for _, v := range []vmm.VM{one, two} {
		if err := v.Kill(); err != nil {
			t.Error(err)
		}
	}
	if after, err := os.ReadFile(c.MemoryFile); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the clones have changed their template, or %v", err)
	}

	// A state that is none, or cut off, is an error that says so.
	short, err := os.OpenFile(filepath.Join(t.TempDir(), "short"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer short.Close()
	whole, err := os.ReadFile(state.Name())
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"empty": nil, "cut off": whole[:len(whole)/2], "noise": bytes.Repeat([]byte("noise"), 1000)} {
		if err := errors.Join(short.Truncate(0), os.WriteFile(short.Name(), b, 0o600)); err != nil {
			t.Fatal(err)
		}
		short.Seek(0, io.SeekStart)
		c := c
		c.Frozen, c.MemoryFile, c.RunDir = &vmm.Frozen{Memory: c.MemoryFile, State: short}, "", t.TempDir()
		v, err := s.driver.Start(t.Context(), c)
		if err == nil {
			v.Kill()
			t.Errorf("%s: a VM went on from it", name)
		} else if !errors.Is(err, vmm.ErrRejected) {
			t.Errorf("%s: %v, want ErrRejected", name, err)
		}
	}
}
