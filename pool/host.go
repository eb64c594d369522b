package pool

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// Host is what a pool shares with everybody else on the host.
type Host interface {
	// Available is how much memory can be had without taking it from anybody, bytes.
	Available() (uint64, error)
	// Total is all the memory that the host has, bytes.
	Total() (uint64, error)
	// Pressure is the share of the last ten seconds, in percent, in which some process
	// waited for a processor. It fails where the kernel does not say.
	Pressure() (float64, error)
	// Memory is what each of these processes takes with all its descendants, bytes: memory that
	// processes share counts in parts. What cannot be read is 0.
	Memory(pids []int) []uint64
}

// ThisHost reads what the kernel says.
type ThisHost struct {
	// Proc is the directory; empty means /proc.
	Proc string
}

func (h ThisHost) path(parts ...string) string {
	proc := h.Proc
	if proc == "" {
		proc = "/proc"
	}
	return filepath.Join(append([]string{proc}, parts...)...)
}

func (h ThisHost) Available() (uint64, error) { return kilobytes(h.path("meminfo"), "MemAvailable:") }

func (h ThisHost) Total() (uint64, error) { return kilobytes(h.path("meminfo"), "MemTotal:") }

// kilobytes reads one line of a file such as meminfo, in bytes.
func kilobytes(path, name string) (uint64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		if fields := bytes.Fields(lines.Bytes()); len(fields) >= 2 && string(fields[0]) == name {
			n, err := strconv.ParseUint(string(fields[1]), 10, 54)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("%s has no line %s", path, name)
}

func (h ThisHost) Pressure() (float64, error) {
	b, err := os.ReadFile(h.path("pressure", "cpu"))
	if err != nil {
		return 0, err
	}
	var percent float64
	_, err = fmt.Sscanf(string(b), "some avg10=%f", &percent)
	return percent, err
}

func (h ThisHost) Memory(pids []int) []uint64 {
	children := h.children()
	found := make([]uint64, len(pids))
	for i, pid := range pids {
		// A table that changes while it is read might have a circle.
		seen := map[int]bool{}
		for queue := []int{pid}; len(queue) > 0; queue = queue[1:] {
			if pid := queue[0]; !seen[pid] {
				seen[pid] = true
				found[i] += h.one(pid)
				queue = append(queue, children[pid]...)
			}
		}
	}
	return found
}

// one is what one process takes. Its share of what it has in common with others, or, where that
// is not to be read, everything it has.
func (h ThisHost) one(pid int) uint64 {
	n, err := kilobytes(h.path(strconv.Itoa(pid), "smaps_rollup"), "Pss:")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		n, _ = kilobytes(h.path(strconv.Itoa(pid), "status"), "VmRSS:")
	}
	return n
}

// children are all processes of the host, by their parents.
func (h ThisHost) children() map[int][]int {
	all := make(map[int][]int)
	entries, _ := os.ReadDir(h.path())
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if parent := h.parent(pid); parent > 0 {
			all[parent] = append(all[parent], pid)
		}
	}
	return all
}

func (h ThisHost) parent(pid int) (parent int) {
	b, err := os.ReadFile(h.path(strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0
	}
	// The name, in brackets, may hold anything.
	if fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:]); len(fields) > 1 {
		parent, _ = strconv.Atoi(string(fields[1]))
	}
	return parent
}
