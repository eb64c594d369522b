package pool

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
)

// WriteMetrics writes a state in Prometheus' text format.
func WriteMetrics(w io.Writer, s State) error {
	var b bytes.Buffer
	head := func(name, kind, help string) { fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind) }
	each := func(name, kind, help string, value func(*SizeState) uint64) {
		head(name, kind, help)
		for i := range s.Sizes {
			if s.Sizes[i].Key != "" {
				fmt.Fprintf(&b, "%s{size=%q} %d\n", name, s.Sizes[i].Kind, value(&s.Sizes[i]))
			}
		}
	}
	one := func(name, help string, value uint64) {
		head(name, "gauge", help)
		fmt.Fprintf(&b, "%s %d\n", name, value)
	}
	each("manis_pool_waiting", "gauge", "Machines that wait for a container.", func(s *SizeState) uint64 { return uint64(s.Waiting) })
	each("manis_pool_wanted", "gauge", "Machines that recent demand makes worth keeping.", func(s *SizeState) uint64 { return uint64(s.Wanted) })
	each("manis_pool_granted", "gauge", "Wanted machines that fit into memory.", func(s *SizeState) uint64 { return uint64(s.Granted) })
	each("manis_pool_min", "gauge", "Machines that are kept without demand.", func(s *SizeState) uint64 { return uint64(s.Min) })
	each("manis_pool_max", "gauge", "Machines that are kept at most.", func(s *SizeState) uint64 { return uint64(s.Max) })
	each("manis_pool_size_memory_bytes", "gauge", "Memory that waiting machines of a size take.", func(s *SizeState) uint64 { return s.MemoryBytes })
	each("manis_pool_claims_total", "counter", "Containers that got a machine that waited.", func(s *SizeState) uint64 { return s.Claims })
	each("manis_pool_misses_total", "counter", "Containers that found no machine of their size.", func(s *SizeState) uint64 { return s.Misses })
	fmt.Fprintf(&b, "manis_pool_misses_total{size=\"other\"} %d\n", s.OtherMisses)
	each("manis_pool_died_total", "counter", "Machines that ended while they waited.", func(s *SizeState) uint64 { return s.Died })
	each("manis_pool_failures_total", "counter", "Machines that could not be made.", func(s *SizeState) uint64 { return s.Failures })
	each("manis_pool_given_up_total", "counter", "Waiting machines that were given up, for want of demand or memory.", func(s *SizeState) uint64 { return s.GivenUp })
	s.histogram(&b, head, "manis_pool_refill_seconds", "Time to make a machine.", func(s *SizeState) Histogram { return s.Refill })
	s.histogram(&b, head, "manis_pool_claim_seconds", "Time that a machine took to accept a claim.", func(s *SizeState) Histogram { return s.Claim })
	head("manis_starts_total", "counter", "Pods and containers that containerd has had started, by what became of it.")
	for _, s := range s.Starts {
		for _, result := range startResults {
			fmt.Fprintf(&b, "manis_starts_total{what=%q,result=%q} %d\n", s.What, result, s.Results[result])
		}
	}
	head("manis_start_seconds", "histogram", "Time to make a pod's machine, and to make a container in it.")
	for _, s := range s.Starts {
		s.Took.write(&b, "manis_start_seconds", fmt.Sprintf("what=%q", s.What))
	}
	one("manis_pool_memory_bytes", "Memory that all waiting machines take.", s.MemoryBytes)
	one("manis_pool_memory_budget_bytes", "Memory that they may take.", s.BudgetBytes)
	one("manis_pool_memory_reserve_bytes", "Memory of the host that has to stay available.", s.ReserveBytes)
	one("manis_pool_host_available_bytes", "Memory of the host that is available.", s.AvailableBytes)
	paused := uint64(0)
	if s.Paused != "" {
		paused = 1
	}
	one("manis_pool_paused", "1 while missing machines are not made: the host is busy, memory was short, or the last failed.", paused)
	_, err := w.Write(b.Bytes())
	return err
}

func (s *State) histogram(b *bytes.Buffer, head func(name, kind, help string), name, help string, value func(*SizeState) Histogram) {
	head(name, "histogram", help)
	for i := range s.Sizes {
		if s.Sizes[i].Key == "" {
			continue
		}
		h := value(&s.Sizes[i])
		h.write(b, name, fmt.Sprintf("size=%q", s.Sizes[i].Kind))
	}
}

// write writes the lines of one with this label.
func (h *Histogram) write(b *bytes.Buffer, name, label string) {
	total := uint64(0)
	for j, n := range h.Counts {
		total += n
		bound := "+Inf"
		if j < len(h.Bounds) {
			bound = strconv.FormatFloat(h.Bounds[j], 'g', -1, 64)
		}
		fmt.Fprintf(b, "%s_bucket{%s,le=%q} %d\n", name, label, bound, total)
	}
	fmt.Fprintf(b, "%s_sum{%s} %g\n%s_count{%s} %d\n", name, label, h.Sum, name, label, total)
}
