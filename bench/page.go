package main

import (
	"html/template"
	"io"
	"math"
)

// html writes the report, and what runs before it said of starts, as one page that needs
// nothing else.
func (r *Report) html(w io.Writer, history []past) error {
	type section struct {
		Title, About string
		Charts       []chart
		Ratios       []Ratio
		Waterfalls   []waterfall
	}
	var sections []*section
	name := ""
	for _, g := range r.groups() {
		if g.Section != name {
			name = g.Section
			sections = append(sections, &section{Title: titles[name], About: about[name]})
			if name == "start" {
				sections[0].Ratios, sections[0].Waterfalls = r.ratios(), r.waterfalls()
			}
		}
		last := sections[len(sections)-1]
		last.Charts = append(last.Charts, newChart(g))
	}
	return page.Execute(w, struct {
		*Report
		Sections []*section
		History  *historyChart
	}{r, sections, newHistoryChart(history)})
}

// Sizes of a chart in its own units.
const (
	rowHeight  = 30
	labelWidth = 190
	plotWidth  = 560
	valueWidth = 190
)

// chart is one metric: a bar for each subject's median, a line from the least to
// the most, and a dot for each sample.
type chart struct {
	Metric, Unit, Better string
	Width, Height        int
	Ticks                []tick
	Bars                 []bar
}

type tick struct {
	X     float64
	Label string
}

type bar struct {
	Subject, Value     string
	Ours               bool
	Y, Width, From, To float64
	Dots               []float64
	// Tail is the slowest tenth and hundredth, of latencies.
	Tail string
}

func newChart(g *group) chart {
	c := chart{Metric: g.Metric, Unit: g.Unit, Better: "less is better", Width: labelWidth + plotWidth + valueWidth, Height: rowHeight*len(g.Series) + 26}
	if g.More {
		c.Better = "more is better"
	}
	top := 0.0
	for _, s := range g.Series {
		top = max(top, s.max())
	}
	step := niceStep(top)
	top = max(step, math.Ceil(top/step)*step)
	x := func(v float64) float64 { return labelWidth + v/top*plotWidth }
	for v := 0.0; v <= top*1.0001; v += step {
		c.Ticks = append(c.Ticks, tick{x(v), number(v)})
	}
	for i, s := range g.Series {
		b := bar{
			Subject: s.Subject, Value: number(s.median()) + " " + s.Unit,
			Ours: ours(s.Subject),
			Y:    float64(i*rowHeight) + 6, Width: x(s.median()) - labelWidth, From: x(s.min()), To: x(s.max()),
		}
		for _, v := range s.Samples {
			b.Dots = append(b.Dots, x(v))
		}
		if latencies[g.Section] && len(s.Samples) > 1 {
			b.Tail = tails(s)
		}
		c.Bars = append(c.Bars, b)
	}
	return c
}

// tails are a latency's p90 and p99 in words; those that the samples are too few for are left out.
func tails(s *Series) string {
	text := ""
	for _, q := range []struct {
		name  string
		share float64
	}{{"p90", 0.9}, {"p99", 0.99}} {
		if v, known := s.tail(q.share); known {
			text += q.name + " " + number(v) + ", "
		}
	}
	return text + "most " + number(s.max())
}

// niceStep divides an axis into about five parts of 1, 2 or 5.
func niceStep(top float64) float64 {
	if top <= 0 {
		return 1
	}
	step := math.Pow(10, math.Floor(math.Log10(top/5)))
	for _, f := range []float64{1, 2, 5, 10} {
		if top/(step*f) <= 6 {
			return step * f
		}
	}
	return step * 10
}

var page = template.Must(template.New("page").Funcs(template.FuncMap{
	"number": number, "median": median,
	"add": func(a, b float64) float64 { return a + b },
	"label": func() int {
		return labelWidth
	},
	"edge": func() int { return labelWidth + plotWidth },
}).Parse(pageHTML + waterfallHTML + historyHTML))

const pageHTML = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Manis benchmark, {{.Date.Format "2006-01-02 15:04"}}</title>
<style>
:root { --ink: #1c2024; --soft: #60646c; --line: #d9dce0; --paper: #fcfcfa; --ours: #b4541f; --peer: #8a97a6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #eceef0; --soft: #a0a6ad; --line: #3a3f45; --paper: #16181b; --ours: #f08b4e; --peer: #7b8896; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 960px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; }
h2 { font-size: 1.2rem; margin-top: 2.4rem; border-top: 1px solid var(--line); padding-top: 1rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .2rem; font-weight: 600; }
p, small, td, th { color: var(--soft); }
svg { width: 100%; height: auto; display: block; }
text { font: 13px system-ui, sans-serif; fill: var(--ink); }
.tick { fill: var(--soft); font-size: 11px; }
.grid { stroke: var(--line); }
.bar { fill: var(--peer); opacity: .75; } .ours .bar { fill: var(--ours); }
.spread { stroke: var(--ink); stroke-width: 1.5; }
.tail { fill: var(--soft); font-size: 11px; }
.line { fill: none; stroke: var(--peer); stroke-width: 2; } .ours .line { stroke: var(--ours); }
.wide { overflow-x: auto; }
circle { fill: var(--ink); opacity: .45; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .15rem 1rem .15rem 0; vertical-align: top; }
</style>
<h1>Manis benchmark</h1>
<p>{{.Date.Format "2 January 2006, 15:04"}} · {{.Host.CPU}}, {{.Host.CPUs}} CPUs, {{.Host.MemoryMB}} MB · Linux {{.Host.Kernel}} · {{.Host.QEMU}} · acceleration: {{.Host.Accel}} · load at the start: {{.Host.Load}}</p>
<p>Bars are medians of {{.Rounds}} interleaved rounds, lines reach from the least to the most, dots are single measurements.{{if .Contention}} Computations took {{number (median .Contention)}} times as long as on an idle machine (median over the starts).{{end}}</p>
{{range .Sections}}
<h2>{{.Title}}</h2>
<p>{{.About}}</p>
{{range .Charts}}
<h3>{{.Metric}} <small>({{.Unit}}, {{.Better}})</small></h3>
<svg viewBox="0 0 {{.Width}} {{.Height}}" role="img" aria-label="{{.Metric}}">
{{$h := .Height}}{{range .Ticks}}<line class="grid" x1="{{.X}}" x2="{{.X}}" y1="0" y2="{{$h}}"/><text class="tick" x="{{add .X 3}}" y="{{$h}}">{{.Label}}</text>
{{end}}{{range .Bars}}<g{{if .Ours}} class="ours"{{end}}>{{$y := .Y}}<text x="{{label}}" dx="-8" y="{{add .Y 13}}" text-anchor="end">{{.Subject}}</text>
<rect class="bar" x="{{label}}" y="{{.Y}}" width="{{.Width}}" height="18" rx="2"/><line class="spread" x1="{{.From}}" x2="{{.To}}" y1="{{add .Y 9}}" y2="{{add .Y 9}}"/>
{{range .Dots}}<circle cx="{{.}}" cy="{{add $y 9}}" r="2.2"/>{{end}}<text x="{{edge}}" dx="10" y="{{add .Y 13}}">{{.Value}}</text>{{if .Tail}}<text class="tail" x="{{edge}}" dx="10" y="{{add .Y 26}}">{{.Tail}}</text>{{end}}</g>
{{end}}</svg>
{{end}}{{if .Ratios}}<h3>Start to end, in starts of a peer</h3>
<table><tr><th>ratio<th>median<th>quartiles<th>rounds</tr>{{range .Ratios}}<tr><td>{{.Of}} / {{.To}}<td>{{number .Median}}<td>{{number .Low}} to {{number .High}}<td>{{.Rounds}}</tr>{{end}}</table>
{{end}}{{range .Waterfalls}}{{template "waterfall" .}}{{end}}{{end}}
{{if .History}}{{template "history" .History}}{{end}}
<h2>Conditions</h2>
<table>{{range $name, $version := .Versions}}<tr><th>{{$name}}<td>{{$version}}{{end}}</table>
{{if .Failures}}<h3>Failed</h3><table>{{range .Failures}}<tr><td>{{.Subject}}<td>{{.Metric}}<td>{{.Count}} times<td>{{.Error}}{{end}}</table>{{end}}
{{if .Skipped}}<h3>Not measured</h3><table>{{range .Skipped}}<tr><td>{{.Section}}<td>{{.Subject}}<td>{{.Reason}}{{end}}</table>{{end}}
</html>
`
