package main

import (
	"math"
	"slices"
)

// Ratio is how many times as long one subject's starts take as another's. Both are measured in
// turn, so that a round's two starts were made on the same machine in the same state: the ratio
// is formed per round, and these are quartiles of the rounds.
type Ratio struct {
	Of, To            string
	Median, Low, High float64
	Rounds            int
	// Phases are the medians of what each phase of Of takes by itself, in the same unit: starts
	// of To.
	Phases map[string]float64 `json:",omitempty"`
}

// peersOfRatios are those that ratios are formed to: the usual runtime, and the one that promises
// what Manis promises.
var peersOfRatios = []string{"runc", "runsc"}

// ratios are those of Manis in its ways to the peers, as far as both were measured.
func (r *Report) ratios() []Ratio {
	var list []Ratio
	for _, of := range r.Series {
		if of.Section != "start" || of.Metric != toExit || !ours(of.Subject) {
			continue
		}
		for _, name := range peersOfRatios {
			to := r.find("start", toExit, name)
			if to == nil {
				continue
			}
			var rounds []float64
			for i := range min(len(of.Samples), len(to.Samples)) {
				if to.Samples[i] > 0 {
					rounds = append(rounds, of.Samples[i]/to.Samples[i])
				}
			}
			if len(rounds) == 0 {
				continue
			}
			ratio := Ratio{Of: of.Subject, To: name, Rounds: len(rounds),
				Median: rounded(median(rounds)), Low: rounded(quantile(rounds, 0.25)), High: rounded(quantile(rounds, 0.75))}
			for _, ph := range r.Phases {
				if ph.Subject == of.Subject {
					if ratio.Phases == nil {
						ratio.Phases = make(map[string]float64)
					}
					ratio.Phases[ph.Path] = rounded(ph.Self / to.median())
				}
			}
			list = append(list, ratio)
		}
	}
	return list
}

// find returns a series, or nil.
func (r *Report) find(section, metric, subject string) *Series {
	i := slices.IndexFunc(r.Series, func(s *Series) bool {
		return s.Section == section && s.Metric == metric && s.Subject == subject
	})
	if i < 0 {
		return nil
	}
	return r.Series[i]
}

// rounded keeps a thousandth: files of ratios are read by people.
func rounded(x float64) float64 { return math.Round(x*1000) / 1000 }
