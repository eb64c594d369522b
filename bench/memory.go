package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Bounds of what can be a guest's memory: a mapping of a file that has the name of one, or, where a
// machine was continued, a row of adjacent mappings of the saved one.
const (
	minRAM = 32 << 20
	minRow = 160 << 20
)

// mapping is one of /proc/PID/smaps.
type mapping struct {
	start, end  uint64
	perms, name string
	pss         uint64
}

// pss returns the proportional set size of a process in bytes, and the part of it that
// is a guest's memory.
func pss(pid int) (all, ram uint64, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return 0, 0, fmt.Errorf("memory of process %d: %w", pid, err)
	}
	defer f.Close()
	var maps []mapping
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		if from, to, ok := strings.Cut(fields[0], "-"); ok && !strings.HasSuffix(fields[0], ":") {
			m := mapping{perms: fields[1]}
			m.start, _ = strconv.ParseUint(from, 16, 64)
			m.end, _ = strconv.ParseUint(to, 16, 64)
			if len(fields) > 5 {
				m.name = fields[5]
			}
			maps = append(maps, m)
			continue
		}
		if n, err := strconv.ParseUint(fields[1], 10, 64); fields[0] == "Pss:" && err == nil && len(maps) > 0 {
			maps[len(maps)-1].pss = n << 10
		}
	}
	piece := func(m mapping) bool { return m.perms == "rw-p" && (m.name == "" || m.name == "/pages") }
	for i := 0; i < len(maps); {
		n, saved, sum := i, false, uint64(0)
		for ; n < len(maps) && (n == i || piece(maps[n-1]) && piece(maps[n]) && maps[n].start == maps[n-1].end); n++ {
			saved = saved || maps[n].name == "/pages"
			sum += maps[n].pss
		}
		size, first := maps[n-1].end-maps[i].start, maps[i]
		named := strings.HasPrefix(first.name, "/memfd:") || first.name == "/memory" // a template's, in the jail
		if named && size >= minRAM || saved && piece(first) && size >= minRow {
			ram += sum
		}
		all += sum
		i = n
	}
	return all, ram, lines.Err()
}
