package template

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"manis/vmm"
	"manis/vmm/qemu"
	"manis/vmm/vmmtest"
)

func TestMain(m *testing.M) { os.Exit(vmmtest.Main(m)) }

// store returns an empty store and a configuration of its machines.
func store(t *testing.T) (*Store, vmm.Config) {
	t.Helper()
	driver := qemu.New("")
	if err := driver.Prepare(); errors.Is(err, vmm.ErrNoMonitor) {
		t.Skip(err)
	}
	c := vmm.Config{Kernel: vmmtest.Kernel(t), Initrd: vmmtest.Initrd(t), MemoryBytes: 128 << 20, Accel: vmm.AccelTCG,
		Disks: []vmm.Disk{{Serial: "root", ReadOnly: true}}}
	return Open(filepath.Join(t.TempDir(), "templates"), driver), c
}

// get returns a template that is closed at the end of the test.
func get(t *testing.T, s *Store, c vmm.Config) *Template {
	t.Helper()
	tmpl, err := s.Get(t.Context(), c, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tmpl.Close)
	return tmpl
}

// lives starts a clone and asks it something.
func lives(t *testing.T, s *Store, c vmm.Config, tmpl *Template) {
	t.Helper()
	c.Frozen, c.RunDir = tmpl.Frozen(), t.TempDir()
	v, _ := vmmtest.Start(t, s.driver, c)
	if err := v.Kill(); err != nil {
		t.Error(err)
	}
}

// entries are what is in the store, but for locks.
func entries(t *testing.T, s *Store) []string {
	t.Helper()
	list, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		if !strings.HasSuffix(e.Name(), ".lock") {
			names = append(names, e.Name())
		}
	}
	return names
}

// Of many who need a template at once, one builds it.
func TestBuiltOnce(t *testing.T) {
	s, c := store(t)
	if s.Has(c) {
		t.Error("an empty store has a template")
	}
	var built, announced atomic.Int32
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			other := Open(s.dir, s.driver) // as in another process
			tmpl, err := other.Get(t.Context(), c, func() { announced.Add(1) })
			if err != nil {
				t.Error(err)
				return
			}
			defer tmpl.Close()
			if tmpl.Built {
				built.Add(1)
			}
		})
	}
	wg.Wait()
	if built.Load() != 1 || announced.Load() != 1 {
		t.Errorf("built %d times, announced %d times", built.Load(), announced.Load())
	}
	if got := entries(t, s); len(got) != 1 {
		t.Errorf("the store holds %v", got)
	}
	if !s.Has(c) {
		t.Error("the store says that it has none")
	}
	lives(t, s, c, get(t, s, c))
}

// A template that was changed on disk is not used but built anew.
func TestDamagedTemplateIsRebuilt(t *testing.T) {
	s, c := store(t)
	first := get(t, s, c)
	dir := filepath.Join(s.dir, first.Info.Key)
	for _, name := range []string{memoryName, stateName} {
		path := filepath.Join(dir, name)
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("damage"), 5000); err != nil {
			t.Fatal(err)
		}
		f.Close()
		again := get(t, s, c)
		if !again.Built {
			t.Errorf("a template with a damaged %s was used", name)
		}
		lives(t, s, c, again)
	}
	if err := os.WriteFile(filepath.Join(dir, infoName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !get(t, s, c).Built {
		t.Error("a template without a description was used")
	}
	if get(t, s, c).Built {
		t.Error("a whole template was built again")
	}
}

// What shapes a machine makes another template; what is in its slots does not.
func TestKey(t *testing.T) {
	s, c := store(t)
	key := func(c vmm.Config) string {
		t.Helper()
		k, _, err := s.driver.Fingerprint(c)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	kernel := filepath.Join(t.TempDir(), "vmlinuz")
	b, err := os.ReadFile(c.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kernel, b, 0o644); err != nil {
		t.Fatal(err)
	}
	c.Kernel = kernel
	first := key(c)
	same := c
	file, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	same.Disks = []vmm.Disk{{Serial: "root", ReadOnly: true, File: file}}
	same.RunDir, same.ConsoleLimit = t.TempDir(), 100
	if key(same) != first {
		t.Error("what is in a slot changes the key")
	}
	for name, change := range map[string]func(c *vmm.Config){
		"memory":     func(c *vmm.Config) { c.MemoryBytes *= 2 },
		"processors": func(c *vmm.Config) { c.VCPUs = 2 },
		"accel":      func(c *vmm.Config) { c.Accel = vmm.AccelKVM },
		"words":      func(c *vmm.Config) { c.Cmdline = []string{"x"} },
		"slots":      func(c *vmm.Config) { c.Disks = append(c.Disks, vmm.Disk{Serial: "more"}) },
		"kernel": func(c *vmm.Config) {
			if err := os.WriteFile(kernel, append(b, 0), 0o644); err != nil {
				t.Fatal(err)
			}
		},
	} {
		other := c
		other.Disks = append([]vmm.Disk(nil), c.Disks...)
		change(&other)
		if key(other) == first {
			t.Errorf("another %s has the same key", name)
		}
	}
}

// A template in use stays; one whose kernel has changed goes when another is built.
func TestRemove(t *testing.T) {
	s, c := store(t)
	kernel := filepath.Join(t.TempDir(), "vmlinuz")
	b, err := os.ReadFile(c.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kernel, b, 0o644); err != nil {
		t.Fatal(err)
	}
	c.Kernel = kernel
	tmpl, err := s.Get(t.Context(), c, nil)
	if err != nil {
		t.Fatal(err)
	}
	key := tmpl.Info.Key
	if err := s.Remove(key); !errors.Is(err, ErrInUse) {
		t.Errorf("removal of one in use: %v", err)
	}
	if found, err := s.Find(key[:8]); err != nil || found.Key != key {
		t.Errorf("found %s, %v", found.Key, err)
	}
	if _, err := s.Find("nothing"); !errors.Is(err, ErrNotFound) {
		t.Errorf("found nothing: %v", err)
	}
	if all, err := s.List(); err != nil || len(all) != 1 || s.Bytes(key) < 10<<20 || time.Since(s.LastUse(key)) > time.Minute {
		t.Errorf("list %v, %v; %d bytes, used %v", all, err, s.Bytes(key), s.LastUse(key))
	}
	if err := os.WriteFile(kernel, append(b, 0), 0o644); err != nil {
		t.Fatal(err)
	}
	other := get(t, s, c)
	if got := entries(t, s); len(got) != 2 {
		t.Errorf("while it is in use the store holds %v", got)
	}
	tmpl.Close()
	third := c
	third.MemoryBytes = 160 << 20
	get(t, s, third)
	if got := entries(t, s); len(got) != 2 {
		t.Errorf("when it is not the store holds %v", got)
	}
	other.Close()
	if err := s.Remove(other.Info.Key); err != nil {
		t.Error(err)
	}
	if err := s.Remove(other.Info.Key); !errors.Is(err, ErrNotFound) {
		t.Errorf("second removal: %v", err)
	}
}

// Builds that fail, are given up or are killed leave nothing in the way.
func TestFailedBuilds(t *testing.T) {
	s, c := store(t)
	bad := c
	bad.Initrd = c.Kernel // the kernel panics without an init
	if _, err := s.Get(t.Context(), bad, nil); err == nil || !strings.Contains(err.Error(), "ended") {
		t.Errorf("a machine that panics: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := s.Get(ctx, c, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("given up: %v", err)
	}
	if got := entries(t, s); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	// What a killed process leaves.
	half := filepath.Join(s.dir, ".new-123")
	if err := os.Mkdir(half, 0o700); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(half, old, old); err != nil {
		t.Fatal(err)
	}
	get(t, s, c)
	if got := entries(t, s); len(got) != 1 {
		t.Errorf("left: %v", got)
	}
	// Nobody else may have a say in what every machine starts from.
	if err := os.Chmod(filepath.Join(s.dir, entries(t, s)[0]), 0o777); err != nil {
		t.Fatal(err)
	}
	if !get(t, s, c).Built {
		t.Error("a template that others may change was used")
	}
}
