package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A start-up that has become slower is to be noticed, and a busy machine is not to be mistaken
// for one. Absolute times say nothing on a machine that others use; the ratio to a peer
// whose starts were measured in turn with ours says more, but not all: a start of Manis is mostly
// computing, one of runc mostly waiting for the kernel. So it takes these to call a ratio worse:
//
//   - Its median is more than allowance times the accepted one. Medians of five rounds on an
//     idle machine were within a tenth of each other. With loops that take one or both of two
//     processors they moved by a quarter, the pool's, whose starts are the shortest, by a half.
//     What is smaller than that is for make bench-startup and its history to show.
//   - Its first quartile is above the accepted third one: three of four rounds were
//     slower than three of four accepted ones. A few slow rounds among good ones are noise.
//   - On a machine of which others take so much that computations take maxContention times as
//     long, that is not enough, and nothing can be said until the median is beyond busyAllowance.
//
// And it must be so twice: the gate measures again, with more rounds, before it fails.
const (
	allowance     = 1.6
	busyAllowance = 2.5
	maxContention = 1.3
)

// verdict is what is to be said of a ratio.
type verdict struct {
	kind        verdictKind
	now, before Ratio
	why         string // for those that were not compared
}

type verdictKind string

const (
	good      verdictKind = "good"
	better    verdictKind = "better"
	worse     verdictKind = "WORSE"
	undecided verdictKind = "undecided"
	skipped   verdictKind = "skipped"
	unknown   verdictKind = "not accepted yet"
)

// compare judges every ratio that was accepted or measured. reasons say of subjects why
// they were not measured.
func compare(now, before []Ratio, contention float64, reasons map[string]string) []verdict {
	find := func(list []Ratio, r Ratio) (Ratio, bool) {
		i := slices.IndexFunc(list, func(x Ratio) bool { return x.Of == r.Of && x.To == r.To })
		if i < 0 {
			return Ratio{}, false
		}
		return list[i], true
	}
	var list []verdict
	for _, b := range before {
		n, ok := find(now, b)
		switch {
		case ok:
			list = append(list, judge(n, b, contention))
		case reasons[b.Of] != "":
			// It is ours, and part of what is built here: that it does not start is no excuse. But on a
			// busy machine a pool, which is filled in time that nobody wants, may stay empty.
			v := verdict{kind: worse, before: b, why: reasons[b.Of]}
			if contention > maxContention {
				v.kind = undecided
			}
			list = append(list, v)
		default:
			list = append(list, verdict{kind: skipped, before: b, why: cmp.Or(reasons[b.To], b.To+" was not measured")})
		}
	}
	for _, n := range now {
		if _, ok := find(before, n); !ok {
			list = append(list, verdict{kind: unknown, now: n})
		}
	}
	return list
}

func judge(now, before Ratio, contention float64) verdict {
	v := verdict{kind: good, now: now, before: before}
	switch {
	case now.Median > before.Median*allowance && now.Low > before.High:
		v.kind = worse
		if contention > maxContention && now.Median <= before.Median*busyAllowance {
			v.kind = undecided
		}
	case now.Median < before.Median/allowance && now.High < before.Low:
		v.kind = better
	}
	return v
}

// grown is the phase that has grown most, and what it took and takes by itself, in starts of the
// peer. It is "" when none has grown.
func grown(now, before Ratio) (phase string, was, is float64) {
	most := 0.0
	for _, name := range slices.Sorted(maps.Keys(now.Phases)) {
		if growth := now.Phases[name] - before.Phases[name]; growth > most {
			phase, was, is, most = name, before.Phases[name], now.Phases[name], growth
		}
	}
	return phase, was, is
}

func (v verdict) String() string {
	r := v.now
	if r.Of == "" {
		r = v.before
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%-18s %s", v.kind, r.Of+"/"+r.To)
	if v.why != "" {
		return b.String() + ": " + v.why
	}
	fmt.Fprintf(&b, ": %s (%s to %s in %d rounds)", number(r.Median), number(r.Low), number(r.High), r.Rounds)
	if v.kind == unknown {
		return b.String()
	}
	fmt.Fprintf(&b, ", accepted %s (%s to %s)", number(v.before.Median), number(v.before.Low), number(v.before.High))
	if v.kind == worse || v.kind == undecided {
		if phase, was, is := grown(v.now, v.before); phase != "" {
			fmt.Fprintf(&b, "; grew most: %q, from %s to %s starts of %s", phase, number(was), number(is), r.To)
		}
	}
	return b.String()
}
