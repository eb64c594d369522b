package main

import (
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// contention says how much of the machine others take just now: how much longer than on an idle
// one a computation takes that keeps every processor busy. 1 is alone, 2 is half of it.
func contention() float64 {
	const work = 20 * time.Millisecond // of each processor
	var wg sync.WaitGroup
	shares := make([]float64, runtime.NumCPU())
	for i := range shares {
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			begin, cpu := time.Now(), threadTime()
			for threadTime()-cpu < work {
				for range 10_000 {
				}
			}
			shares[i] = float64(time.Since(begin)) / float64(threadTime()-cpu)
		})
	}
	wg.Wait()
	sum := 0.0
	for _, v := range shares {
		sum += v
	}
	return sum / float64(len(shares))
}

// threadTime is the processor time that this thread has had.
func threadTime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
