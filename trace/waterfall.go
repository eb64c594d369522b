package trace

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Style says how a waterfall is drawn. The zero value is for a file or a pipe: 80 columns of ASCII.
type Style struct {
	Columns int  // of the terminal; 80 when 0
	Unicode bool // bars of block elements, to an eighth of a column
	Color   bool // ANSI escapes
}

// Waterfall draws spans as a table: one line each with its name, indented below its parent's, a bar where it
// lies in time, and its duration in milliseconds.
func Waterfall(w io.Writer, spans []Span, style Style) error {
	out := bufio.NewWriter(w)
	rows, begin, end := layout(spans)
	if len(rows) == 0 {
		return nil
	}
	if style.Columns <= 0 {
		style.Columns = 80
	}
	names, durations := 0, 0
	for _, r := range rows {
		names = max(names, r.width())
		durations = max(durations, len(r.duration()))
	}
	const minBar, gaps = 10, 4 // two spaces before and behind the bar
	names = min(names, max(8, style.Columns-durations-gaps-minBar))
	bar := max(minBar, style.Columns-names-durations-gaps)
	for _, r := range rows {
		r.draw(out, style, names, bar, durations, begin, end.Sub(begin))
	}
	return out.Flush()
}

type row struct {
	Span
	depth int
}

// layout puts spans below their parents, by time, and finds the ends of it all.
func layout(spans []Span) (rows []row, begin, end time.Time) {
	children := map[int][]Span{}
	known := map[int]bool{}
	for _, s := range spans {
		known[s.ID] = true
	}
	for _, s := range spans {
		if s.End.Before(s.Start) {
			s.End = s.Start // not ended
		}
		if begin.IsZero() || s.Start.Before(begin) {
			begin = s.Start
		}
		if s.End.After(end) {
			end = s.End
		}
		parent := s.Parent
		if !known[parent] || parent >= s.ID {
			parent = 0
		}
		children[parent] = append(children[parent], s)
	}
	var place func(parent, depth int)
	place = func(parent, depth int) {
		below := children[parent]
		delete(children, parent) // each once, whatever the numbers say
		slices.SortStableFunc(below, func(a, b Span) int {
			return cmp.Or(a.Start.Compare(b.Start), b.End.Compare(a.End), cmp.Compare(a.ID, b.ID))
		})
		for _, s := range below {
			rows = append(rows, row{s, depth})
			place(s.ID, depth+1)
		}
	}
	place(0, 0)
	return rows, begin, end
}

func (r row) label() string { return strings.Repeat("  ", r.depth) + r.Name }

func (r row) width() int { return utf8.RuneCountInString(r.label()) }

func (r row) duration() string {
	return fmt.Sprintf("%.1f ms", float64(r.End.Sub(r.Start))/float64(time.Millisecond))
}

const (
	dim   = "\x1b[2m"
	plain = "\x1b[0m"
)

// colors are of the top levels; deeper ones take turns.
var colors = []string{"\x1b[36m", "\x1b[34m", "\x1b[35m", "\x1b[32m"}

func (r row) draw(out *bufio.Writer, style Style, names, bar, durations int, begin time.Time, total time.Duration) {
	label := r.label()
	if n := utf8.RuneCountInString(label); n > names {
		label = string([]rune(label)[:names-1]) + "~"
	}
	drawn := r.bar(style, bar, begin, total)
	pad := strings.Repeat(" ", bar-utf8.RuneCountInString(drawn))
	if style.Color {
		drawn = colors[r.depth%len(colors)] + drawn + plain
	}
	fmt.Fprintf(out, "%s%s  %s%s  %*s", label, strings.Repeat(" ", names-utf8.RuneCountInString(label)),
		drawn, pad, durations, r.duration())
	if len(r.Attributes) > 0 {
		if style.Color {
			out.WriteString(dim)
		}
		for _, k := range slices.Sorted(maps.Keys(r.Attributes)) {
			fmt.Fprintf(out, "  %s=%s", k, r.Attributes[k])
		}
		if style.Color {
			out.WriteString(plain)
		}
	}
	out.WriteByte('\n')
}

// bar draws the span into a field of width columns: spaces up to its beginning, then the bar itself, which is
// never empty.
func (r row) bar(style Style, width int, begin time.Time, total time.Duration) string {
	const eighths = 8
	units := func(d time.Duration) int {
		if total <= 0 {
			return 0
		}
		return int(float64(d) / float64(total) * float64(width*eighths))
	}
	from := min(units(r.Start.Sub(begin))/eighths, width-1)
	length := min(max(units(r.End.Sub(begin))-from*eighths, 1), (width-from)*eighths)
	full, rest := length/eighths, length%eighths
	if !style.Unicode {
		if rest > 0 && full == 0 || rest >= eighths/2 {
			full++
		}
		return strings.Repeat(" ", from) + strings.Repeat("#", min(full, width-from))
	}
	drawn := strings.Repeat(" ", from) + strings.Repeat("█", full)
	if rest > 0 {
		drawn += string([]rune("▏▎▍▌▋▊▉")[rest-1])
	}
	return drawn
}
