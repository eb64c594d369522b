package pod

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// patience is how long somebody waits for a machine. Time in which the machine's threads were ready to run and got no processor of the
// host does not count: on a busy host it is slow, and not to blame.
type patience struct {
	limit time.Duration // of what counts
	most  time.Duration // of all
}

// patienceRound is how often a machine is looked at.
const patienceRound = 100 * time.Millisecond

// with returns a context that ends when patience with a process has, or ctx does; it is given up by cancel.
func (w patience) with(ctx context.Context, pid int) (_ context.Context, cancel context.CancelFunc) {
	ctx, cancel = context.WithCancel(ctx)
	begun, before := time.Now(), starved(pid)
	go func() {
		defer cancel()
		tick := time.NewTicker(patienceRound)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if w.over(time.Since(begun), starved(pid)-before) {
				return
			}
		}
	}()
	return ctx, cancel
}

// over reports whether it has ended after a time, during some of which the machine had to wait.
func (w patience) over(passed, waited time.Duration) bool {
	return passed >= w.most || passed-max(waited, 0) >= w.limit
}

// starved is for how long the threads of a process, all together, were ready and got no processor so far; 0 where the kernel does not
// say (proc(5), schedstat: the second number, in nanoseconds).
func starved(pid int) (all time.Duration) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	for _, name := range files {
		var ran, waited int64
		b, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		if n, _ := fmt.Sscan(string(b), &ran, &waited); n == 2 {
			all += time.Duration(waited)
		}
	}
	return all
}
