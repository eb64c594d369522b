package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// minRAM is the least size of a mapping that can be a guest's memory.
const minRAM = 32 << 20

// pss returns the proportional set size of a process in bytes, and the part of it that
// is a guest's memory: a large mapping of an anonymous file.
func pss(pid int) (all, ram uint64, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return 0, 0, fmt.Errorf("memory of process %d: %w", pid, err)
	}
	defer f.Close()
	guest := false
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		if from, to, ok := strings.Cut(fields[0], "-"); ok && !strings.HasSuffix(fields[0], ":") {
			a, errA := strconv.ParseUint(from, 16, 64)
			b, errB := strconv.ParseUint(to, 16, 64)
			guest = errA == nil && errB == nil && b-a >= minRAM && len(fields) > 5 &&
				(strings.HasPrefix(fields[5], "/memfd:") || fields[5] == "/memory") // a template's, in the jail
			continue
		}
		if fields[0] == "Pss:" {
			n, err := strconv.ParseUint(fields[1], 10, 64)
			if err != nil {
				continue
			}
			all += n << 10
			if guest {
				ram += n << 10
			}
		}
	}
	return all, ram, lines.Err()
}
