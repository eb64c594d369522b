package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// CPU limits what a group's processes have of the CPUs. Zero values leave what is set.
type CPU struct {
	// Shares is the weight beside other groups in version 1's scale, 2 to 262144, where 1024
	// is a group's without one.
	Shares uint64
	// QuotaUs is what they may use per period, microseconds of one CPU; negative: no limit.
	QuotaUs  int64
	PeriodUs uint64
	// CPUs and Mems are the CPUs and memory nodes that they may use, as lists: 0-2,4.
	CPUs, Mems string
}

// LimitCPU sets limits of a group that was made with Account.
func (g *Group) LimitCPU(c CPU) error {
	v2 := g.unified()
	if c.Shares != 0 {
		shares := max(2, min(c.Shares, 262144))
		// In a straight line from version 1's range to that of version 2, 1 to 10000.
		value := shares
		if v2 {
			value = 1 + (shares-2)*9999/262142
		}
		if err := g.set("cpu", "cpu.shares", "cpu.weight", strconv.FormatUint(value, 10)); err != nil {
			return err
		}
	}
	limit := g.limitTime
	if v2 {
		limit = g.limitTimeUnified
	}
	if err := limit(c.QuotaUs, c.PeriodUs); err != nil {
		return err
	}
	for _, l := range []struct{ file, list string }{{"cpuset.cpus", c.CPUs}, {"cpuset.mems", c.Mems}} {
		if l.list == "" {
			continue
		}
		if err := g.set("cpuset", l.file, l.file, l.list); err != nil {
			return err
		}
	}
	return nil
}

// unified reports whether the group is version 2's.
func (g *Group) unified() bool { return len(g.dirs) > 0 && g.dirs[0].controller == "" }

// LiftCPU takes all of these limits away.
func (g *Group) LiftCPU() error {
	errs := []error{g.LimitCPU(CPU{Shares: 1024, QuotaUs: -1})}
	for _, d := range g.dirs {
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			list := []byte("\n")
			switch d.controller {
			case "cpuset":
				var err error
				if list, err = os.ReadFile(filepath.Join(filepath.Dir(d.path), file)); err != nil {
					errs = append(errs, err)
					continue
				}
			case "":
			default:
				continue
			}
			errs = append(errs, os.WriteFile(filepath.Join(d.path, file), list, 0))
		}
	}
	return errors.Join(errs...)
}

// limitTime sets quota and period of version 1. Where the group has both already, one alone may
// contradict the other that is to be replaced: then the order is the other one.
func (g *Group) limitTime(quota int64, period uint64) error {
	setPeriod := func() error {
		if period == 0 {
			return nil
		}
		return g.set("cpu", "cpu.cfs_period_us", "", strconv.FormatUint(period, 10))
	}
	first := setPeriod()
	if first != nil && (quota == 0 || !errors.Is(first, unix.EINVAL)) {
		return first
	}
	if quota != 0 {
		if err := g.set("cpu", "cpu.cfs_quota_us", "", strconv.FormatInt(max(quota, -1), 10)); err != nil {
			return err
		}
	}
	if first != nil {
		return setPeriod()
	}
	return nil
}

// limitTimeUnified sets both of version 2, which are one file.
func (g *Group) limitTimeUnified(quota int64, period uint64) error {
	var value string
	switch {
	case quota == 0 && period == 0:
		return nil
	case quota > 0:
		value = strconv.FormatInt(quota, 10)
	case quota < 0:
		value = "max"
	default:
		old, err := os.ReadFile(filepath.Join(g.dirs[0].path, "cpu.max"))
		if err != nil {
			return fmt.Errorf("limit cpu: %w", err)
		}
		value, _, _ = strings.Cut(string(old), " ")
	}
	if period != 0 {
		value += " " + strconv.FormatUint(period, 10)
	}
	return g.set("cpu", "", "cpu.max", value)
}

// inheritSets gives a group of version 1's cpuset hierarchy, and those above it, the CPUs and memory
// nodes of their parents where they have none: no process could join them.
func inheritSets(d dir) error {
	at := strings.TrimSuffix(d.path, d.within)
	for part := range strings.SplitSeq(strings.Trim(d.within, "/"), "/") {
		parent := at
		at = filepath.Join(at, part)
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			own, err := os.ReadFile(filepath.Join(at, name))
			if err != nil {
				return err
			}
			if strings.TrimSpace(string(own)) != "" {
				continue
			}
			list, err := os.ReadFile(filepath.Join(parent, name))
			if err == nil {
				err = os.WriteFile(filepath.Join(at, name), list, 0)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}
