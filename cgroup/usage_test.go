package cgroup

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestUsage reads the counters of groups of either version, and what is missing or nonsense as 0.
func TestUsage(t *testing.T) {
	top := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(top, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("one/cpuacct/cpuacct.usage", "5000000\n")
	write("one/cpuacct/cpuacct.stat", "user 3\nsystem 2\n")
	write("one/memory/memory.usage_in_bytes", "4096\n")
	write("one/memory/memory.stat", "rss 1\ntotal_rss 7\ntotal_inactive_file 9\nstrange\ntotal_cache x\n")
	write("one/pids/pids.current", "nonsense")
	write("two/cpu.stat", "usage_usec 5000\nuser_usec 3000\nsystem_usec 2000\n")
	write("two/memory.current", "4096\n")
	write("two/memory.stat", "anon 7\ninactive_file 9\n")
	write("two/pids.current", "3\n")
	one := &Group{dirs: []dir{
		{controller: "cpuacct", path: filepath.Join(top, "one/cpuacct")}, {controller: "memory", path: filepath.Join(top, "one/memory")},
		{controller: "pids", path: filepath.Join(top, "one/pids")},
	}}
	two := &Group{dirs: []dir{{path: filepath.Join(top, "two")}}}
	for name, c := range map[string]struct {
		g            *Group
		user, system time.Duration
		pids         uint64
	}{"1": {one, 30 * time.Millisecond, 20 * time.Millisecond, 0}, "2": {two, 3 * time.Millisecond, 2 * time.Millisecond, 3}} {
		u := c.g.Usage()
		if u.CPU != 5*time.Millisecond || u.User != c.user || u.System != c.system || u.MemoryBytes != 4096 || u.Memory["anon"] != 7 ||
			u.Memory["inactive_file"] != 9 || u.Memory["file"] != 0 || u.Pids != c.pids {
			t.Errorf("version %s: %+v", name, u)
		}
	}
}
