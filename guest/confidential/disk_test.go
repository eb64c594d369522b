package confidential

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"manis/api/agent"
	"manis/audit"
)

// badDisk is one whose host changes it.
type badDisk struct{ mismatches, removed atomic.Uint64 }

func (*badDisk) Path() string                  { return "/dev/dm-9" }
func (d *badDisk) Mismatches() (uint64, error) { return d.mismatches.Load(), nil }
func (d *badDisk) Remove() error               { d.removed.Add(1); return nil }

// What a host has changed on an encrypted disk is in the log while the container runs, and before its exit; a flood does not fill the log.
func TestTampering(t *testing.T) {
	disk := new(badDisk)
	defer func(old func(string, uint64) (encrypted, error)) { makeDisk = old }(makeDisk)
	makeDisk = func(string, uint64) (encrypted, error) { return disk, nil }

	g := guard(t, "only")
	if err := g.Before(create, request("a", "only")); err != nil {
		t.Fatal(err)
	}
	_, _, unseal, err := g.Seal("a", "/dev/vdb", 1<<26)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(events(t, g), audit.Tampered) {
		t.Error("the log has changes that nobody made")
	}
	disk.mismatches.Store(1)
	for deadline := time.Now().Add(time.Minute); !strings.Contains(events(t, g), `"tamper","what":{"blocks":"1","container":"0"}`); {
		if time.Now().After(deadline) {
			t.Fatal("the log has no change of the disk: " + events(t, g))
		}
		time.Sleep(10 * time.Millisecond)
	}
	g.mu.Lock()
	for n := uint64(2); n < 1_000_000; n++ {
		disk.mismatches.Store(n)
		g.look("a", g.disks["a"], false)
	}
	g.mu.Unlock()
	if n := strings.Count(events(t, g), audit.Tampered); n > 25 {
		t.Errorf("a flood has %d events", n)
	}
	g.After("/manis.agent.v1.Agent/Wait", &agent.WaitRequest{Id: "a"}, &agent.WaitResponse{})
	log := events(t, g)
	if all := strings.Index(log, `"blocks":"999999"`); all < 0 || all > strings.Index(log, audit.Exited) {
		t.Error("the log does not have all changes before the exit")
	}
	if err := unseal(); err != nil || disk.removed.Load() != 1 {
		t.Errorf("the disk was not given back: %v", err)
	}
}
