package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	// settleTime is how long idle machines are left alone before they are measured.
	settleTime = 5 * time.Second
	// idleTime is how long they are watched.
	idleTime = 20 * time.Second
	// clockTick is the unit of processor time in /proc.
	clockTick = 10 * time.Millisecond
)

// density runs idle containers side by side and looks at what each costs.
func (b *bench) density(ctx context.Context) error {
	if b.manis == nil {
		return nil
	}
	var up []*manis
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		var wg sync.WaitGroup
		for _, m := range up {
			wg.Go(func() {
				if _, err := m.manis(ctx, "rm", "-f", "-v", m.last); err != nil {
					fmt.Fprintln(b.log, "bench:", err)
				}
			})
		}
		wg.Wait()
	}()
	metric := fmt.Sprintf("%d idle", b.idle)
	for i := range b.idle {
		b.progress(fmt.Sprintf("density, container %d of %d", i+1, b.idle))
		m := b.manis.variant(b.manis.label)
		m.last = fresh()
		if _, err := m.manis(ctx, append(append([]string{"run", "-d", "--name", m.last}, m.flags...), m.image, "/usr/bin/probe", "idle")...); err != nil {
			b.fail("density", metric, m.name(), withoutName(err))
			continue
		}
		up = append(up, m)
	}
	b.progress("density, watching")
	if err := pause(ctx, settleTime); err != nil {
		return err
	}
	members := make([]map[string][]int, len(up))
	for i, m := range up {
		var err error
		if members[i], err = m.members(ctx, nil); err != nil {
			b.fail("density", metric, m.name(), withoutName(err))
		}
	}
	before, begin := cpuTimes(members), time.Now()
	if err := pause(ctx, idleTime); err != nil {
		return err
	}
	after, watched := cpuTimes(members), time.Since(begin)
	whole := 0.0
	for i, m := range up {
		if members[i] == nil {
			continue
		}
		share := 100 * float64(after[i]-before[i]) / float64(watched)
		whole += share
		b.add("density", metric+": CPU of each, of one processor", m.name(), "%", false, share)
		if err := b.memoryOf(m.name(), metric, members[i]); err != nil {
			b.fail("density", metric, m.name(), withoutName(err))
		}
	}
	b.add("density", metric+": CPU of all, of one processor", b.manis.name(), "%", false, whole)
	b.progress("")
	return nil
}

// memoryOf adds a container's memory to the section, the guest's apart from the rest.
func (b *bench) memoryOf(subject, metric string, members map[string][]int) error {
	own, guest := uint64(0), uint64(0)
	for role, pids := range members {
		part := uint64(0)
		for _, pid := range pids {
			all, ram, err := pss(pid)
			if err != nil {
				return err
			}
			part += all - ram
			guest += ram
		}
		own += part
		b.add("density", metric+": PSS of "+role+" without guest RAM", subject, "MB", false, mb(part))
	}
	b.add("density", metric+": PSS of guest RAM touched", subject, "MB", false, mb(guest))
	b.add("density", metric+": PSS of each, all together", subject, "MB", false, mb(own+guest))
	return nil
}

// cpuTimes are what the processes of each container have computed so far.
func cpuTimes(members []map[string][]int) []time.Duration {
	times := make([]time.Duration, len(members))
	for i, roles := range members {
		for _, pids := range roles {
			for _, pid := range pids {
				times[i] += cpuTime(pid)
			}
		}
	}
	return times
}

// cpuTime is what a process has computed so far, for itself and in the kernel; 0 when it is gone.
func cpuTime(pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name, in parentheses, may hold anything.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	var user, system int64
	if len(fields) < 13 {
		return 0
	}
	fmt.Sscan(fields[11], &user)
	fmt.Sscan(fields[12], &system)
	return time.Duration(user+system) * clockTick
}

// pause waits, or ends early with ctx.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
