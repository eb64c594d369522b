package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// past is what one run said of starts, in the order of runs.
type past struct {
	Date time.Time
	// Medians are those of starts from beginning to end, in milliseconds, by subject.
	Medians map[string]float64
	Ratios  []Ratio
}

// readHistory reads all runs that are kept in a directory, oldest first. Those that did not
// measure starts are left out.
func readHistory(dir string) ([]past, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	var list []past
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		r := new(Report)
		if err := json.Unmarshal(text, r); err != nil {
			return nil, fmt.Errorf("read the history: %s: %w", name, err)
		}
		if p := r.past(); len(p.Medians) > 0 {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b past) int { return a.Date.Compare(b.Date) })
	return list, nil
}

// past is what is kept of the report in a history.
func (r *Report) past() past {
	r.rename()
	p := past{Date: r.Date, Medians: make(map[string]float64), Ratios: r.ratios()}
	for _, s := range r.Series {
		if s.Section == "start" && s.Metric == toExit {
			p.Medians[s.Subject] = s.median()
		}
	}
	return p
}

// rename gives the subjects of early runs the names that they have now. Manis by itself
// was booted until there were templates, and from then on came from one.
func (r *Report) rename() {
	const plain = "manis"
	now := "manis, booted"
	if r.find("start", toExit, now) != nil {
		now = "manis, template"
	}
	for _, s := range r.Series {
		if s.Section == "start" && s.Subject == plain {
			s.Subject = now
		}
	}
}

// ratio returns the median of one, or 0.
func (p *past) ratio(of, to string) float64 {
	for _, r := range p.Ratios {
		if r.Of == of && r.To == to {
			return r.Median
		}
	}
	return 0
}

// subjectsOf are all that appear in a history, ours first.
func subjectsOf(history []past) []string {
	var names []string
	for _, p := range history {
		for name := range p.Medians {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		if ours(a) != ours(b) {
			if ours(a) {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	return names
}

// cells are what is to be read of a subject: its median, and its ratios to the peers.
func (p *past) cells(subject string) []string {
	m, ok := p.Medians[subject]
	if !ok {
		return []string{"", ""}
	}
	var ratios []string
	for _, peer := range peersOfRatios {
		if r := p.ratio(subject, peer); r > 0 {
			ratios = append(ratios, number(r)+"× "+peer)
		}
	}
	return []string{number(m), strings.Join(ratios, ", ")}
}

// historyTable writes a history for a terminal.
func historyTable(w io.Writer, history []past) error {
	var b strings.Builder
	fmt.Fprintf(&b, "\nStart to end over all runs, median in ms\n")
	for _, p := range history {
		fmt.Fprintf(&b, "  %s\n", p.Date.Format("2006-01-02 15:04"))
		for _, name := range subjectsOf(history) {
			if cells := p.cells(name); cells[0] != "" {
				fmt.Fprintf(&b, "    %-20s %8s  %s\n", name, cells[0], cells[1])
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// historyChart is a line for each subject, over the runs, with a logarithmic axis: what matters
// is how many times as fast something became.
type historyChart struct {
	Width, Height int
	Ticks         []tickMark
	Dates         []tickMark
	Lines         []line
	Names         []string
	Rows          []historyRow
}

type tickMark struct {
	At    float64
	Label string
}

type line struct {
	Subject string
	Ours    bool
	Points  string // of a polyline
	Dots    [][2]float64
	LabelY  float64
}

type historyRow struct {
	Date  string
	Cells [][]string
}

const (
	historyHeight = 260
	historyMargin = 24
	// lineGap is the least distance of two names.
	lineGap = 15
)

func newHistoryChart(history []past) *historyChart {
	if len(history) == 0 {
		return nil
	}
	c := &historyChart{Width: labelWidth + plotWidth + valueWidth, Height: historyHeight, Names: subjectsOf(history)}
	least, most := math.Inf(1), 0.0
	for _, p := range history {
		for _, m := range p.Medians {
			if m > 0 {
				least, most = min(least, m), max(most, m)
			}
		}
	}
	low, high := math.Floor(math.Log10(least)), math.Ceil(math.Log10(most)+1e-9)
	y := func(v float64) float64 {
		return historyMargin/2 + (high-math.Log10(v))/(high-low)*(historyHeight-2*historyMargin)
	}
	x := func(i int) float64 {
		return 60 + float64(i)*(labelWidth+plotWidth-70)/float64(max(1, len(history)-1))
	}
	for e := low; e <= high; e++ {
		v := math.Pow(10, e)
		c.Ticks = append(c.Ticks, tickMark{y(v), number(v) + " ms"})
	}
	for i, p := range history {
		if i == 0 || i == len(history)-1 || len(history) <= 8 {
			c.Dates = append(c.Dates, tickMark{x(i), p.Date.Format("01-02 15:04")})
		}
	}
	for _, name := range c.Names {
		l := line{Subject: name, Ours: ours(name)}
		var points []string
		for i, p := range history {
			if m := p.Medians[name]; m > 0 {
				points = append(points, fmt.Sprintf("%.1f,%.1f", x(i), y(m)))
				l.Dots = append(l.Dots, [2]float64{x(i), y(m)})
				l.LabelY = y(m)
			}
		}
		l.Points = strings.Join(points, " ")
		c.Lines = append(c.Lines, l)
	}
	slices.SortStableFunc(c.Lines, func(a, b line) int { return int(a.LabelY - b.LabelY) })
	for i := 1; i < len(c.Lines); i++ {
		c.Lines[i].LabelY = max(c.Lines[i].LabelY, c.Lines[i-1].LabelY+lineGap)
	}
	for _, p := range slices.Backward(history) {
		row := historyRow{Date: p.Date.Format("2006-01-02 15:04")}
		for _, name := range c.Names {
			row.Cells = append(row.Cells, p.cells(name))
		}
		c.Rows = append(c.Rows, row)
	}
	return c
}

const historyHTML = `{{define "history"}}
<h2>History</h2>
<p>Medians of starts from beginning to end, over all runs that were kept, and the medians of the rounds' ratios to the peers. The machine was not always equally idle: ratios tell more than milliseconds.</p>
<svg viewBox="0 0 {{.Width}} {{.Height}}" role="img" aria-label="start to end over all runs">
{{$w := .Width}}{{$h := .Height}}{{range .Ticks}}<line class="grid" x1="0" x2="{{edge}}" y1="{{.At}}" y2="{{.At}}"/><text class="tick" x="0" y="{{add .At -3}}">{{.Label}}</text>
{{end}}{{range .Dates}}<text class="tick" x="{{.At}}" y="{{$h}}" text-anchor="middle">{{.Label}}</text>
{{end}}{{range .Lines}}<g{{if .Ours}} class="ours"{{end}}><polyline class="line" points="{{.Points}}"/>{{range .Dots}}<circle cx="{{index . 0}}" cy="{{index . 1}}" r="3"/>{{end}}<text x="{{edge}}" dx="6" y="{{add .LabelY 4}}">{{.Subject}}</text></g>
{{end}}</svg>
<div class="wide"><table><tr><th>run{{range .Names}}<th>{{.}}, ms{{end}}</tr>{{range .Rows}}<tr><td>{{.Date}}{{range .Cells}}<td>{{index . 0}}<br><small>{{index . 1}}</small>{{end}}</tr>{{end}}</table></div>
{{end}}`
