package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Exhaust leaves the group no more memory than it has, with all that can be given up, until ended is closed: by then a process
// that takes more and more, and that the kernel chooses before the others (oom_score_adj), has ended for want of it, which the host
// has counted. Whatever comes of it, the group's limit is then what it was. The group was made with Account.
func (g *Group) Exhaust(ended <-chan struct{}) error {
	d, limit, usage := g.memory()
	if d == nil {
		return errors.New("the host has no control groups of memory")
	}
	before, err := os.ReadFile(filepath.Join(d.path, limit))
	if err != nil {
		return err
	}
	for {
		// What was its machine's is given back by and by, and so is what the kernel remembers of files.
		b, err := os.ReadFile(filepath.Join(d.path, usage))
		var used uint64
		if err == nil {
			_, err = fmt.Sscan(string(b), &used)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("read what the control group has of memory: %w", err), g.limit(before))
		}
		// That the kernel cannot make do with so little at once is no error: the next round has another number.
		g.LimitMemory(used + spare)
		select {
		case <-ended:
			return g.limit(before)
		case <-time.After(exhaustRound):
		}
	}
}

const (
	spare        = 1 << 20
	exhaustRound = 2 * time.Millisecond
)

// limit sets the limit of memory to what the group's file had.
func (g *Group) limit(text []byte) error {
	value := strings.TrimSpace(string(text))
	return g.set("memory", "memory.limit_in_bytes", "memory.max", value)
}

// memory is where the group's memory is limited, and the files of its limit and usage; nil: nowhere.
func (g *Group) memory() (at *dir, limit, usage string) {
	for i := range g.dirs {
		switch g.dirs[i].controller {
		case "memory":
			return &g.dirs[i], "memory.limit_in_bytes", "memory.usage_in_bytes"
		case "":
			return &g.dirs[i], "memory.max", "memory.current"
		}
	}
	return nil, "", ""
}
