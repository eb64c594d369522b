package main

import (
	"fmt"
	"io"
	"strings"
)

// table writes the report for a terminal.
func (r *Report) table(w io.Writer) error {
	var b strings.Builder
	section := ""
	for _, g := range r.groups() {
		if g.Section != section {
			section = g.Section
			fmt.Fprintf(&b, "\n%-42s %10s %10s %10s %5s\n", titles[section], "median", "least", "most", "n")
		}
		fmt.Fprintf(&b, "  %s, %s\n", g.Metric, g.Unit)
		for _, s := range g.Series {
			fmt.Fprintf(&b, "    %-38s %10s %10s %10s %5d\n", s.Subject, number(s.median()), number(s.min()), number(s.max()), len(s.Samples))
		}
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
