package kubernetes

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"manis/test/stage"
)

// small is a class of pods that are small enough for many on a node: the overhead of runtimeclass.yaml is a bound on what machines of the default size
// may ever take, so that fewer of those would be placed here.
const small = `apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: small}
handler: manis
overhead: {podFixed: {memory: 128Mi}}
`

// number is what the environment says, or the default.
func number(t testing.TB, variable string, otherwise int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n <= 0 {
		t.Fatalf("%s is not a number above 0: %q", variable, text)
	}
	return n
}

// littlePod is a pod that does little.
func littlePod(name, app, on, command, rest string) string {
	class := ""
	if on != "runc" {
		class = "  runtimeClassName: " + on + "\n"
	}
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: " + name + ", labels: {app: " + app + "}}\nspec:\n  terminationGracePeriodSeconds: 1\n" + class + rest +
		"  containers:\n  - " + box("one", command, "resources: {requests: {cpu: 5m, memory: 32Mi}, limits: {memory: 32Mi}}") + "\n"
}

// TestMany starts pods together, as many as MANIS_PODS says: all become ready, can be worked with, and at the end nothing of them is left.
func TestMany(t *testing.T) {
	k := kubectl(t)
	n := number(t, "MANIS_PODS", 8)
	apply(t, k, small)
	t.Cleanup(func() { k.OK(t, "delete", "runtimeclass", "small", "--ignore-not-found") })
	lines := []string{fmt.Sprintf("pods started together\t%d", n)}
	// The first one has its image made ready for the others.
	for _, on := range []string{"runc", "small"} {
		before := take()
		took, pss := together(t, k, on, n)
		lines = append(lines, fmt.Sprintf("%s: from the first one's creation to all Ready\t%d ms", on, took.Milliseconds()))
		if pss > 0 {
			lines = append(lines, fmt.Sprintf("%s: memory (PSS) of shim and machine, per pod\t%d KiB", on, pss))
		}
		began := time.Now()
		k.OK(t, "delete", "pods", "-l", "app=many", "--wait=false")
		gone := time.Now().Add(2*time.Minute + time.Duration(n)*5*time.Second)
		for suite.c.says("get", "pods", "-l", "app=many", "-o", "name") != "" && time.Now().Before(gone) {
			time.Sleep(200 * time.Millisecond)
		}
		if left := suite.c.says("get", "pods", "-l", "app=many", "-o", "name"); left != "" {
			t.Fatalf("pods that do not end: %s", left)
		}
		lines = append(lines, fmt.Sprintf("%s: to the end of all\t%d ms", on, time.Since(began).Milliseconds()))
		more := settled(before)
		for _, item := range more {
			t.Errorf("left behind on %s: %s", on, item)
		}
		lines = append(lines, fmt.Sprintf("%s: processes, mounts, interfaces, control groups and files left behind\t%d", on, len(more)))
	}
	record(t, "many", lines)
}

// together starts pods at once and returns when all are ready, with the mean memory of a machine and its shim in KiB.
func together(t *testing.T, k *stage.Engine, on string, n int) (took time.Duration, pss int) {
	t.Helper()
	t.Cleanup(func() {
		k.OK(t, "delete", "pods", "-l", "app=many", "--ignore-not-found", "--grace-period=0", "--force")
	})
	events := watchPods(t, "app=many")
	began := time.Now()
	for i := range n {
		create(t, littlePod(fmt.Sprintf("many-%s-%d", on, i), "many", on, idle, ""))
	}
	ready := make(map[string]bool)
	limit := time.After(2*time.Minute + time.Duration(n)*10*time.Second)
	for len(ready) < n {
		select {
		case e := <-events:
			if e.Phase == "Failed" || e.Gone {
				t.Fatalf("the pod %s has failed: %s", e.Name, suite.c.says("describe", "pod", e.Name))
			}
			if e.Ready {
				ready[e.Name] = true
			}
		case <-limit:
			t.Fatalf("%d of %d pods are ready:\n%s", len(ready), n, suite.c.says("get", "events", "--field-selector=type=Warning"))
		}
	}
	took = time.Since(began)
	if on == "runc" {
		return took, 0
	}
	machines := stage.Machines()
	if len(machines) != n {
		t.Errorf("there are %d machines of %d pods", len(machines), n)
	}
	for _, i := range []int{0, n / 2, n - 1} {
		name := fmt.Sprintf("many-%s-%d", on, i)
		k.Prints(t, name, "exec", name, "--", "hostname")
	}
	shims := make(map[int]bool)
	for _, m := range machines {
		pss += memory(m.PID)
		if !shims[m.Parent] {
			shims[m.Parent] = true
			pss += memory(m.Parent)
		}
	}
	return took, pss / n
}

// memory is a process' part of what is in memory, in KiB.
func memory(pid int) int {
	b, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
	_, rest, _ := strings.Cut(string(b), "\nPss:")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return 0
	}
	n, _ := strconv.Atoi(fields[0])
	return n
}

// TestInARow starts pods one after the other, as many as MANIS_STARTS says, each of which does its work and ends: none gets stuck, and nothing of them
// is left.
func TestInARow(t *testing.T) {
	k := kubectl(t)
	n := number(t, "MANIS_STARTS", 4)
	t.Cleanup(func() { k.OK(t, "delete", "pods", "-l", "app=row", "--ignore-not-found", "--grace-period=1") })
	before := take()
	events := watchPods(t, "app=row")
	var times []time.Duration
	for i := range n {
		name := fmt.Sprintf("row-%d", i)
		began := time.Now()
		create(t, littlePod(name, "row", "manis", "[sh, -c, 'echo done']", "  restartPolicy: Never\n"))
		limit := time.After(3 * time.Minute)
		for ended := false; !ended; {
			select {
			case e := <-events:
				if e.Name == name && e.Phase == "Failed" {
					t.Fatalf("start %d has failed: %s", i, suite.c.says("describe", "pod", name))
				}
				ended = e.Name == name && e.Phase == "Succeeded"
			case <-limit:
				t.Fatalf("start %d is stuck: %s", i, suite.c.says("describe", "pod", name))
			}
		}
		times = append(times, time.Since(began))
		remove(t, name)
	}
	stage.Eventually(t, "the end of the last pods", func() bool {
		return suite.c.says("get", "pods", "-l", "app=row", "-o", "name") == ""
	})
	more := settled(before)
	for _, item := range more {
		t.Errorf("left behind: %s", item)
	}
	record(t, "row", []string{
		fmt.Sprintf("pods started one after the other\t%d", n),
		"from the creation to the end of a container that says a word, as the API server tells\t" + spread(times),
		fmt.Sprintf("pods that failed or got stuck\t%d", 0),
		fmt.Sprintf("processes, mounts, interfaces, control groups and files left behind\t%d", len(more)),
	})
}
