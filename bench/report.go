package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Report is everything that one run measured, as it is kept in a JSON file.
type Report struct {
	Date     time.Time
	Host     Host
	Rounds   int
	Versions map[string]string
	Series   []*Series
	// Phases are the parts of the starts that were measured.
	Phases []Phase `json:",omitempty"`
	// Contention is what contention said before each start.
	Contention []float64 `json:",omitempty"`
	// Failures are the starts that should have succeeded.
	Failures []Failure `json:",omitempty"`
	// Skipped says what was not measured, and why.
	Skipped []Skip
}

// Host is the machine that the numbers are true for.
type Host struct {
	CPU      string
	CPUs     int
	MemoryMB uint64
	Kernel   string
	QEMU     string
	Accel    string
	Load     string // load average at the start
}

// Series is one quantity of one subject.
type Series struct {
	Section string // "start"
	Metric  string // "to first output"
	Subject string // "manis"
	Unit    string // ms, MB/s, MB
	// More says that more is better.
	More    bool
	Samples []float64
}

// Skip is something that was left out.
type Skip struct{ Section, Subject, Reason string }

// Failure is an error, and how many starts had it.
type Failure struct {
	Section, Metric, Subject, Error string
	Count                           int
}

// add appends a sample to the series, which is made with the first.
func (r *Report) add(section, metric, subject, unit string, more bool, sample float64) {
	for _, s := range r.Series {
		if s.Section == section && s.Metric == metric && s.Subject == subject {
			s.Samples = append(s.Samples, sample)
			return
		}
	}
	r.Series = append(r.Series, &Series{Section: section, Metric: metric, Subject: subject, Unit: unit, More: more, Samples: []float64{sample}})
}

// skip notes once that something was left out.
func (r *Report) skip(section, subject string, reason error) {
	s := Skip{section, subject, strings.Join(strings.Fields(reason.Error()), " ")}
	if !slices.Contains(r.Skipped, s) {
		r.Skipped = append(r.Skipped, s)
	}
}

// fail notes that a start failed, and counts those that failed alike.
func (r *Report) fail(section, metric, subject string, err error) {
	f := Failure{section, metric, subject, strings.Join(strings.Fields(err.Error()), " "), 1}
	for i, known := range r.Failures {
		if known.Count = 1; known == f {
			r.Failures[i].Count++
			return
		}
	}
	r.Failures = append(r.Failures, f)
}

// quantile of samples, by linear interpolation.
func quantile(samples []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(samples))
	if len(sorted) == 0 {
		return 0
	}
	at := q * float64(len(sorted)-1)
	i := int(at)
	if i+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}

func median(samples []float64) float64 { return quantile(samples, 0.5) }

func (s *Series) median() float64 { return median(s.Samples) }
func (s *Series) min() float64    { return quantile(s.Samples, 0) }
func (s *Series) max() float64    { return quantile(s.Samples, 1) }

// tail is the least sample that a share q of all do not exceed. Of samples that are too few to have
// any above it, that is the most of them, and known is false: a p99 takes a hundred.
func (s *Series) tail(q float64) (value float64, known bool) {
	n := len(s.Samples)
	if n == 0 {
		return 0, false
	}
	rank := min(n, max(1, int(math.Ceil(q*float64(n)-1e-9))))
	return slices.Sorted(slices.Values(s.Samples))[rank-1], rank < n
}

// ours reports whether a subject is Manis.
func ours(subject string) bool { return strings.HasPrefix(subject, "manis") }

// number formats a sample with three digits that matter.
func number(x float64) string {
	switch {
	case x >= 100 || x == 0:
		return fmt.Sprintf("%.0f", x)
	case x >= 10:
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.2f", x)
}

// group is the series of one metric.
type group struct {
	Section, Metric, Unit string
	More                  bool
	Series                []*Series
}

// groups are the metrics in the order of their first samples.
func (r *Report) groups() []*group {
	var list []*group
next:
	for _, s := range r.Series {
		for _, g := range list {
			if g.Section == s.Section && g.Metric == s.Metric {
				g.Series = append(g.Series, s)
				continue next
			}
		}
		list = append(list, &group{s.Section, s.Metric, s.Unit, s.More, []*Series{s}})
	}
	slices.SortStableFunc(list, func(a, b *group) int {
		return cmp.Compare(slices.Index(sectionNames, a.Section), slices.Index(sectionNames, b.Section))
	})
	return list
}

// save writes the numbers and the page, and returns their names.
func (r *Report) save(dir string) (data, page string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", "", err
	}
	base := filepath.Join(dir, r.Date.Format("2006-01-02-150405"))
	text, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return "", "", err
	}
	data, page = base+".json", base+".html"
	if err := os.WriteFile(data, append(text, '\n'), 0o644); err != nil {
		return "", "", err
	}
	past, err := readHistory(dir)
	if err != nil {
		return "", "", err
	}
	f, err := os.Create(page)
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	if err := r.html(f, past); err != nil {
		return "", "", err
	}
	return data, page, f.Close()
}
