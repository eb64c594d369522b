package checkpoint

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// area is one mapping of a process, as /proc/PID/maps shows it (proc(5)).
type area struct {
	start, end uint64
	prot       int
	shared     bool
	offset     uint64 // in the file
	inode      uint64
	name       string
	flags      []string // those of the kernel, "VmFlags" in proc(5)
}

func (a area) size() uint64 { return a.end - a.start }

// file reports whether the mapping has a file's content.
func (a area) file() bool { return a.inode != 0 }

// kernels reports whether the kernel makes the mapping in every process, and
// places it where it likes.
func (a area) kernels() bool {
	return a.name == "[vdso]" || strings.HasPrefix(a.name, "[vvar")
}

// forgets reports whether the mapping has secrets that no copy of the process may have: it is emptied
// in a forked child, or whenever the kernel likes. What a C library knows of random numbers
// is in such memory, and it finds out when that is empty.
func (a area) forgets() bool { return slices.Contains(a.flags, "wf") || slices.Contains(a.flags, "dp") }

// grows reports whether the kernel made the mapping as the first thread's stack.
func (a area) grows() bool { return slices.Contains(a.flags, "gd") }

// refusal says why the mapping cannot be put back; empty: it can.
func (a area) refusal() string {
	switch {
	case a.shared:
		return "it shares " + a.name + " with others"
	case slices.Contains(a.flags, "um"), slices.Contains(a.flags, "uw"):
		return "another one supplies its memory (userfaultfd)"
	case slices.Contains(a.flags, "pf"), slices.Contains(a.flags, "io"):
		return "it has mapped the device " + a.name
	}
	return ""
}

func readAreas(pid int) ([]area, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseAreas(f)
}

// parseAreas reads /proc/PID/smaps: a line as in maps for each mapping, and then lines that begin with
// a name and a colon.
func parseAreas(r io.Reader) ([]area, error) {
	var areas []area
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := lines.Text()
		if name, value, ok := strings.Cut(line, ":"); ok && !strings.Contains(name, " ") {
			if name == "VmFlags" && len(areas) > 0 {
				areas[len(areas)-1].flags = strings.Fields(value)
			}
			continue
		}
		a, err := parseArea(line)
		if err != nil {
			return nil, err
		}
		areas = append(areas, a)
	}
	// Not of this process alone.
	return slices.DeleteFunc(areas, func(a area) bool { return a.name == "[vsyscall]" || a.name == "[uprobes]" }), lines.Err()
}

func parseArea(line string) (area, error) {
	fields := strings.Fields(line)
	fail := func() (area, error) { return area{}, fmt.Errorf("read the process's mappings: %q", line) }
	if len(fields) < 5 || len(fields[1]) != 4 {
		return fail()
	}
	from, to, ok := strings.Cut(fields[0], "-")
	var a area
	var err, err2, err3, err4 error
	a.start, err = strconv.ParseUint(from, 16, 64)
	a.end, err2 = strconv.ParseUint(to, 16, 64)
	a.inode, err3 = strconv.ParseUint(fields[4], 10, 64)
	a.offset, err4 = strconv.ParseUint(fields[2], 16, 64)
	if !ok || err != nil || err2 != nil || err3 != nil || err4 != nil || a.start >= a.end {
		return fail()
	}
	for i, prot := range []int{unix.PROT_READ, unix.PROT_WRITE, unix.PROT_EXEC} {
		if fields[1][i] != '-' {
			a.prot |= prot
		}
	}
	a.shared = fields[1][3] == 's'
	if len(fields) > 5 {
		a.name = strings.Join(fields[5:], " ")
	}
	return a, nil
}
