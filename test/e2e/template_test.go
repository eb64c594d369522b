package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// ownCache gives a world caches of its own, and so templates.
func (w *world) ownCache() string {
	w.t.Helper()
	dir := filepath.Join(w.dir, "cache")
	// The blank disks and what is known of KVM are not what is tried here.
	if err := os.CopyFS(filepath.Join(dir, "manis", "host"), os.DirFS(filepath.Join(cacheDir(), "manis", "host"))); err != nil && !os.IsNotExist(err) {
		w.t.Fatal(err)
	}
	w.setenv("XDG_CACHE_HOME", dir)
	return filepath.Join(dir, "manis", "template")
}

// Clones of one template have nothing in common that has to be secret or unique, neither
// those that go on from it nor those of a machine that was exercised before.
func TestClonesAreUnique(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.ownCache()
	w.load("box")
	w.ok("run", "--rm", "box", "true") // builds the template
	seen := map[string]int{}
	w.distinct(seen, 0, 6)
	w.ok("template", "build")
	w.distinct(seen, 6, 12)
}

// distinct runs clones and compares what they say with what was seen before.
func (w *world) distinct(seen map[string]int, from, to int) {
	t := w.t
	t.Helper()
	const script = `cat /proc/sys/kernel/random/uuid
head -c 16 /dev/urandom | od -An -tx1 | tr -d ' '
cat /proc/sys/kernel/random/boot_id
mktemp -u
sed -n '/stack/p' /proc/self/maps | cut -d- -f1
hostname
date +%s`
	names := []string{"uuid", "random bytes", "boot id", "temporary name", "stack address", "host name"}
	outputs := make([]string, to)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 3)
	for i := from; i < to; i++ {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			r := w.manis("run", "--rm", "--boot", "template", "box", "sh", "-c", script)
			if r.code != 0 {
				t.Errorf("%s", r)
			}
			outputs[i] = r.stdout
		})
	}
	wg.Wait()
	for i, out := range outputs[from:] {
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if len(lines) != len(names)+1 {
			t.Fatalf("clone %d printed %q", from+i, out)
		}
		for n, name := range names {
			if lines[n] == "" {
				t.Errorf("clone %d has no %s", from+i, name)
			}
			key := name + " " + lines[n]
			if other, ok := seen[key]; ok {
				t.Errorf("clones %d and %d share their %s %s", other, from+i, name, lines[n])
			}
			seen[key] = from + i
		}
		clock, err := strconv.ParseInt(lines[len(names)], 10, 64)
		if err != nil || time.Since(time.Unix(clock, 0)).Abs() > commandTime {
			t.Errorf("clone %d believes that it is %q, %v", from+i, lines[len(names)], err)
		}
	}
}

// The kernel draws the secrets of TCP once. Clones that had the same could foresee each other's connections.
func TestClonesHaveOwnSecrets(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.ownCache()
	w.load("box")
	w.ok("template", "build")
	const clones = 3
	var seen [clones][][2]uint32
	for i := range seen {
		for line := range strings.Lines(w.ok("run", "--rm", "--boot", "template", "box", "probe", "secrets")) {
			var s [2]uint32
			if _, err := fmt.Sscan(line, &s[0], &s[1]); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			seen[i] = append(seen[i], s)
		}
		if len(seen[i]) < 4 {
			t.Fatalf("%d connections", len(seen[i]))
		}
	}
	// How far the two readings of a clock may be apart: seconds, in units of 64 ns and of 1 ms.
	for n, near := range []uint32{1 << 26, 4000} {
		for i := range seen {
			for j := range i {
				same := 0
				for c := range seen[i] {
					if d := seen[i][c][n] - seen[j][c][n]; min(d, -d) < near {
						same++
					}
				}
				if same > 1 {
					t.Errorf("clones %d and %d share the secret of %s: %v, %v", j, i, []string{"sequence numbers", "timestamps"}[n], seen[j], seen[i])
				}
			}
		}
	}
}

// A container in an exercised machine finds what it finds in one that has just booted. The
// second start of a size has such a machine saved, in the background.
func TestExercised(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := w.ownCache()
	w.load("box")
	w.setenv("MANIS_EXERCISE", "")
	w.ok("run", "--rm", "box", "true")
	exercised := func() bool {
		r, _ := filepath.Glob(filepath.Join(dir, "*", "saved", "resumer"))
		return len(r) > 0
	}
	if exercised() {
		t.Error("the first start has a machine exercised")
	}
	w.ok("run", "--rm", "box", "true")
	eventually(t, "a machine to be saved", exercised)
	const script = `mount; ls -la / /tmp /etc /dev/shm | grep -v -e ' proc$' -e ' sys$'; env; ulimit -a; id; ip addr; ip route; hostname
cat /proc/self/status /proc/self/cgroup | grep -v -e Pid -e ctxt -e Vm -e Rss -e Cpus -e Mems -e Seccomp_f -e SigQ
ps; ls /proc/self/fd /sys/class/net /sys/block; nproc; cat /etc/resolv.conf /etc/hosts | sort; free -m | sed -n '2s/ *[0-9]*$//p' | cut -c1-20`
	outputs := map[string]string{}
	for _, boot := range []string{"cold", "template"} {
		w.up("--name", boot, "--boot", boot, "--hostname", "same", "box", "sleep", "1000")
		outputs[boot] = w.sh(boot, script)
	}
	if got := w.field("template", "{{.Manis.Boot}}"); !strings.HasSuffix(got, ", exercised") {
		t.Errorf("the machine came from %q", got)
	}
	cold, warm := strings.Split(outputs["cold"], "\n"), strings.Split(outputs["template"], "\n")
	for i := range max(len(cold), len(warm)) {
		if i >= len(cold) || i >= len(warm) || comparable(cold[i]) != comparable(warm[i]) {
			t.Fatalf("line %d differs: booted\n%s\nexercised\n%s", i, strings.Join(cold[min(i, len(cold)):min(i+2, len(cold))], "\n"), strings.Join(warm[min(i, len(warm)):min(i+2, len(warm))], "\n"))
		}
	}

	// A saved machine that is damaged is not continued, and starts go on.
	resumers, _ := filepath.Glob(filepath.Join(dir, "*", "saved", "resumer"))
	if err := os.Remove(resumers[0]); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(resumers[0], []byte("noise"), 0o555); err != nil {
		t.Fatal(err)
	}
	w.setenv("MANIS_EXERCISE", "off")
	w.up("--name", "damaged", "box", "sleep", "1000")
	if got := w.field("damaged", "{{.Manis.Boot}}"); strings.Contains(got, "exercised") {
		t.Errorf("a damaged machine was continued: %q", got)
	}
}

// rehearsing returns the process that exercises a machine in the background, and all of its descendants.
func (w *world) rehearsing() (pid int, all []int) {
	for p, command := range w.processes() {
		if strings.HasPrefix(command, "manis rehearse ") {
			pid = p
			all = append(all, p)
		}
	}
	for i := 0; i < len(all); i++ {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", all[i]))
		for _, path := range tasks {
			b, _ := os.ReadFile(path)
			for _, child := range strings.Fields(string(b)) {
				if p, err := strconv.Atoi(child); err == nil {
					all = append(all, p)
				}
			}
		}
	}
	return pid, all
}

// Whatever happens to the exercise in the background, starts go on, and nothing of it is left.
func TestExerciseTrouble(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := w.ownCache()
	w.load("box")
	w.ok("run", "--rm", "box", "true")
	key := w.ok("template", "ls", "-q")
	saved := func() bool {
		found, _ := filepath.Glob(filepath.Join(dir, "*", "saved", "resumer"))
		return len(found) > 0
	}
	pages := func() []string {
		found, _ := filepath.Glob(filepath.Join(dir, ".new-*", "pages"))
		return found
	}
	// begin has a machine exercised and waits until the next thing is there.
	begin := func(what string, there func() bool) (int, []int) {
		t.Helper()
		w.setenv("MANIS_EXERCISE", "")
		if got := w.ok("run", "--rm", "--boot", "template", "box", "echo", "well"); got != "well" {
			t.Errorf("it says %q", got)
		}
		w.setenv("MANIS_EXERCISE", "off")
		eventually(t, what, there)
		return w.rehearsing()
	}
	gone := func(all []int) {
		t.Helper()
		eventually(t, "the end of what exercised a machine", func() bool {
			for _, pid := range all {
				if alive(pid) {
					return false
				}
			}
			return true
		})
	}

	// Killed while it saves.
	pid, all := begin("a machine being saved", func() bool {
		for _, path := range pages() {
			if st, err := os.Stat(path); err == nil && st.Size() > 0 {
				return true
			}
		}
		return false
	})
	if pid == 0 || len(all) < 2 {
		t.Fatalf("the exercise is processes %v", all)
	}
	kill(t, pid)
	gone(all)
	if saved() {
		t.Fatal("a machine was saved although its saver was killed")
	}
	rests := pages()
	if len(rests) != 1 {
		t.Fatalf("a saver that was killed left %v", rests)
	}

	// Killed while its machine runs, and its template removed while it does.
	running := func() bool { _, all := w.rehearsing(); return len(all) > 1 }
	pid, all = begin("a machine being exercised", running)
	kill(t, pid)
	gone(all)
	_, all = begin("a machine being exercised again", running)
	if got := w.ok("template", "rm", key); got != key {
		t.Errorf("template rm printed %q", got)
	}
	gone(all)
	if saved() {
		t.Error("a machine was saved for a template that is gone")
	}

	// And afterwards all is well. What was left goes with the next saving, but for what looks as if it had
	// just begun.
	old := time.Now().Add(-time.Hour)
	for _, path := range pages() {
		if err := os.Chtimes(filepath.Dir(path), old, old); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.ok("run", "--rm", "--boot", "template", "box", "echo", "well"); got != "well" {
		t.Errorf("it says %q", got)
	}
	_, all = begin("a machine to be saved", saved)
	gone(all)
	w.up("--name", "exercised", "box", "sleep", "1000")
	if got := w.field("exercised", "{{.Manis.Boot}}"); !strings.HasSuffix(got, ", exercised") {
		t.Errorf("it came from %q", got)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".new-*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}

	// The saved machine goes while a clone runs, and another is asked for.
	if err := os.RemoveAll(filepath.Join(dir, key, "saved")); err != nil {
		t.Fatal(err)
	}
	if got := w.sh("exercised", "echo still; head -c 30000000 /dev/zero | wc -c"); got != "still\n30000000" {
		t.Errorf("the clone says %q", got)
	}
	if got := w.ok("run", "--rm", "--boot", "template", "box", "echo", "well"); got != "well" {
		t.Errorf("without the saved machine: %q", got)
	}
}

// comparable is a line without what differs between any two containers.
func comparable(line string) string {
	return varying.ReplaceAllString(line, "*")
}

// varying are times, hexadecimal addresses and names of disks.
var varying = regexp.MustCompile(`[0-9][0-9]:[0-9][0-9]|dm-[0-9]+|[0-9a-f]{12,}`)

// One of many first starts builds the template, every later one uses it, and inspect says so.
func TestTemplateCommands(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.ownCache()
	w.load("box")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { w.ok("run", "--rm", "box", "true") })
	}
	wg.Wait()
	keys := strings.Fields(w.ok("template", "ls", "-q"))
	if len(keys) != 1 {
		t.Fatalf("four starts made the templates %q", keys)
	}
	w.up("--name", "one", "box", "sleep", "1000")
	if got := w.field("one", "{{.Manis.Boot}}"); !strings.HasPrefix(got, "template "+keys[0]) {
		t.Errorf("a container came from %q", got)
	}
	w.up("--name", "two", "--boot", "cold", "--network", "none", "box", "sleep", "1000")
	if got := w.field("two", "{{.Manis.Boot}}"); got != "cold (asked for)" {
		t.Errorf("a container that booted came from %q", got)
	}
	w.fails(1, "in use", "template", "rm", keys[0])
	w.ok("stop", "-t", "0", "one")
	if got := w.ok("template", "rm", keys[0]); got != keys[0] {
		t.Errorf("template rm printed %q", got)
	}
	w.fails(1, "no such template", "template", "rm", keys[0])
	w.fails(1, "no such template", "template", "inspect", "0123")
	w.fails(1, "--all", "template", "rm")

	// Another size has another template; similar sizes share one.
	first := w.ok("template", "build", "-m", "200m", "--cpus", "1")
	if again := w.ok("template", "build", "-m", "201m", "--cpus", "1"); again != first {
		t.Errorf("201 MB have the template %s, 200 MB %s", again, first)
	}
	if other := w.ok("template", "build", "-m", "600m"); other == first {
		t.Error("600 MB have the template of 200 MB")
	}
	var info []struct {
		Key         string            `json:"key"`
		MemoryBytes uint64            `json:"memory_bytes"`
		VCPUs       int               `json:"vcpus"`
		Inputs      map[string]string `json:"inputs"`
	}
	if err := json.Unmarshal([]byte(w.ok("template", "inspect", first)), &info); err != nil || len(info) != 1 ||
		info[0].MemoryBytes < 200<<20 || info[0].VCPUs != 1 || len(info[0].Inputs) < 3 {
		t.Errorf("inspect: %+v, %v", info, err)
	}
	w.ok("template", "rm", "--all")
	if got := w.ok("template", "ls", "-q"); got != "" {
		t.Errorf("left: %s", got)
	}
}

// Without --network there is no card, though the template has one.
func TestCloneWithoutNetwork(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	if got := w.ok("run", "--rm", "--boot", "template", "--network", "none", "box", "ls", "/sys/class/net"); got != "lo" {
		t.Errorf("devices: %q", got)
	}
}

// Whatever happens to templates, containers run.
func TestTemplateTrouble(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := w.ownCache()
	w.load("box")

	t.Run("killed while building", func(t *testing.T) {
		w := w.in(t)
		c := w.ok("create", "box", "sleep", "1000")
		start := w.begin("", "start", c)
		eventually(t, "a template being built", func() bool {
			half, _ := filepath.Glob(filepath.Join(dir, ".new-*", "memory"))
			return len(half) > 0
		})
		for pid, command := range w.processes() {
			if strings.Contains(command, "monitor") && strings.Contains(command, c) {
				kill(t, pid)
			}
		}
		if r := start.wait(); r.code == 0 {
			t.Error("the start of a container whose monitor was killed succeeded")
		}
		w.ok("rm", "-f", c)
		if got := w.ok("run", "--rm", "--boot", "template", "box", "echo", "well"); got != "well" {
			t.Errorf("afterwards: %q", got)
		}
	})
	t.Run("damaged", func(t *testing.T) {
		w := w.in(t)
		files, err := filepath.Glob(filepath.Join(dir, "[0-9a-f]*", "memory"))
		if err != nil || len(files) != 1 {
			t.Fatalf("templates: %v, %v", files, err)
		}
		if err := os.Chmod(files[0], 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(files[0], os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for at := range int64(100) {
			if _, err := f.WriteAt(make([]byte, 4096), at<<20); err != nil {
				t.Fatal(err)
			}
		}
		if got := w.ok("run", "--rm", "--boot", "template", "box", "echo", "well"); got != "well" {
			t.Errorf("with a damaged template: %q", got)
		}
	})
	t.Run("no place", func(t *testing.T) {
		w := w.in(t)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		w.up("--name", "c", "box", "sleep", "1000")
		if got := w.field("c", "{{.Manis.Boot}}"); !strings.HasPrefix(got, "cold (") || !strings.Contains(got, "template") {
			t.Errorf("without a place for templates the container came from %q", got)
		}
		w.fails(125, "template", "run", "--rm", "--boot", "template", "box", "true")
	})
}
