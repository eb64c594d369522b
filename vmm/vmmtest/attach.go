package vmmtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
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
	parts(t, ctx, v, g)
	if err := v.Detach(ctx, "more"); !errors.Is(err, vmm.ErrConfig) {
		t.Errorf("a disk that there is not: %v", err)
	}
}

// parts gives a VM a disk of several files, one of them twice, as if they were one.
func parts(t *testing.T, ctx context.Context, v vmm.VM, g *Guest) {
	var files []*os.File
	var want string
	for i, size := range []int64{512, 4096, 1536} {
		f := tempFile(t, size)
		content := strings.Repeat(string(rune('a'+i)), int(size))
		if _, err := f.WriteAt([]byte(content), 0); err != nil {
			t.Fatal(err)
		}
		only, err := os.Open(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		defer only.Close()
		files, want = append(files, only), want+content
	}
	files, want = append(files, files[0]), want+want[:512]
	for name, d := range map[string]vmm.Disk{
		"to be written": {Serial: "parts", Parts: files}, "a file, too": {Serial: "parts", Parts: files, File: files[0], ReadOnly: true},
		"part of a sector": {Serial: "parts", Parts: []*os.File{tempFile(t, 700)}, ReadOnly: true},
		"an empty file":    {Serial: "parts", Parts: []*os.File{tempFile(t, 0)}, ReadOnly: true},
		"too many":         {Serial: "parts", Parts: slices.Repeat(files[:1], vmm.MaxParts+1), ReadOnly: true},
	} {
		if err := v.Attach(ctx, d); !errors.Is(err, vmm.ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, list := range [][]*os.File{files, slices.Repeat(files, vmm.MaxParts/len(files))} {
		all := strings.Repeat(want, len(list)/len(files))
		if err := v.Attach(ctx, vmm.Disk{Serial: "parts", Parts: list, ReadOnly: true}); err != nil {
			t.Fatal(err)
		}
		for {
			if got, err := g.Try(fmt.Sprintf("head /dev/vdc %d", len(all))); err == nil {
				if got != all {
					t.Errorf("the disk of %d parts holds %d bytes, not what its files do: %s", len(list), len(got), runs(got))
				}
				break
			} else if ctx.Err() != nil {
				t.Fatal("the guest does not see it:", err)
			}
		}
		if _, err := g.Try("put /dev/vdc written"); err == nil {
			t.Error("the guest has written to it")
		}
		if err := v.Detach(ctx, "parts"); err != nil {
			t.Fatal(err)
		}
	}
}

func runs(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		n := len(s) - len(strings.TrimLeft(s, s[:1]))
		fmt.Fprintf(&b, " %s*%d", s[:1], n)
		s = s[n:]
	}
	return b.String()
}
