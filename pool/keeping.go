package pool

import (
	"context"
	"slices"
	"sync"
	"time"

	"manis/container"
)

// keeping is the state of a pool that runs. Only the goroutine of Run touches it.
type keeping struct {
	*Pool
	ctx context.Context
	all sync.WaitGroup
	// start is when time began. Every time below counts from there, by the clock that nobody can set.
	start    time.Time
	settings Settings
	shelves  []*shelf
	// otherMisses are those of sizes that have no shelf, or have none any more.
	otherMisses uint64
	starts      map[string]*starts // under containerd, by what was started
	making      *machine
	pause       time.Duration // after the last failure
	retryAt     time.Duration
	calmTill    time.Duration
	busySince   time.Duration // or since the last machine was made; 0 while the host is not busy
	paused      string        // why nothing is made
	available   uint64        // of the host's memory, bytes

	measured, reviewed      time.Duration
	measuring, measureAgain bool
	reviewing, reviewAgain  bool
}

func (k *keeping) now() time.Duration { return time.Since(k.start) }

// later does something aside, and what it returns in the goroutine of Run.
func (k *keeping) later(do func() func(*keeping)) {
	k.all.Go(func() { k.tell(k.ctx, do()) })
}

// follow takes other settings.
func (k *keeping) follow(s Settings) {
	k.settings = s
	old := k.shelves
	k.shelves = nil
	for _, size := range s.Sizes {
		at := slices.IndexFunc(old, func(sh *shelf) bool { return sameSize(&sh.size.Container, &size.Container) })
		if at < 0 {
			k.shelves = append(k.shelves, &shelf{size: size})
			continue
		}
		sh := old[at]
		sh.size, sh.other = size, false
		k.shelves = append(k.shelves, sh)
		old = slices.Delete(old, at, at+1)
	}
	for _, sh := range old {
		// Demand decides about the rest, whoever wanted it until now.
		sh.size.Min, sh.size.Max, sh.other = 0, s.OtherMax, true
		k.shelves = append(k.shelves, sh)
	}
	k.retryAt, k.pause, k.calmTill = 0, 0, 0
	k.review()
}

// beat does what is due.
func (k *keeping) beat() {
	now := k.now()
	if now-k.reviewed >= reviewEvery {
		k.sweep()
		k.review()
	}
	if now-k.measured >= measureEvery {
		k.measure()
	}
}

// review finds out which machines the sizes mean: kernel, QEMU or the binary may have been
// replaced, and then nobody will ever claim what waits.
func (k *keeping) review() {
	k.reviewed = k.now()
	if k.reviewing {
		k.reviewAgain = true
		return
	}
	k.reviewing, k.reviewAgain = true, false
	k.kinds.forget()
	shelves, configs := slices.Clone(k.shelves), make([]container.Config, len(k.shelves))
	for i, sh := range shelves {
		configs[i] = sh.size.Container
	}
	k.later(func() func(*keeping) {
		found := make([]Kind, len(shelves))
		errs := make([]error, len(shelves))
		for i := range configs {
			found[i], errs[i] = k.kinds.get(k.ctx, &configs[i], k.Identify)
		}
		return func(k *keeping) {
			k.reviewing = false
			for i, sh := range shelves {
				switch {
				case !slices.Contains(k.shelves, sh):
				case errs[i] != nil:
					k.Log("machines of %s cannot be made: %v", &sh.size, errs[i])
				case sh.kind != found[i]:
					k.identified(sh, found[i])
				}
			}
			if k.reviewAgain {
				k.review()
			}
		}
	})
}

// identified gives a shelf its kind.
func (k *keeping) identified(sh *shelf, kind Kind) {
	if sh.kind.Key != "" {
		k.Log("machines of %s are made anew: what they are made of has changed", &sh.size)
		for _, m := range sh.machines {
			m.giveUp()
		}
	}
	sh.kind, sh.bytes = kind, 0
	at := slices.IndexFunc(k.shelves, func(twin *shelf) bool { return twin != sh && twin.kind == kind })
	if at < 0 {
		return
	}
	// Different limits may mean the same machine. What was configured stays.
	stays, goes := k.shelves[at], sh
	if stays.other {
		stays, goes = sh, stays
	}
	if !goes.other {
		k.Log("machines of %s are the same as those of %s: kept once", &goes.size, &stays.size)
		stays.size.Min, stays.size.Max = max(stays.size.Min, goes.size.Min), max(stays.size.Max, goes.size.Max)
	}
	stays.take(goes)
	k.shelves = slices.DeleteFunc(k.shelves, func(sh *shelf) bool { return sh == goes })
}

// missed counts a container that found no machine, and gives its size a place if there is one.
func (k *keeping) missed(kind Kind, cfg *container.Config) {
	others := 0
	for _, sh := range k.shelves {
		if sh.kind.Key == kind.Key || sh.kind.Key == "" && sameSize(&sh.size.Container, cfg) {
			sh.misses++
			sh.demand.Asked(k.now(), k.settings.Remember)
			return
		}
		if sh.other {
			others++
		}
	}
	if others >= k.settings.Others {
		k.otherMisses++
		return
	}
	sh := &shelf{size: Size{Container: sizeOf(cfg), Max: k.settings.OtherMax}, other: true, kind: kind}
	sh.misses++
	sh.demand.Asked(k.now(), k.settings.Remember)
	k.shelves = append(k.shelves, sh)
	k.Log("machines of %s were asked for", &sh.size)
}
