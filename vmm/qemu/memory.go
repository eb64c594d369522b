package qemu

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"manis/vmm"
	"manis/vmm/checkpoint"
)

// guestRAM are the names of the guest's RAM in /proc/PID/smaps: a file without a name, or
// in the jail that of a frozen machine.
var guestRAM = []string{"/memfd:memory-backend-memfd", memoryPath}

// mapping is one of /proc/PID/smaps.
type mapping struct {
	start, end uint64
	perms      string
	name       string
	pss, dirty uint64
}

// readMaps adds up a /proc/PID/smaps (proc(5)): for each mapping a line with
// its name, then lines of "Field: n kB". In a process that was continued the RAM, of so many bytes,
// has no name: it is the row of adjacent mappings that is large enough.
func readMaps(r io.Reader, ram uint64) (vmm.Memory, error) {
	var all []mapping
	s := bufio.NewScanner(r)
	for s.Scan() {
		f := strings.Fields(s.Text())
		switch {
		case len(f) < 2:
		case !strings.HasSuffix(f[0], ":"):
			m := mapping{perms: f[1]}
			from, to, _ := strings.Cut(f[0], "-")
			m.start, _ = strconv.ParseUint(from, 16, 64)
			m.end, _ = strconv.ParseUint(to, 16, 64)
			if len(f) >= 6 {
				m.name = f[5]
			}
			all = append(all, m)
		case len(all) == 0:
		case f[0] == "Pss:":
			all[len(all)-1].pss = kilobytes(f[1])
		case f[0] == "Private_Dirty:":
			// Dirty pages are shared by processes that forked, which QEMU may not.
			all[len(all)-1].dirty = kilobytes(f[1])
		}
	}
	if err := s.Err(); err != nil {
		return vmm.Memory{}, fmt.Errorf("read QEMU's memory: %w", err)
	}
	var m vmm.Memory
	for len(all) > 0 {
		n := row(all)
		guest := slices.Contains(guestRAM, all[0].name) ||
			ram > 0 && continued(all[0]) && all[n-1].end-all[0].start >= ram
		for _, a := range all[:n] {
			if guest {
				m.Guest += a.pss
			} else {
				m.Private += a.dirty
				m.Cached += a.pss - min(a.dirty, a.pss)
			}
		}
		all = all[n:]
	}
	return m, nil
}

// continued reports whether a mapping can be a piece of the RAM of a process that was
// continued.
func continued(m mapping) bool {
	return m.perms == "rw-p" && (m.name == "" || m.name == checkpoint.PagesPath)
}

// row is how many mappings from the first on are pieces of one.
func row(all []mapping) int {
	n := 1
	for n < len(all) && continued(all[n-1]) && continued(all[n]) && all[n].start == all[n-1].end {
		n++
	}
	return n
}

func kilobytes(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 44)
	if err != nil {
		return 0
	}
	return n << 10
}
