package checkpoint

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// area is one mapping of a process, as /proc/PID/maps shows it (proc(5)).
type area struct {
	start, end uint64
	prot       int
	shared     bool
	inode      uint64
	name       string
}

func (a area) size() uint64 { return a.end - a.start }

// file reports whether the mapping has a file's content.
func (a area) file() bool { return a.inode != 0 }

// kernels reports whether the kernel makes the mapping in every process, and
// places it where it likes.
func (a area) kernels() bool {
	return a.name == "[vdso]" || strings.HasPrefix(a.name, "[vvar")
}

// resumers reports whether the mapping is a resumer's.
func (a area) resumers() bool { return a.start >= codeAddress && a.end <= resumerEnd && a.file() }

func readAreas(pid int) ([]area, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var areas []area
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		a, err := parseArea(lines.Text())
		if err != nil {
			return nil, err
		}
		if a.name == "[vsyscall]" || a.name == "[uprobes]" {
			continue // not of this process alone
		}
		areas = append(areas, a)
	}
	return areas, lines.Err()
}

func parseArea(line string) (area, error) {
	fields := strings.Fields(line)
	fail := func() (area, error) { return area{}, fmt.Errorf("read the process's mappings: %q", line) }
	if len(fields) < 5 || len(fields[1]) != 4 {
		return fail()
	}
	from, to, ok := strings.Cut(fields[0], "-")
	var a area
	var err, err2, err3 error
	a.start, err = strconv.ParseUint(from, 16, 64)
	a.end, err2 = strconv.ParseUint(to, 16, 64)
	a.inode, err3 = strconv.ParseUint(fields[4], 10, 64)
	if !ok || err != nil || err2 != nil || err3 != nil || a.start >= a.end {
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
