package cgroup

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Usage is what the processes of a group, and of those below it, have used or have.
type Usage struct {
	// CPU is the time of processors since the group was made; User and System are its parts.
	CPU, User, System time.Duration
	// MemoryBytes is what the group is charged for, with the pages of files.
	MemoryBytes uint64
	// Memory are further counters of memory, bytes, by version 2's names (anon, file, inactive_file, ...).
	Memory map[string]uint64
	// Pids is the number of processes and threads.
	Pids uint64
}

// olderNames are version 1's names of counters of memory, for whole groups.
var olderNames = map[string]string{
	"total_rss": "anon", "total_cache": "file", "total_mapped_file": "file_mapped", "total_dirty": "file_dirty", "total_writeback": "file_writeback",
	"total_inactive_anon": "inactive_anon", "total_active_anon": "active_anon", "total_inactive_file": "inactive_file",
	"total_active_file": "active_file", "total_unevictable": "unevictable", "total_pgfault": "pgfault", "total_pgmajfault": "pgmajfault",
}

// tick is the unit of cpuacct.stat: the kernel shows it as a hundredth of a second everywhere (USER_HZ).
const tick = 10 * time.Millisecond

// Usage reads the group's counters. What the host does not count is 0.
func (g *Group) Usage() Usage {
	u := Usage{Memory: make(map[string]uint64)}
	for _, d := range g.dirs {
		read := func(name string) uint64 {
			b, _ := os.ReadFile(filepath.Join(d.path, name))
			n, _ := strconv.ParseUint(string(bytes.TrimSpace(b)), 10, 64)
			return n
		}
		switch d.controller {
		case "":
			cpu := d.counters("cpu.stat")
			u.CPU = time.Duration(cpu["usage_usec"]) * time.Microsecond
			u.User, u.System = time.Duration(cpu["user_usec"])*time.Microsecond, time.Duration(cpu["system_usec"])*time.Microsecond
			u.MemoryBytes, u.Memory, u.Pids = read("memory.current"), d.counters("memory.stat"), read("pids.current")
		case "cpuacct":
			u.CPU = time.Duration(read("cpuacct.usage"))
			cpu := d.counters("cpuacct.stat")
			u.User, u.System = time.Duration(cpu["user"])*tick, time.Duration(cpu["system"])*tick
		case "memory":
			u.MemoryBytes = read("memory.usage_in_bytes")
			for name, n := range d.counters("memory.stat") {
				if name = olderNames[name]; name != "" {
					u.Memory[name] = n
				}
			}
		case "pids":
			u.Pids = read("pids.current")
		}
	}
	return u
}

// counters reads a file of lines with a name and a number.
func (d *dir) counters(file string) map[string]uint64 {
	all := make(map[string]uint64)
	b, _ := os.ReadFile(filepath.Join(d.path, file))
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		if name, number, ok := strings.Cut(lines.Text(), " "); ok {
			if n, err := strconv.ParseUint(number, 10, 64); err == nil {
				all[name] = n
			}
		}
	}
	return all
}
