package main

import (
	"fmt"
	"io"
	"strings"
)

// waterfall is a subject's phases as a drawing, one under the other, from left to right in time.
type waterfall struct {
	Subject       string
	Width, Height int
	Ticks         []tick
	Rows          []waterfallRow
}

type waterfallRow struct {
	Name, Value     string
	Indent          float64
	X, Y, Width     float64
	OfItself, Began string
}

const (
	phaseHeight = 20
	phaseIndent = 14
)

// waterfalls draws every subject that has told its phases.
func (r *Report) waterfalls() []waterfall {
	var list []waterfall
	for _, ph := range r.Phases {
		if len(list) == 0 || list[len(list)-1].Subject != ph.Subject {
			list = append(list, r.newWaterfall(ph.Subject))
		}
	}
	return list
}

func (r *Report) newWaterfall(subject string) waterfall {
	w := waterfall{Subject: subject, Width: labelWidth + plotWidth + valueWidth}
	end := 1.0
	for _, ph := range r.Phases {
		if ph.Subject == subject {
			end = max(end, ph.Start+ph.Took)
		}
	}
	scale := float64(plotWidth) / end
	for _, ph := range r.Phases {
		if ph.Subject != subject || ph.Path == phaseNone {
			continue
		}
		w.Rows = append(w.Rows, waterfallRow{
			Name: ph.name(), Value: number(ph.Took) + " ms", Indent: float64(ph.depth() * phaseIndent),
			X: labelWidth + ph.Start*scale, Y: float64(len(w.Rows) * phaseHeight), Width: max(1, ph.Took*scale),
			OfItself: number(ph.Self) + " ms by itself", Began: "from " + number(ph.Start) + " ms on",
		})
	}
	w.Height = len(w.Rows)*phaseHeight + 20
	for step, v := niceStep(end), 0.0; v <= end; v += step {
		w.Ticks = append(w.Ticks, tick{labelWidth + v*scale, number(v)})
	}
	return w
}

// phaseTable writes the phases for a terminal.
func (r *Report) phaseTable(w io.Writer) error {
	var b strings.Builder
	subject := ""
	for _, ph := range r.Phases {
		if ph.Subject != subject {
			subject = ph.Subject
			fmt.Fprintf(&b, "\n%-42s %10s %10s %10s %5s\n", "Phases of "+subject+", medians in ms", "from", "took", "by itself", "n")
		}
		fmt.Fprintf(&b, "  %-40s %10s %10s %10s %5d\n", strings.Repeat("  ", ph.depth())+ph.name(), number(ph.Start), number(ph.Took), number(ph.Self), ph.Starts)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

const waterfallHTML = `{{define "waterfall"}}
<h3>{{.Subject}} <small>(ms)</small></h3>
<svg viewBox="0 0 {{.Width}} {{.Height}}" role="img" aria-label="phases of {{.Subject}}">
{{$h := .Height}}{{range .Ticks}}<line class="grid" x1="{{.X}}" x2="{{.X}}" y1="0" y2="{{$h}}"/><text class="tick" x="{{add .X 3}}" y="{{$h}}">{{.Label}}</text>
{{end}}{{range .Rows}}<g class="ours"><title>{{.Began}}, {{.OfItself}}</title><text x="{{.Indent}}" y="{{add .Y 14}}">{{.Name}}</text><rect class="bar" x="{{.X}}" y="{{add .Y 3}}" width="{{.Width}}" height="14" rx="2"/><text x="{{edge}}" dx="10" y="{{add .Y 14}}">{{.Value}}</text></g>
{{end}}</svg>
{{end}}`
