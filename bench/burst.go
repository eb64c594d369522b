package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// refilledPool is the size of the pool in bursts: manisd's own.
const refilledPool = 2

// burstTime is the longest that one start of a burst may take: dozens share few processors.
const burstTime = 10 * time.Minute

// bursts starts many containers at once and many one after the other, from the template and out
// of a pool that is being refilled meanwhile.
func (b *bench) bursts(ctx context.Context) error {
	if b.manis == nil {
		return nil
	}
	// The first start of all fills the caches of programs.
	if _, err := startOf(ctx, b.manis); err != nil {
		b.skip("burst", b.manis.name(), err)
		return ctx.Err()
	}
	for _, w := range ways {
		m := b.manis.variant(w.label, w.flags...)
		before := func() error { return nil }
		switch {
		case w.pool:
			p, err := startPool(m, b.w.run, refilledPool)
			if err != nil {
				b.skip("burst", w.label, err)
				continue
			}
			defer p.stop()
			before = func() error { return p.fill(ctx) }
		case w.slow:
			continue
		}
		for _, kind := range []struct {
			metric       string
			starts, once int
		}{
			{fmt.Sprintf("%d at once", b.atOnce), b.atOnce, b.atOnce},
			{fmt.Sprintf("%d in sequence", b.inARow), b.inARow, 1},
		} {
			if err := before(); err != nil {
				b.skip("burst", w.label, err)
				continue
			}
			b.burst(ctx, m, kind.metric, kind.starts, kind.once)
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	b.progress("")
	return nil
}

// burst makes a number of starts, so many of them at a time.
func (b *bench) burst(ctx context.Context, m *manis, metric string, starts, atOnce int) {
	ctx, cancel := context.WithTimeout(ctx, burstTime)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	places := make(chan struct{}, atOnce)
	ended, failed, claimed := 0, 0, 0
	begin := time.Now()
	for range starts {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			// A container's name is the subject's state.
			st, err := startOf(ctx, m.variant(m.label))
			mu.Lock()
			defer mu.Unlock()
			ended++
			b.progress(fmt.Sprintf("burst, %s: %s, %d of %d", metric, m.name(), ended, starts))
			if err != nil {
				failed++
				b.fail("burst", metric, m.name(), withoutName(err))
				return
			}
			b.add("burst", metric, m.name(), "ms", false, ms(st.end.Sub(st.begin)))
			if st.claimed() {
				claimed++
			}
		})
	}
	wg.Wait()
	took := time.Since(begin).Seconds()
	b.add("burst", metric+", rate", m.name(), "starts/s", true, float64(starts-failed)/took)
	b.add("burst", metric+", failed", m.name(), "starts", false, float64(failed))
	b.add("burst", metric+", out of the pool", m.name(), "starts", true, float64(claimed))
}

// withoutName makes the errors of different containers equal.
func withoutName(err error) error {
	return errors.New(ownName.ReplaceAllString(err.Error(), "NAME"))
}
