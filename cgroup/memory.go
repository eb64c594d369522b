package cgroup

import "strconv"

// LimitMemory bounds the memory of a group that was made with Account, bytes; 0 takes the limit away. What the
// processes have of files in the kernel's cache counts, and is given up first.
func (g *Group) LimitMemory(bytes uint64) error {
	value, unified := "-1", "max"
	if bytes > 0 {
		value = strconv.FormatUint(bytes, 10)
		unified = value
	}
	if g.unified() {
		value = unified
	}
	return g.set("memory", "memory.limit_in_bytes", "memory.max", value)
}
