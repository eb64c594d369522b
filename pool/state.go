package pool

import (
	"slices"
	"time"
)

// State is what a pool has at a moment.
type State struct {
	Sizes []SizeState `json:"sizes"`
	// OtherMisses are containers of sizes that have no machines in the pool.
	OtherMisses uint64 `json:"otherMisses"`
	// Starts are what containerd's shims have told.
	Starts []StartState `json:"starts"`
	// Paused is why nothing is made though machines are missing; "" while that is not so.
	Paused string `json:"paused,omitempty"`
	// MemoryBytes is what all waiting machines take. They may take BudgetBytes, and of the host's
	// AvailableBytes are left, of which ReserveBytes have to stay.
	MemoryBytes    uint64 `json:"memoryBytes"`
	BudgetBytes    uint64 `json:"budgetBytes"`
	AvailableBytes uint64 `json:"availableBytes"`
	ReserveBytes   uint64 `json:"reserveBytes"`
}

// SizeState is what it has of one size.
type SizeState struct {
	Kind
	// Asked is true for a size that is not in the settings, but was asked for.
	Asked bool `json:"asked"`
	// Wanted machines are worth keeping, of which Granted fit into memory, and Waiting wait.
	Wanted  int  `json:"wanted"`
	Granted int  `json:"granted"`
	Waiting int  `json:"waiting"`
	Min     int  `json:"min"`
	Max     int  `json:"max"`
	Making  bool `json:"making"`
	// MemoryBytes is what those that wait take.
	MemoryBytes uint64 `json:"memoryBytes"`
	// PIDs are their processes.
	PIDs []int `json:"pids"`

	Claims   uint64    `json:"claims"`
	Misses   uint64    `json:"misses"`
	Died     uint64    `json:"died"`
	Failures uint64    `json:"failures"`
	GivenUp  uint64    `json:"givenUp"`
	Refill   Histogram `json:"refillSeconds"`
	Claim    Histogram `json:"claimSeconds"`
}

// counts are what a shelf counts.
type counts struct {
	claims, misses, died, failures, givenUp uint64
	refill                                  histogram[refillBounds]
	claim                                   histogram[claimBounds]
}

// state is a copy for others to read.
func (k *keeping) state() State {
	s := State{
		Sizes: []SizeState{}, OtherMisses: k.otherMisses, Starts: k.startStates(), Paused: k.paused,
		BudgetBytes: k.settings.Budget, AvailableBytes: k.available, ReserveBytes: k.settings.Reserve,
	}
	for _, sh := range k.shelves {
		one := SizeState{
			Kind: sh.kind, Asked: sh.other, Wanted: sh.want, Granted: sh.grant, Waiting: sh.waiting(), Min: sh.size.Min, Max: sh.size.Max,
			Making: k.making != nil && k.making.shelf == sh, PIDs: []int{},
			Claims: sh.claims, Misses: sh.misses, Died: sh.died, Failures: sh.failures, GivenUp: sh.givenUp,
			Refill: sh.refill.copy(), Claim: sh.claim.copy(),
		}
		for _, m := range sh.machines {
			if m.phase == waits {
				one.MemoryBytes += m.bytes
				one.PIDs = append(one.PIDs, m.pid)
			}
		}
		s.MemoryBytes += one.MemoryBytes
		s.Sizes = append(s.Sizes, one)
	}
	return s
}

// Histogram counts durations: Counts[i] of them took Bounds[i] seconds at most and more than the
// bound before; the last count has no bound.
type Histogram struct {
	Bounds []float64 `json:"bounds"`
	Counts []uint64  `json:"counts"`
	Sum    float64   `json:"sum"`
}

// histogram is one whose bounds are known from its type.
type histogram[B interface{ bounds() []float64 }] struct {
	counts []uint64
	sum    time.Duration
}

type refillBounds struct{}

func (refillBounds) bounds() []float64 {
	return []float64{0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300}
}

type claimBounds struct{}

func (claimBounds) bounds() []float64 {
	return []float64{0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1}
}

func (h *histogram[B]) observe(d time.Duration) {
	var b B
	bounds := b.bounds()
	if h.counts == nil {
		h.counts = make([]uint64, len(bounds)+1)
	}
	at, _ := slices.BinarySearch(bounds, d.Seconds())
	h.counts[at]++
	h.sum += d
}

func (h *histogram[B]) copy() Histogram {
	var b B
	bounds := b.bounds()
	if h.counts == nil {
		return Histogram{Bounds: bounds, Counts: make([]uint64, len(bounds)+1)}
	}
	return Histogram{Bounds: bounds, Counts: slices.Clone(h.counts), Sum: h.sum.Seconds()}
}
