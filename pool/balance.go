package pool

import (
	"slices"
	"time"
)

// balance makes the pool what it should be: it gives up what is too much, and begins to make
// what is missing most.
func (k *keeping) balance() {
	now := k.now()
	k.plan(now)
	k.shelves = slices.DeleteFunc(k.shelves, func(sh *shelf) bool {
		gone := sh.other && sh.want == 0 && len(sh.machines) == 0
		if gone {
			k.otherMisses += sh.misses
		}
		return gone
	})
	for _, sh := range k.shelves {
		// The last to be made goes first: who claims begins with the others.
		for i := len(sh.machines) - 1; i >= 0 && sh.waiting() > sh.grant; i-- {
			m := sh.machines[i]
			if m.phase != waits {
				continue
			}
			if sh.grant < sh.want {
				k.calmTill = now + calm
			}
			sh.givenUp++
			m.giveUp()
		}
	}
	if k.making != nil {
		return
	}
	next := k.next()
	k.paused = ""
	busy := k.busy(now)
	switch {
	case next == nil:
	case now < k.retryAt:
		k.paused = "the last machine could not be made"
	case now < k.calmTill:
		k.paused = "memory was short"
	case busy:
		k.paused = "the host is busy"
	default:
		k.make(next)
	}
}

// busy reports whether others need the host's processors so much that making a machine can wait.
func (k *keeping) busy(now time.Duration) bool {
	pressure, err := k.Host.Pressure()
	if err != nil || k.settings.MaxPressure == 0 || pressure <= k.settings.MaxPressure {
		k.busySince = 0
		return false
	}
	if k.busySince == 0 {
		k.busySince = now
	}
	return now-k.busySince < busyPause
}

// plan says how many machines each shelf should have.
func (k *keeping) plan(now time.Duration) {
	needs := make([]need, len(k.shelves))
	var held, guess uint64
	for _, sh := range k.shelves {
		guess = max(guess, sh.bytes)
	}
	if guess == 0 {
		guess = firstGuess
	}
	for i, sh := range k.shelves {
		sh.want = sh.demand.Want(now, k.settings.Remember, sh.size.Min, sh.size.Max)
		if sh.kind.Key == "" {
			sh.want = 0
		}
		bytes := sh.bytes
		if bytes == 0 {
			bytes = guess
		}
		needs[i] = need{least: sh.size.Min, want: sh.want, bytes: bytes}
		for _, m := range sh.machines {
			if m.bytes > 0 {
				held += m.bytes
			} else {
				held += bytes
			}
		}
	}
	room := k.settings.Budget
	if available, err := k.Host.Available(); err == nil {
		k.available = available
		room = min(room, held+available-min(held+available, k.settings.Reserve))
	}
	for i, n := range fit(needs, room) {
		k.shelves[i].grant = n
	}
}

// next is the shelf that a machine is made for next: one without any before the others.
func (k *keeping) next() *shelf {
	var found *shelf
	for _, sh := range k.shelves {
		if sh.waiting() >= sh.grant {
			continue
		}
		if found == nil || sh.waiting() == 0 && found.waiting() > 0 {
			found = sh
		}
	}
	return found
}

// measure finds out how much memory the machines take.
func (k *keeping) measure() {
	k.measured = k.now()
	if k.measuring {
		k.measureAgain = true
		return
	}
	k.measureAgain = false
	var all []*machine
	var pids []int
	for _, sh := range k.shelves {
		for _, m := range sh.machines {
			if m.phase == waits {
				all, pids = append(all, m), append(pids, m.pid)
			}
		}
	}
	if len(all) == 0 {
		return
	}
	k.measuring = true
	k.later(func() func(*keeping) {
		bytes := k.Host.Memory(pids)
		return func(k *keeping) {
			k.measuring = false
			for i, m := range all {
				m.bytes = bytes[i]
			}
			for _, sh := range k.shelves {
				sh.average()
			}
			if k.measureAgain {
				k.measure()
			}
		}
	})
}
