package main

import (
	"fmt"
	"io"
	"strings"
)

// latencies are the sections whose slowest tenth and hundredth matter.
var latencies = map[string]bool{"start": true, "burst": true}

// table writes the report for a terminal.
func (r *Report) table(w io.Writer) error {
	var b strings.Builder
	section, few := "", false
	for _, g := range r.groups() {
		if g.Section != section {
			few = explainFew(&b, few)
			section = g.Section
			fmt.Fprintf(&b, "\n%-42s %10s", titles[section], "median")
			if latencies[section] {
				fmt.Fprintf(&b, " %10s %10s", "p90", "p99")
			}
			fmt.Fprintf(&b, " %10s %10s %5s\n", "least", "most", "n")
		}
		fmt.Fprintf(&b, "  %s, %s\n", g.Metric, g.Unit)
		for _, s := range g.Series {
			fmt.Fprintf(&b, "    %-38s %10s", s.Subject, number(s.median()))
			if latencies[section] {
				for _, q := range []float64{0.9, 0.99} {
					cell := "" // of a rate, more is better, and there is only one
					if v, known := s.tail(q); len(s.Samples) > 1 {
						cell = number(v)
						if !known {
							cell, few = "*"+cell, true
						}
					}
					fmt.Fprintf(&b, " %10s", cell)
				}
			}
			fmt.Fprintf(&b, " %10s %10s %5d\n", number(s.min()), number(s.max()), len(s.Samples))
		}
	}
	explainFew(&b, few)
	if ratios := r.ratios(); len(ratios) > 0 {
		fmt.Fprintf(&b, "\n%-42s %10s %21s %5s\n", "Start to end, in starts of a peer", "median", "quartiles", "n")
		for _, x := range ratios {
			fmt.Fprintf(&b, "    %-38s %10s %21s %5d\n", x.Of+" / "+x.To, number(x.Median), number(x.Low)+" to "+number(x.High), x.Rounds)
		}
	}
	if len(r.Contention) > 0 {
		fmt.Fprintf(&b, "  Computations took %s times as long as on an idle machine (median; at worst %s).\n",
			number(median(r.Contention)), number(quantile(r.Contention, 1)))
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return err
	}
	if err := r.phaseTable(w); err != nil {
		return err
	}
	return r.troubleTable(w)
}

// explainFew says what the mark of a quantile means, where there was one.
func explainFew(b *strings.Builder, few bool) bool {
	if few {
		b.WriteString("  * the most of all: there are too few samples for this quantile\n")
	}
	return false
}

// troubleTable writes what failed and what was not measured.
func (r *Report) troubleTable(w io.Writer) error {
	var b strings.Builder
	for i, f := range r.Failures {
		if i == 0 {
			b.WriteString("\nFailed\n")
		}
		fmt.Fprintf(&b, "  %s, %s, %d times: %s\n", f.Subject, f.Metric, f.Count, f.Error)
	}
	for i, s := range r.Skipped {
		if i == 0 {
			b.WriteString("\nNot measured\n")
		}
		fmt.Fprintf(&b, "  %s, %s: %s\n", s.Subject, s.Section, s.Reason)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
