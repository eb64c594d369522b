package vmmtest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"manis/vmm"
)

// save saves a VM with its monitor's process and continues it several times.
func (s suite) save(t *testing.T) {
	frozen, state := s.template(t, vmm.NIC{MAC: "52:54:00:00:00:01"})
	c := frozen
	c.Frozen, c.MemoryFile, c.RunDir = &vmm.Frozen{Memory: c.MemoryFile, State: state}, "", t.TempDir()
	v, g := Start(t, s.driver, c)
	g.Ask(t, "write /x before")
	slot := func(content string) vmm.Disk {
		t.Helper()
		f := tempFile(t, 1<<20)
		if _, err := f.WriteAt([]byte(content), 0); err != nil {
			t.Fatal(err)
		}
		r, err := os.Open(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		return vmm.Disk{Serial: "root", ReadOnly: true, File: r}
	}
	if err := v.Insert(t.Context(), slot("rehearsal")); err != nil {
		t.Fatal(err)
	}
	if got := g.Ask(t, "head /dev/vda 9"); got != "rehearsal" {
		t.Fatalf("the slot holds %q", got)
	}
	if err := v.Insert(t.Context(), vmm.Disk{Serial: "root", ReadOnly: true}); err != nil {
		t.Fatal("empty the slot:", err)
	}
	heap := heapOf(t, v)
	s.failedSave(t, v, g)
	saved := s.saveVM(t, v)

	frozen.MemoryFile, frozen.RunDir = "", ""
	resume := func(saved *vmm.Saved, content string) (vmm.VM, *Guest) {
		t.Helper()
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "f"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		c := frozen
		c.Saved, c.RunDir = saved, t.TempDir()
		c.Disks = []vmm.Disk{slot(content), {Serial: "scratch", File: tempFile(t, 1<<20)}}
		c.Shares = []vmm.Share{{Tag: "b", Entries: []vmm.ShareEntry{{Name: "d", HostPath: dir}}}}
		return Start(t, s.driver, c)
	}
	one, g1 := resume(saved, "first")
	two, g2 := resume(saved, "other")
	for _, g := range []*Guest{g1, g2} {
		if got := g.Ask(t, "cat /x"); got != "before" {
			t.Errorf("the file that was saved holds %q", got)
		}
		g.Ask(t, "mount b /mnt")
	}
	if a, b := g1.Ask(t, "head /dev/vda 5"), g2.Ask(t, "head /dev/vda 5"); a != "first" || b != "other" {
		t.Errorf("the disks hold %q and %q", a, b)
	}
	if a, b := g1.Ask(t, "cat /mnt/d/f"), g2.Ask(t, "cat /mnt/d/f"); a != "first" || b != "other" {
		t.Errorf("the shares hold %q and %q", a, b)
	}
	g1.Ask(t, "put /dev/vdb written")
	g1.Ask(t, "write /x one")
	if a, b := g1.Ask(t, "cat /x"), g2.Ask(t, "cat /x"); a != "one" || b != "before" {
		t.Errorf("the files hold %q and %q", a, b)
	}
	if got := g2.Ask(t, "head /dev/vdb 1"); got != "\x00" {
		t.Errorf("a disk of the other one holds %q", got)
	}
	if got := heapOf(t, one); got != heap {
		t.Errorf("the kernel believes its heap at %q, it was at %q", got, heap)
	}
	filters(t, one)
	info := one.Info()
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", info.PID)); err != nil || !bytes.Contains(b, []byte("-machine")) {
		t.Errorf("its command line is %q, %v", b, err)
	}
	if info.Version == "" {
		t.Error("no version")
	}
	for _, f := range info.Jail {
		if !f.InForce && f.Name != "control group" && f.Name != "Landlock" && f.Name != "starter" {
			t.Errorf("%s: not in force: %s", f.Name, f.Detail)
		}
	}
	if len(info.Jail) < 10 {
		t.Errorf("%d facts about the jail", len(info.Jail))
	}
	if _, err := one.Memory(); err != nil {
		t.Error(err)
	}
	if err := errors.Join(one.Pause(t.Context()), one.Resume(t.Context())); err != nil {
		t.Error(err)
	}
	if got := g1.Ask(t, "echo again"); got != "again" {
		t.Errorf("after the pause it says %q", got)
	}
	g2.send("poweroff")
	select {
	case <-two.Done():
		if got := two.Exit().Reason; got != vmm.PowerOff {
			t.Errorf("it ended by %+v", two.Exit())
		}
	case <-time.After(patience):
		t.Error("it does not power off")
	}
	if err := errors.Join(one.Kill(), two.Kill()); err != nil {
		t.Error(err)
	}

	// A VM that was continued can be saved in its turn.
	next := frozen
	next.Saved, next.RunDir = saved, t.TempDir()
	v, g = Start(t, s.driver, next)
	g.Ask(t, "write /x later")
	again := s.saveVM(t, v)
	if _, g := resume(again, "third"); g.Ask(t, "cat /x") != "later" {
		t.Error("what was done after the first saving is lost")
	}
	s.damagedSave(t, frozen, saved)
	s.saveWithDisks(t, frozen, saved)
}

// saveWithDisks saves a VM whose slots are full, and continues it with copies of its disks.
func (s suite) saveWithDisks(t *testing.T, c vmm.Config, saved *vmm.Saved) {
	scratch := tempFile(t, 1<<20)
	root := tempFile(t, 1<<20)
	root.WriteAt([]byte("image"), 0)
	read, err := os.Open(root.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	c.Saved, c.RunDir = saved, t.TempDir()
	c.Disks = []vmm.Disk{{Serial: "root", ReadOnly: true, File: read}, {Serial: "scratch", File: scratch}}
	v, g := Start(t, s.driver, c)
	g.Ask(t, "put /dev/vdb mine")
	full := s.saveVM(t, v)
	if len(full.Disks) < 2 {
		t.Fatalf("saved with the disks %v", full.Disks)
	}
	content, err := os.ReadFile(scratch.Name())
	if err != nil || string(content[:4]) != "mine" {
		t.Fatalf("the disk holds %q, %v", content[:4], err)
	}
	for i, word := range []string{"aaaa", "bbbb"} {
		mine := tempFile(t, 1<<20)
		if _, err := mine.WriteAt(content, 0); err != nil {
			t.Fatal(err)
		}
		c := c
		c.Saved, c.RunDir = full, t.TempDir()
		c.Disks = []vmm.Disk{{Serial: "root", ReadOnly: true, File: read}, {Serial: "scratch", File: mine}}
		_, g := Start(t, s.driver, c)
		g.Ask(t, "put /dev/vdb %s", word)
		b := make([]byte, 4)
		if _, err := mine.ReadAt(b, 0); err != nil || string(b) != word {
			t.Errorf("clone %d's disk holds %q, %v", i, b, err)
		}
	}
	if b, _ := os.ReadFile(scratch.Name()); string(b[:4]) != "mine" {
		t.Errorf("the clones have written %q to the disk of their origin", b[:4])
	}
	c.Saved, c.Disks, c.RunDir = full, c.Disks[:1], t.TempDir()
	if v, err := s.driver.Start(t.Context(), c); !errors.Is(err, vmm.ErrConfig) {
		if err == nil {
			v.Kill()
		}
		t.Errorf("continued without a disk: %v, want ErrConfig", err)
	}
}

// heapOf returns where the heap of a VM's process begins, as the kernel believes (proc(5): start_brk).
func heapOf(t *testing.T, v vmm.VM) string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/", v.Info().PID)
	maps, err := os.ReadFile(dir + "maps")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(maps), "[heap]") {
		return "none"
	}
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(stat[bytes.LastIndexByte(stat, ')'):]))[47-2]
}

// filters checks that the jail's filter of system calls and another one at least are in force for every thread.
func filters(t *testing.T, v vmm.VM) {
	t.Helper()
	all, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", v.Info().PID))
	if err != nil || len(all) < 3 {
		t.Fatalf("%d threads, %v", len(all), err)
	}
	for _, path := range all {
		status, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
			continue
		}
		_, after, _ := strings.Cut(string(status), "Seccomp_filters:")
		var n int
		if fmt.Sscan(after, &n); err == nil && n < 2 {
			t.Errorf("%s: not two filters:\n%s", path, status)
		}
	}
}

// saveVM saves a VM and ends it.
func (s suite) saveVM(t *testing.T, v vmm.VM) *vmm.Saved {
	t.Helper()
	dir := t.TempDir()
	open := func(name string) *os.File {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	pages, resumer := open("pages"), open("resumer")
	saved, err := v.Save(t.Context(), pages, resumer)
	if err != nil {
		t.Fatal("save:", err)
	}
	if err := v.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(pages.Chmod(0o444), resumer.Chmod(0o555), pages.Close(), resumer.Close()); err != nil {
		t.Fatal(err)
	}
	saved.Pages, saved.Resumer = pages.Name(), resumer.Name()
	var err2 error
	saved.PagesFile, err = os.Open(saved.Pages)
	saved.ResumerFile, err2 = os.Open(saved.Resumer)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		saved.PagesFile.Close()
		saved.ResumerFile.Close()
	})
	return saved
}

// failedSave saves a VM to a full disk, which is an error and does the VM no harm.
func (s suite) failedSave(t *testing.T, v vmm.VM, g *Guest) {
	t.Helper()
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	if _, err := v.Save(t.Context(), full, full); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("saved to a full disk: %v", err)
	}
	if err := v.Resume(t.Context()); err != nil {
		t.Fatal("after saving to a full disk:", err)
	}
	if got := g.Ask(t, "echo on"); got != "on" {
		t.Errorf("after saving to a full disk it says %q", got)
	}
}

// damagedSave continues what cannot be continued: each is an error that says so.
func (s suite) damagedSave(t *testing.T, c vmm.Config, saved *vmm.Saved) {
	pages, err := os.ReadFile(saved.Pages)
	if err != nil {
		t.Fatal(err)
	}
	resumer, err := os.ReadFile(saved.Resumer)
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]struct{ pages, resumer []byte }{
		"no pages":             {nil, resumer},
		"half of the pages":    {pages[:len(pages)/2], resumer},
		"no resumer":           {pages, nil},
		"half of a resumer":    {pages, resumer[:len(resumer)/2]},
		"noise as a resumer":   {pages, bytes.Repeat([]byte("noise"), 1000)},
		"not what was checked": {pages, resumer},
	} {
		dir := t.TempDir()
		bad := *saved
		bad.Pages, bad.Resumer = filepath.Join(dir, "pages"), filepath.Join(dir, "resumer")
		if err := errors.Join(os.WriteFile(bad.Pages, f.pages, 0o444), os.WriteFile(bad.Resumer, f.resumer, 0o555)); err != nil {
			t.Fatal(err)
		}
		if name == "not what was checked" {
			bad.PagesFile, bad.ResumerFile = saved.PagesFile, saved.ResumerFile
		}
		c := c
		c.Saved, c.RunDir = &bad, t.TempDir()
		v, err := s.driver.Start(t.Context(), c)
		if err == nil {
			v.Kill()
			t.Errorf("%s: a VM was continued", name)
		} else if !errors.Is(err, vmm.ErrRejected) && !strings.Contains(err.Error(), "exec") {
			t.Errorf("%s: %v", name, err)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}
