package main

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"manis/trace"
)

// Phase is a part of a subject's starts, as the trace of the runtime names it: medians of
// the starts in which there was such a part, in milliseconds.
type Phase struct {
	Subject string
	// Path is the phase's name after those of the phases that it is a part of: "start/boot".
	Path string
	// Start is counted from the start of the command, Self what none of the phase's parts took.
	Start, Took, Self float64
	// Starts is in how many starts there was such a phase.
	Starts int
}

func (p *Phase) depth() int { return strings.Count(p.Path, "/") }

func (p *Phase) name() string { return p.Path[strings.LastIndexByte(p.Path, '/')+1:] }

// Phases that no trace can know: what is before the runtime's first instruction, after
// the container's first word, and between all others.
const (
	phaseExec = "program start"
	phaseEnd  = "output to exit"
	phaseNone = "(in no phase)"
)

// phases gathers those of all starts.
type phases struct {
	subjects []string
	samples  map[string]map[string]*[3][]float64 // by subject and path: start, took, self
}

// add takes the phases of a start, if its runtime has told any.
func (p *phases) add(subject string, s *start) {
	if len(s.spans) == 0 {
		return
	}
	if p.samples == nil {
		p.samples = make(map[string]map[string]*[3][]float64)
	}
	if p.samples[subject] == nil {
		p.subjects = append(p.subjects, subject)
		p.samples[subject] = make(map[string]*[3][]float64)
	}
	for _, ph := range phasesOf(s) {
		all := p.samples[subject][ph.Path]
		if all == nil {
			all = new([3][]float64)
			p.samples[subject][ph.Path] = all
		}
		for i, v := range []float64{ph.Start, ph.Took, ph.Self} {
			all[i] = append(all[i], v)
		}
	}
}

// phasesOf are the parts of one start. The trace's first span is all that the runtime knows of
// it and not itself a part.
func phasesOf(s *start) []Phase {
	whole := s.spans[0]
	paths := map[int]string{}
	taken := map[string]bool{}
	var list []Phase
	at := map[string]int{}
	add := func(path string, begin, end time.Time) {
		for taken[path] {
			path += "'"
		}
		taken[path] = true
		at[path] = len(list)
		took := max(0, ms(end.Sub(begin)))
		list = append(list, Phase{Path: path, Start: ms(begin.Sub(s.begin)), Took: took, Self: took})
		if i := strings.LastIndexByte(path, '/'); i >= 0 {
			parent := &list[at[path[:i]]]
			parent.Self = max(0, parent.Self-took)
		}
	}
	add(phaseExec, s.begin, whole.Start)
	for _, span := range s.spans[1:] {
		path := span.Name
		if parent := paths[span.Parent]; parent != "" {
			path = parent + "/" + path
		}
		add(path, span.Start, later(span))
		paths[span.ID] = list[len(list)-1].Path
	}
	add(phaseEnd, later(whole), s.end)
	rest := ms(s.end.Sub(s.begin))
	for _, ph := range list {
		if ph.depth() == 0 {
			rest -= ph.Took
		}
	}
	rest = max(0, rest)
	list = append(list, Phase{Path: phaseNone, Took: rest, Self: rest})
	return list
}

// later is a span's end, if it has one.
func later(s trace.Span) time.Time {
	if s.End.Before(s.Start) {
		return s.Start
	}
	return s.End
}

// medians are the phases of every subject, each after what it is a part of, by time.
func (p *phases) medians() []Phase {
	var list []Phase
	for _, subject := range p.subjects {
		below := map[string][]Phase{}
		for path, all := range p.samples[subject] {
			parent := ""
			if i := strings.LastIndexByte(path, '/'); i >= 0 {
				parent = path[:i]
			}
			below[parent] = append(below[parent], Phase{subject, path, median(all[0]), median(all[1]), median(all[2]), len(all[0])})
		}
		var place func(parent string)
		place = func(parent string) {
			slices.SortFunc(below[parent], func(a, b Phase) int {
				return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.Path, b.Path))
			})
			for _, ph := range below[parent] {
				list = append(list, ph)
				place(ph.Path)
			}
		}
		place("")
	}
	return list
}
