package pool

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"manis/container"
	"manis/place"
)

func TestClaimedMachinesAreReplaced(t *testing.T) {
	b := newBench(t, usual(2, 2))
	before := b.waiting(2).Sizes[0].PIDs
	for _, pid := range before {
		attr, err := unix.SchedGetAttr(pid, 0)
		check(t, err)
		if attr.Policy != unix.SCHED_IDLE {
			t.Errorf("machines are made with scheduling policy %d, want that of idle processes", attr.Policy)
		}
	}
	b.claim()
	after := b.await("a new machine", func(s State) bool { return s.Sizes[0].Claims == 1 && s.Sizes[0].Waiting == 2 }).Sizes[0]
	kept := slices.DeleteFunc(slices.Clone(before), func(pid int) bool { return !slices.Contains(after.PIDs, pid) })
	if len(kept) != 1 {
		t.Errorf("of %v there are %v, with %v", before, kept, after.PIDs)
	}
	if after.Claim.Sum != 0.0002 || after.Refill.Sum <= 0 {
		t.Errorf("claim %+v, refill %+v", after.Claim, after.Refill)
	}
}

func TestClaimedMachinesOutliveThePool(t *testing.T) {
	b := newBench(t, usual(2, 2))
	pids := b.waiting(2).Sizes[0].PIDs
	conn := b.claim()
	b.await("the claim", func(s State) bool { return s.Sizes[0].Claims == 1 })
	b.stop()
	living := slices.DeleteFunc(pids, func(pid int) bool { return !alive(pid) })
	if len(living) != 1 {
		t.Errorf("%v live after the pool's end", living)
	}
	conn.Close()
}

func TestDemandIsFollowed(t *testing.T) {
	s := usual(1, 4)
	s.Remember = time.Second // demand is nearly gone after a few
	b := newBench(t, s)
	b.waiting(1)
	for range 6 {
		check(t, b.Missed(b.ctx, config(0)))
	}
	if s := b.await("more machines", func(s State) bool { return s.Sizes[0].Waiting > 1 }); s.Sizes[0].Misses != 6 {
		t.Errorf("%d misses", s.Sizes[0].Misses)
	}
	if s := b.waiting(1); s.Sizes[0].GivenUp == 0 || s.Sizes[0].Died != 0 {
		t.Errorf("given up %d, died %d", s.Sizes[0].GivenUp, s.Sizes[0].Died)
	}
}

func TestSizesThatWereMissedAreKeptForAWhile(t *testing.T) {
	s := usual(1, 1)
	s.Remember = 2 * time.Second
	b := newBench(t, s)
	b.waiting(1)
	check(t, b.Missed(b.ctx, config(gigabyte)))
	one := b.await("a machine of the other size", func(s State) bool { return len(s.Sizes) == 2 && s.Sizes[1].Waiting == 1 }).Sizes[1]
	if !one.Asked || one.MemoryBytes != 0 && one.MemoryBytes < 1<<20 || one.Kind.MemoryBytes != gigabyte {
		t.Errorf("%+v", one)
	}
	b.await("the other size to go", func(s State) bool { return len(s.Sizes) == 1 && s.OtherMisses == 1 })
	b.await("its machine to end", func(State) bool { return !alive(one.PIDs[0]) })
}

func TestOtherSizesAreBounded(t *testing.T) {
	b := newBench(t, usual(1, 1))
	b.waiting(1)
	for i := range 10 {
		check(t, b.Missed(b.ctx, config(uint64(i+1)*gigabyte)))
	}
	if s := b.now(); len(s.Sizes) != 3 || s.OtherMisses != 8 {
		t.Errorf("%d sizes, %d other misses: want 3 and 8", len(s.Sizes), s.OtherMisses)
	}
	bad := config(0)
	bad.Resources.CPUSet = "0-4000"
	if err := b.Missed(b.ctx, bad); err == nil {
		t.Error("no error for a size that no machine can have")
	}
}

func TestBudgetHolds(t *testing.T) {
	s := usual(6, 6)
	s.Budget = 250 << 20
	b := newBench(t, usual(0, 1))
	b.file("bytes", fmt.Sprint(90<<20))
	check(t, b.Reload(b.ctx, s))
	// The first is measured before more are made than fit.
	got := b.await("measured machines", func(s State) bool {
		return s.Sizes[0].Waiting == s.Sizes[0].Granted && s.Sizes[0].Waiting > 0 && s.MemoryBytes > 90<<20 && !s.Sizes[0].Making
	})
	for range 50 {
		time.Sleep(20 * time.Millisecond)
		if got = b.now(); got.MemoryBytes > s.Budget {
			t.Fatalf("%d bytes are more than the budget of %d", got.MemoryBytes, s.Budget)
		}
	}
	if got.Sizes[0].Waiting != 2 || got.Sizes[0].Wanted != 6 {
		t.Errorf("%d of %d machines: want 2 of 6", got.Sizes[0].Waiting, got.Sizes[0].Wanted)
	}
}

func TestMachinesAreGivenUpWhenMemoryRunsShort(t *testing.T) {
	s := usual(3, 3)
	s.Reserve = gigabyte
	b := newBench(t, s)
	b.file("bytes", fmt.Sprint(50<<20))
	b.waiting(3)
	b.await("measures", func(s State) bool { return s.MemoryBytes > 150<<20 })
	b.host.share()
	b.host.set(gigabyte+100<<20, 0) // enough for one
	b.waiting(1)
	b.host.set(gigabyte+20<<20, 0)
	got := b.waiting(0)
	if got.Sizes[0].GivenUp != 3 || got.Sizes[0].Died != 0 {
		t.Errorf("given up %d, died %d: want 3 and 0", got.Sizes[0].GivenUp, got.Sizes[0].Died)
	}
	b.host.set(64*gigabyte, 0)
	if got = b.await("a pause", func(s State) bool { return s.Paused != "" }); !strings.Contains(got.Paused, "memory") {
		t.Errorf("paused because %q", got.Paused)
	}
	check(t, b.Reload(b.ctx, s)) // ends the pause
	b.waiting(3)
}

func TestBusyHostIsLeftAlone(t *testing.T) {
	b := newBench(t, usual(0, 2))
	b.host.set(64*gigabyte, 80)
	check(t, b.Missed(b.ctx, config(0)))
	b.await("a pause", func(s State) bool {
		return s.Paused == "the host is busy" && s.Sizes[0].Waiting == 0 && !s.Sizes[0].Making
	})
	b.host.set(64*gigabyte, 10)
	b.waiting(1)
}

func TestDeadMachinesAreReplaced(t *testing.T) {
	b := newBench(t, usual(2, 2))
	pids := b.waiting(2).Sizes[0].PIDs
	check(t, unix.Kill(pids[0], unix.SIGKILL))
	got := b.await("another machine", func(s State) bool { return s.Sizes[0].Died == 1 && s.Sizes[0].Waiting == 2 }).Sizes[0]
	if slices.Contains(got.PIDs, pids[0]) || !slices.Contains(got.PIDs, pids[1]) {
		t.Errorf("%v after %v", got.PIDs, pids)
	}
	if sockets, _ := filepath.Glob(filepath.Join(b.Dir, fmt.Sprint("*-", pids[0]))); len(sockets) > 0 {
		t.Errorf("left behind: %v", sockets)
	}
}

func TestFailuresArePausedAndSaid(t *testing.T) {
	b := newBench(t, usual(0, 1))
	b.file("fail", "no room in this test\n")
	check(t, b.Reload(b.ctx, usual(1, 1)))
	got := b.await("two attempts", func(s State) bool { return s.Sizes[0].Failures >= 2 })
	if got.Sizes[0].Failures > 3 {
		t.Errorf("%d attempts without a pause", got.Sizes[0].Failures)
	}
	if !strings.Contains(b.said(), "the default size could not be made: no room in this test") {
		t.Errorf("said %q", b.said())
	}
	os.Remove(filepath.Join(b.top, "fail"))
	b.waiting(1)
}

func TestReloadKeepsWhatIsStillWanted(t *testing.T) {
	s := usual(2, 2)
	b := newBench(t, s)
	pids := b.waiting(2).Sizes[0].PIDs
	s = usual(3, 3)
	s.Sizes = append([]Size{{Container: *config(gigabyte), Min: 1, Max: 1}}, s.Sizes...)
	check(t, b.Reload(b.ctx, s))
	got := b.await("both sizes", func(s State) bool { return len(s.Sizes) == 2 && s.Sizes[0].Waiting == 1 && s.Sizes[1].Waiting == 3 })
	for _, pid := range pids {
		if !slices.Contains(got.Sizes[1].PIDs, pid) {
			t.Errorf("machine %d is gone: %v", pid, got.Sizes[1].PIDs)
		}
	}
	s.Sizes = s.Sizes[:1]
	check(t, b.Reload(b.ctx, s))
	b.await("the default size to go", func(s State) bool { return len(s.Sizes) == 1 && s.Sizes[0].Waiting == 1 })
	b.await("its machines to end", func(State) bool { return !alive(pids[0]) && !alive(pids[1]) })
}

func TestMachinesOfAnotherBuildAreMadeAnew(t *testing.T) {
	b := newBench(t, usual(0, 1))
	b.stop()
	changed := false
	b.Identify = func(ctx context.Context, cfg *container.Config) (Kind, error) {
		kind, err := identify(ctx, cfg)
		if changed {
			kind.Accel = "kvm"
		}
		return kind, err
	}
	b.run(usual(1, 1))
	pids := b.waiting(1).Sizes[0].PIDs
	changed = true
	check(t, b.Reload(b.ctx, usual(1, 1)))
	got := b.await("another machine", func(s State) bool { return s.Sizes[0].Accel == "kvm" && s.Sizes[0].Waiting == 1 })
	if slices.Contains(got.Sizes[0].PIDs, pids[0]) {
		t.Error("the old machine still waits")
	}
}

// Two sizes may mean the same machine, the limits being rounded.
func TestEqualSizesAreKeptOnce(t *testing.T) {
	s := usual(1, 1)
	s.Sizes = append(s.Sizes, Size{Container: *config(100 << 20), Min: 2, Max: 3})
	b := newBench(t, s)
	if got := b.waiting(2); len(got.Sizes) != 1 || got.Sizes[0].Max != 3 {
		t.Errorf("%+v", got.Sizes)
	}
	if !strings.Contains(b.said(), "kept once") {
		t.Errorf("said %q", b.said())
	}
}

// What a pool finds that was killed, its machines too: it removes what is dead and leaves alone
// what lives.
func TestRestsOfAKilledPool(t *testing.T) {
	b := newBench(t, usual(1, 1))
	living := b.waiting(1).Sizes[0].PIDs[0]
	dead := 1 << 22 // no process has so high a number
	names := func(pid int) []string { return []string{fmt.Sprintf("%016x-%d", 7, pid), place.StandbyDir(pid)} }
	for _, pid := range []int{dead, os.Getpid()} { // the number was given to another process, this one
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(b.Dir, names(pid)[0]), Net: "unix"})
		check(t, err)
		l.SetUnlinkOnClose(false)
		l.Close()
		check(t, os.MkdirAll(filepath.Join(b.Dir, names(pid)[1], "x"), 0o700))
	}
	check(t, os.Mkdir(filepath.Join(b.Dir, place.StandbyDir(living)), 0o700))
	b.sweep()
	for _, name := range append(names(dead), names(os.Getpid())...) {
		if _, err := os.Lstat(filepath.Join(b.Dir, name)); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
	if _, err := os.Lstat(filepath.Join(b.Dir, place.StandbyDir(living))); err != nil {
		t.Errorf("of a machine that lives: %v", err)
	}
	os.Remove(filepath.Join(b.Dir, place.StandbyDir(living)))
	b.claim() // and it can be claimed
}
