package pool

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// What can be started under containerd, and what can become of it. The sets are closed, so that nobody makes
// metrics without end.
const (
	PodStart       = "pod"       // a pod's machine, with its network
	ContainerStart = "container" // a container in it, or one that is alone, with its machine

	Started = "started"
	Refused = "refused" // it was asked for what Manis does not do
	Late    = "late"    // it was not done within its time
	Failed  = "failed"
)

var (
	startKinds   = []string{PodStart, ContainerStart}
	startResults = []string{Started, Refused, Late, Failed}
)

// maxStart bounds how long one took, as far as it is believed.
const maxStart = time.Hour

// Start is one, as who made it tells the pool.
type Start struct {
	What   string `json:"what"`
	Result string `json:"result"`
	// Seconds it took.
	Seconds float64 `json:"seconds"`
}

// Tell tells the pool with this directory of a start, if somebody keeps one. As Miss, it waits for nobody and cannot fail.
func Tell(dir string, s Start) {
	if body, err := json.Marshal(s); err == nil {
		notify(dir, "/started", body)
	}
}

func parseStart(b []byte) (*Start, error) {
	s := new(Start)
	if err := json.Unmarshal(b, s); err != nil {
		return nil, err
	}
	switch {
	case !slices.Contains(startKinds, s.What):
		return nil, fmt.Errorf("a %.20q cannot be started", s.What)
	case !slices.Contains(startResults, s.Result):
		return nil, fmt.Errorf("%.20q is no result of a start", s.Result)
	case !(s.Seconds >= 0 && s.Seconds <= maxStart.Seconds()):
		return nil, errors.New("a start takes from nothing to an hour")
	}
	return s, nil
}

type startBounds struct{}

func (startBounds) bounds() []float64 {
	return []float64{0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120}
}

// starts are those of one kind.
type starts struct {
	results map[string]uint64
	took    histogram[startBounds] // of those that were started
}

// started counts one.
func (k *keeping) started(s *Start) {
	if k.starts == nil {
		k.starts = map[string]*starts{}
	}
	one := k.starts[s.What]
	if one == nil {
		one = &starts{results: map[string]uint64{}}
		k.starts[s.What] = one
	}
	one.results[s.Result]++
	if s.Result == Started {
		one.took.observe(time.Duration(s.Seconds * float64(time.Second)))
	}
}

// StartState is what the pool was told of starts of one kind.
type StartState struct {
	What    string            `json:"what"`
	Results map[string]uint64 `json:"results"`
	Took    Histogram         `json:"seconds"`
}

// startStates has all kinds and results, also those of which there was none yet.
func (k *keeping) startStates() (list []StartState) {
	for _, what := range startKinds {
		s := StartState{What: what, Results: map[string]uint64{}, Took: new(histogram[startBounds]).copy()}
		one := k.starts[what]
		for _, result := range startResults {
			if one != nil {
				s.Results[result] = one.results[result]
			} else {
				s.Results[result] = 0
			}
		}
		if one != nil {
			s.Took = one.took.copy()
		}
		list = append(list, s)
	}
	return list
}
