package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/docker/go-units"

	"manis/cli/present"
	"manis/cli/terminal"
	"manis/image"
)

// progress shows how a pull, a load or a conversion goes: on a terminal a line per
// layer that is redrawn, elsewhere a line when something is done.
type progress struct {
	out      io.Writer
	quiet    bool
	terminal bool
	columns  int

	mu    sync.Mutex
	lines []*progressLine
	byID  map[string]*progressLine
	drawn int       // lines on the screen
	last  time.Time // of drawing
}

type progressLine struct {
	id    string
	event image.Event
	since time.Time
}

// redraw is how often lines are drawn at most.
const redraw = 100 * time.Millisecond

func (a *app) progress(out *os.File, quiet bool) *progress {
	p := &progress{out: out, quiet: quiet, terminal: terminal.Is(out), byID: make(map[string]*progressLine)}
	if p.terminal {
		_, columns := terminal.Size(out)
		p.columns = int(columns)
	}
	return p
}

// event is an image.Progress.
func (p *progress) event(e image.Event) {
	if p.quiet {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	line := p.byID[e.ID]
	news := line == nil || line.event.Phase != e.Phase
	if line == nil {
		line = &progressLine{id: e.ID, since: time.Now()}
		p.byID[e.ID] = line
		p.lines = append(p.lines, line)
	}
	line.event = e
	switch {
	case p.terminal && (news || time.Since(p.last) >= redraw):
		p.draw()
	case !p.terminal && news:
		if s := plainProgress(e); s != "" {
			fmt.Fprintln(p.out, s)
		}
	}
}

// close draws the last state.
func (p *progress) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal && !p.quiet && len(p.lines) > 0 {
		p.draw()
	}
}

func (p *progress) draw() {
	var b strings.Builder
	if p.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", p.drawn)
	}
	for _, l := range p.lines {
		b.WriteString("\r\x1b[2K")
		b.WriteString(present.Ellipsis(l.text(), max(p.columns-1, 20)))
		b.WriteString("\n")
	}
	p.drawn, p.last = len(p.lines), time.Now()
	io.WriteString(p.out, b.String())
}

// plainProgress is the line for a log: what is done, not what is under way.
func plainProgress(e image.Event) string {
	id := progressID(e.ID)
	switch e.Phase {
	case image.Resolving:
		return "Resolving " + id
	case image.Exists:
		return id + ": Already exists"
	case image.Retrying:
		return id + ": Retrying: " + e.Note
	case image.Downloaded:
		return id + ": Pull complete"
	case image.Converting:
		return id + ": Building root filesystem"
	}
	return ""
}

func progressID(id string) string {
	if strings.HasPrefix(id, "sha256:") {
		return present.ShortID(id)
	}
	return id
}

var phaseText = map[image.Phase]string{
	image.Resolving: "Resolving", image.Waiting: "Waiting", image.Exists: "Already exists",
	image.Downloading: "Downloading", image.Retrying: "Retrying", image.Downloaded: "Pull complete",
	image.Loading: "Loading", image.Converting: "Building root filesystem", image.Done: "Done",
}

func (l *progressLine) text() string {
	e := l.event
	s := progressID(e.ID) + ": " + phaseText[e.Phase]
	switch e.Phase {
	case image.Downloading, image.Loading, image.Converting:
		if e.Total > 0 {
			s += " " + bar(e.Current, e.Total, 40)
		}
		s += " " + units.HumanSizeWithPrecision(float64(e.Current), 4)
		if e.Total > 0 {
			s += "/" + units.HumanSizeWithPrecision(float64(e.Total), 4)
		}
	}
	if e.Note != "" {
		s += " (" + e.Note + ")"
	}
	return s
}

// bar draws a share of width characters.
func bar(done, total int64, width int) string {
	filled := int(min(max(done, 0), total) * int64(width) / total)
	if filled == width {
		return "[" + strings.Repeat("=", width) + "]"
	}
	return "[" + strings.Repeat("=", filled) + ">" + strings.Repeat(" ", width-filled-1) + "]"
}
