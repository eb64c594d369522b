package qemu

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"manis/vmm"
)

// guestRAM are the names of the guest's RAM in /proc/PID/smaps: a file without a name, or
// in the jail that of a frozen machine.
var guestRAM = []string{"/memfd:memory-backend-memfd", memoryPath}

// readMaps adds up a /proc/PID/smaps (proc(5)): for each mapping a line with
// its name, then lines of "Field: n kB".
func readMaps(r io.Reader) (vmm.Memory, error) {
	var m vmm.Memory
	var pss, dirty uint64
	guest := false
	add := func() {
		if guest {
			m.Guest += pss
		} else {
			m.Private += dirty
			m.Cached += pss - min(dirty, pss)
		}
		pss, dirty = 0, 0
	}
	s := bufio.NewScanner(r)
	for s.Scan() {
		f := strings.Fields(s.Text())
		switch {
		case len(f) < 2:
		case !strings.HasSuffix(f[0], ":"):
			add()
			guest = len(f) >= 6 && slices.Contains(guestRAM, f[5])
		case f[0] == "Pss:":
			pss = kilobytes(f[1])
		case f[0] == "Private_Dirty:":
			// Dirty pages are shared by processes that forked, which QEMU may not.
			dirty = kilobytes(f[1])
		}
	}
	add()
	if err := s.Err(); err != nil {
		return vmm.Memory{}, fmt.Errorf("read QEMU's memory: %w", err)
	}
	return m, nil
}

func kilobytes(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 44)
	if err != nil {
		return 0
	}
	return n << 10
}
