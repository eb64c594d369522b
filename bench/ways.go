package main

import "context"

// way is one of the ways in which Manis comes to a machine for a container. Another one
// to be measured, and watched by the gate, is another line of ways.
type way struct {
	label string
	flags []string // of manis run
	// pool says that a daemon keeps machines waiting.
	pool bool
	// slow ways are not asked for bursts: nobody who starts many would use them.
	slow bool
}

var ways = []way{
	{label: "manis, template", flags: []string{"--boot", "template"}},
	{label: "manis, booted", flags: []string{"--boot", "cold"}, slow: true},
	{label: "manis, pool", pool: true},
}

// pausedPool is the size of a pool that sleeps while others are measured.
const pausedPool = 1

// startSubjects are those whose starts are compared: the peers, and Manis in all its ways.
// What could not be made is noted as skipped. release ends what was started.
func (b *bench) startSubjects(ctx context.Context) (list []subject, release func()) {
	for _, s := range b.subjects {
		if s != subject(b.manis) {
			list = append(list, s)
		}
	}
	release = func() {}
	if b.manis == nil {
		return list, release
	}
	for _, w := range ways {
		m := b.manis.variant(w.label, w.flags...)
		if !w.pool {
			list = append(list, m)
			continue
		}
		p, err := startPool(m, b.w.run, pausedPool)
		if err != nil {
			b.skip("pool", w.label, err)
			continue
		}
		before := release
		release = func() { before(); p.stop() }
		list = append(list, paused{p})
	}
	return list, release
}
