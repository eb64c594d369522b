package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"
)

// pooled is a line of manis pool ls.
type pooled struct {
	Memory, Waiting, Wanted, Min, Max, Claims, Misses, Died, MemoryUsage string
}

// pool lists the sizes that manisd keeps, by the memory of their machines; none while it
// does not answer.
func (w *world) pool() map[string]pooled {
	w.t.Helper()
	r := w.manis("pool", "ls", "--format", "json")
	found := map[string]pooled{}
	for line := range strings.Lines(r.stdout) {
		var p pooled
		if err := json.Unmarshal([]byte(line), &p); err != nil {
			w.t.Fatalf("manis pool ls: %s", r)
		}
		found[p.Memory] = p
	}
	return found
}

// templates builds templates for containers with these memory limits where there are none: the pool
// would take the host's idle time for it, of which there is little while tests run.
func (w *world) templates(limits ...string) {
	w.t.Helper()
	for _, limit := range limits {
		args := []string{"template", "build"}
		if limit != "" {
			args = append(args, "-m", limit)
		}
		w.ok(args...)
	}
}

// idle reports whether a process runs only when nobody else wants the processor.
func idle(pid int) bool {
	attr, err := unix.SchedGetAttr(pid, 0)
	return err == nil && attr.Policy == unix.SCHED_IDLE
}

// settings writes the file that --config of a test names.
func (w *world) settings(content string) string {
	w.t.Helper()
	path := filepath.Join(w.dir, "manisd.json")
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// A size that was missed gets machines, for a while; several sizes are kept; SIGHUP changes which.
func TestPoolSizes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	w.templates("", "100m")
	w.fails(1, "no manisd keeps a pool here", "pool", "ls")
	d := w.startDaemon("--config", w.settings(`{"sizes": [{"waiting": 1}]}`))
	w.awaitWaiting(1)
	w.up("--name", "first", "-m", "100m", "box", "sleep", "1000")
	if got := w.field("first", "{{.Manis.Boot}}"); !strings.HasPrefix(got, "template ") {
		t.Errorf("a size that nobody has asked for yet came from %q", got)
	}
	w.awaitWaiting(2)
	all := w.pool()
	for memory, p := range all {
		if want := map[string]string{"0": "1", "1": "0"}[p.Min]; p.Misses != want || p.Waiting != "1" || p.Claims != "0" {
			t.Errorf("machines of %s: %+v", memory, p)
		}
	}
	if len(all) != 2 {
		t.Errorf("%d sizes", len(all))
	}
	w.up("--name", "second", "-m", "100m", "box", "sleep", "1000")
	if got := w.field("second", "{{.Manis.Boot}}"); !strings.HasPrefix(got, "pool ") {
		t.Errorf("a size that was missed before came from %q", got)
	}

	w.settings(`{"sizes": [{"waiting": 1}, {"memory": "100m", "waiting": 3}]}`)
	d.cmd.Process.Signal(syscall.SIGHUP)
	w.awaitWaiting(4)
	w.settings(`{"sizes": [{"waiting": 1}], "otherSizes": 0, "remember": "1s"}`)
	d.cmd.Process.Signal(syscall.SIGHUP)
	eventually(t, "one size", func() bool { return len(w.pool()) == 1 })
	w.awaitWaiting(1)
	for _, name := range []string{"first", "second"} {
		if got := w.sh(name, "echo well"); got != "well" {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// Machines that wait take no more memory than they may, and none when the host has none
// to spare; for an ordinary user alike.
func TestPoolMemory(t *testing.T) {
	t.Parallel()
	w := newUserWorld(t)
	if w.user == nil {
		// What its machines take changes with those of other tests, when they are from the same template.
		w.env = append(w.env, "XDG_CACHE_HOME="+filepath.Join(w.dir, "cache"))
	}
	w.load("box")
	w.templates("")
	const wanted = 6
	set := func(waiting int, rest string) string {
		return w.settings(fmt.Sprintf(`{"sizes": [{"waiting": %d}], %s}`, waiting, rest))
	}
	const plenty = `"memoryBudget": "16g"`
	d := w.startDaemon("--config", set(1, plenty))
	change := func(waiting int, rest string) {
		set(waiting, rest)
		d.cmd.Process.Signal(syscall.SIGHUP)
	}
	used := func() (waiting int, bytes int64) {
		for _, p := range w.pool() {
			n, _ := strconv.Atoi(p.Waiting)
			b, err := units.RAMInBytes(p.MemoryUsage)
			if err != nil {
				t.Fatal(err)
			}
			waiting, bytes = waiting+n, bytes+b
		}
		return waiting, bytes
	}
	// measured is what so many machines take, once all of them were measured: the same twice.
	measured := func(n int) (all int64) {
		t.Helper()
		var before int64
		eventually(t, "machines to be measured", func() bool {
			time.Sleep(time.Second)
			var waiting int
			before = all
			waiting, all = used()
			return waiting == n && all > 0 && max(all, before)-min(all, before) < all/100
		})
		return all
	}
	one := measured(1)
	change(wanted, plenty)
	all := measured(wanted)
	// They share most of what they take: half as much as all of them might be too little for one.
	budget := (one + all) / 2
	t.Logf("one machine takes %s, %d take %s", units.BytesSize(float64(one)), wanted, units.BytesSize(float64(all)))
	fits := func(when string) {
		t.Helper()
		settled := func() bool { waiting, bytes := used(); return waiting > 0 && bytes > 0 && bytes <= budget }
		eventually(t, "what waits to fit "+when, settled)
		// Also after there was time for more; the last is measured when it is there.
		for range 20 {
			if waiting, bytes := used(); waiting == wanted || bytes >= all {
				t.Fatalf("%s: %d machines take %d bytes of %d", when, waiting, bytes, budget)
			}
			time.Sleep(100 * time.Millisecond)
		}
		eventually(t, "what waits to fit "+when, settled)
	}
	half := fmt.Sprintf(`"memoryBudget": "%d"`, budget)
	change(wanted, half)
	fits("after there were too many")
	const reserve = `"memoryReserve": "1000000g"`
	change(wanted, reserve)
	w.awaitWaiting(0)
	change(wanted, half)
	fits("from the beginning")
	change(wanted, reserve)
	w.awaitWaiting(0)
	if got := w.ok("run", "--rm", "box", "echo", "well"); got != "well" {
		t.Errorf("%q", got)
	}
}

// Many clients, few machines: each machine is one client's, and nobody fails. For a hundred who
// claim at once, without so many machines, see package monitor: TestClaimRace.
func TestPoolRace(t *testing.T) {
	t.Parallel()
	clients := 12
	if long {
		clients = 24
	}
	w := newWorld(t)
	w.load("box")
	w.startDaemon("-n", "3")
	w.awaitWaiting(3)
	var mu sync.Mutex
	seen := map[string]bool{}
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			id := w.ok("run", "--rm", "box", "cat", "/proc/sys/kernel/random/boot_id")
			mu.Lock()
			defer mu.Unlock()
			if seen[id] || len(id) != 36 {
				t.Errorf("%q is another's", id)
			}
			seen[id] = true
		})
	}
	wg.Wait()
	eventually(t, "everybody to be counted", func() bool {
		claims, misses := 0, 0
		for _, p := range w.pool() {
			c, _ := strconv.Atoi(p.Claims)
			m, _ := strconv.Atoi(p.Misses)
			claims, misses = claims+c, misses+m
		}
		return claims >= 3 && claims+misses == clients
	})
}

// A daemon that is killed at any moment leaves nothing but containers, which go on, and the
// next one does its work.
func TestKilledDaemon(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	w.ok("run", "--rm", "box", "true") // builds the template where there is none
	// While it makes machines.
	for _, after := range []time.Duration{0, 50 * time.Millisecond, 300 * time.Millisecond, time.Second, 2 * time.Second} {
		d := w.startDaemon("-n", "2")
		time.Sleep(after)
		d.end(syscall.SIGKILL)
		eventually(t, fmt.Sprintf("the end of what waits, %v after the daemon's start", after), func() bool { return len(w.processes()) == 0 })
		if found, _ := filepath.Glob(filepath.Join(w.run, "pool")); len(found) > 0 {
			entries, _ := os.ReadDir(found[0])
			t.Errorf("killed after %v: %v with %v", after, found, entries)
		}
	}
	// While its machines are claimed.
	for i, after := range []time.Duration{0, 20 * time.Millisecond, 60 * time.Millisecond, 150 * time.Millisecond} {
		d := w.startDaemon("-n", "2")
		w.awaitWaiting(2)
		var wg sync.WaitGroup
		for j := range 2 {
			wg.Go(func() { w.up("--name", fmt.Sprintf("c%d%d", i, j), "box", "sleep", "1000") })
		}
		time.Sleep(after)
		d.end(syscall.SIGKILL)
		wg.Wait()
		w.awaitWaiting(0)
	}
	w.startDaemon("-n", "1")
	w.awaitWaiting(1)
	for i := range 4 {
		for j := range 2 {
			if got := w.sh(fmt.Sprintf("c%d%d", i, j), "echo well"); got != "well" {
				t.Errorf("after the daemon's death: %q", got)
			}
		}
	}
	w.up("--name", "last", "box", "sleep", "1000")
	if got := w.field("last", "{{.Manis.Boot}}"); !strings.HasPrefix(got, "pool ") {
		t.Errorf("the next daemon's machine was not claimed: %q", got)
	}
}
