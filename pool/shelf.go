package pool

import (
	"slices"
	"time"
)

// shelf is where machines of one kind wait.
type shelf struct {
	size   Size
	other  bool // nobody configured it: it was asked for
	kind   Kind // unknown while Key is ""
	demand Demand
	want   int // as demand says
	grant  int // as memory allows
	// machines wait, or are made, or were given up and have not ended yet.
	machines []*machine
	bytes    uint64 // what one takes; 0 while that is unknown
	counts
}

// make begins to make a machine.
func (k *keeping) make(sh *shelf) {
	m := &machine{shelf: sh}
	began := k.now()
	err := m.start(k.Pool, sh.size.Container)
	if err != nil {
		k.failed(sh, err)
		return
	}
	k.making = m
	sh.machines = append(sh.machines, m)
	k.all.Go(func() {
		m.follow(k.ctx, k.Pool, func(report string, took time.Duration) {
			k.tell(k.ctx, func(k *keeping) {
				switch report {
				case ready:
					k.ready(m, k.now()-began)
				case claimed:
					k.claimed(m, took)
				}
			})
		})
		k.tell(k.ctx, func(k *keeping) { k.ended(m) })
	})
}

// ready puts a machine on its shelf.
func (k *keeping) ready(m *machine, took time.Duration) {
	if k.making == m {
		k.making, k.pause, k.busySince = nil, 0, 0
	}
	if m.phase == isMade {
		m.phase = waits
	}
	m.shelf.refill.observe(took)
	k.measure()
}

// claimed takes a machine off: it is a container's, and nobody's here.
func (k *keeping) claimed(m *machine, took time.Duration) {
	m.phase = isGone
	m.shelf.claims++
	m.shelf.claim.observe(took)
	m.shelf.demand.Asked(k.now(), k.settings.Remember)
}

// ended forgets a machine whose process has ended, or was claimed.
func (k *keeping) ended(m *machine) {
	sh := m.shelf
	sh.machines = slices.DeleteFunc(sh.machines, func(o *machine) bool { return o == m })
	switch m.phase {
	case isMade:
		k.failed(sh, m.err)
	case waits:
		sh.died++
		k.Log("a waiting machine has ended: %v", m.err)
	}
	if k.making == m {
		k.making = nil
	}
}

// failed has the next machine made after a pause.
func (k *keeping) failed(sh *shelf, err error) {
	sh.failures++
	k.pause = min(max(2*k.pause, firstPause), lastPause)
	k.retryAt = k.now() + k.pause
	k.Log("a machine of %s could not be made: %v (the next attempt is in %v)", &sh.size, err, k.pause)
}

// waiting is how many machines can be claimed.
func (sh *shelf) waiting() (n int) {
	for _, m := range sh.machines {
		if m.phase == waits {
			n++
		}
	}
	return n
}

// average says what one machine takes; the last known figure stays when none waits.
func (sh *shelf) average() {
	var sum, n uint64
	for _, m := range sh.machines {
		if m.phase == waits && m.bytes > 0 {
			sum, n = sum+m.bytes, n+1
		}
	}
	if n > 0 {
		sh.bytes = sum / n
	}
}

// take takes over everything from another shelf for the same machines.
func (sh *shelf) take(from *shelf) {
	for _, m := range from.machines {
		m.shelf = sh
	}
	sh.machines = append(sh.machines, from.machines...)
	sh.claims += from.claims
	sh.misses += from.misses
	if from.demand.peak > sh.demand.peak {
		sh.demand = from.demand
	}
}
