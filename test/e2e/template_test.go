package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
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

// Clones of one template have nothing in common that has to be secret or unique.
func TestClonesAreUnique(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	w.ok("run", "--rm", "box", "true") // builds the template where there is none
	const script = `cat /proc/sys/kernel/random/uuid
head -c 16 /dev/urandom | od -An -tx1 | tr -d ' '
cat /proc/sys/kernel/random/boot_id
mktemp -u
sed -n '/stack/p' /proc/self/maps | cut -d- -f1
hostname
date +%s`
	names := []string{"uuid", "random bytes", "boot id", "temporary name", "stack address", "host name"}
	const clones = 6
	outputs := make([]string, clones)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 3)
	for i := range clones {
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
	seen := map[string]int{}
	for i, out := range outputs {
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if len(lines) != len(names)+1 {
			t.Fatalf("clone %d printed %q", i, out)
		}
		for n, name := range names {
			if lines[n] == "" {
				t.Errorf("clone %d has no %s", i, name)
			}
			key := name + " " + lines[n]
			if other, ok := seen[key]; ok {
				t.Errorf("clones %d and %d share their %s %s", other, i, name, lines[n])
			}
			seen[key] = i
		}
		clock, err := strconv.ParseInt(lines[len(names)], 10, 64)
		if err != nil || time.Since(time.Unix(clock, 0)).Abs() > commandTime {
			t.Errorf("clone %d believes that it is %q, %v", i, lines[len(names)], err)
		}
	}
}

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
