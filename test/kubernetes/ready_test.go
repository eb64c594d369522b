package kubernetes

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"manis/test/stage"
)

// TestReadyTime is no test but a measurement: as many rounds as MANIS_READY_ROUNDS says, in each a pod on runc, one on Manis, and one on Manis with a
// machine that waits. The time is that from the pod's creation to the news of it being ready, as the API server gives them.
func TestReadyTime(t *testing.T) {
	if os.Getenv("MANIS_READY_ROUNDS") == "" {
		t.Skip("a measurement: MANIS_READY_ROUNDS is not set")
	}
	rounds := number(t, "MANIS_READY_ROUNDS", 0)
	kubectl(t)
	events := watchPods(t, "app=ready")
	kinds := []string{"runc", "manis", "manis with a machine that waits"}
	took := make(map[string][]time.Duration)
	// The first round has images and machines made ready for later ones.
	for round := range rounds + 1 {
		for i, kind := range kinds {
			on := kind
			end := func() {}
			if i == 2 {
				on, end = "manis", keeper(t)
			}
			d := untilReady(t, events, fmt.Sprintf("ready-%d-%d", i, round), on)
			end()
			if round > 0 {
				took[kind] = append(took[kind], d)
			}
		}
	}
	lines := []string{fmt.Sprintf("rounds\t%d", rounds)}
	for _, kind := range kinds {
		lines = append(lines, fmt.Sprintf("%s: from creation to Ready\t%s", kind, spread(took[kind])))
	}
	record(t, "ready", lines)
}

// untilReady starts a pod and returns when it has gone again.
func untilReady(t *testing.T, events <-chan podEvent, name, on string) (took time.Duration) {
	t.Helper()
	began := time.Now()
	create(t, littlePod(name, "ready", on, idle, ""))
	limit := time.After(5 * time.Minute)
	for {
		select {
		case e := <-events:
			if e.Name == name && e.Ready && took == 0 {
				took = e.Seen.Sub(began)
				remove(t, name)
			}
			if e.Name == name && e.Gone {
				return took
			}
		case <-limit:
			t.Fatalf("the pod %s: %s", name, suite.c.says("describe", "pod", name))
		}
	}
}

// keeper starts manisd, with a machine of the little pods' size, and returns when that waits.
func keeper(t *testing.T) (end func()) {
	t.Helper()
	bin := filepath.Dir(stage.Manis(t))
	cmd := exec.Command(filepath.Join(bin, "manisd"), "--size", "memory=32m,waiting=1,max=1,engines=true", "--other-sizes", "0", "--max-pressure", "0")
	cmd.Env = suite.c.env
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	patiently(t, "a machine to wait", func() bool {
		n, _ := shelf(bin)
		return n == 1
	})
	return func() {
		if _, n := shelf(bin); n != 1 {
			t.Errorf("%d machines were claimed by a pod", n)
		}
		cmd.Process.Signal(unix.SIGTERM)
		cmd.Wait()
	}
}
