package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// counting is an application with a state in memory, on its disk and in its arguments: it
// answers each line of its input.
const counting = `n=0; echo begun; while read -r line; do n=$((n+1)); echo "$line $n" | tee -a /log; done; echo end of input`

// A container goes on where it was saved, any number of times, and its copies have nothing to do with
// each other.
func TestSnapshot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	w.ok("run", "--rm", "box", "true") // there is a template now
	app := `mkfifo /in; (while :; do sleep 1000; done) >/in & n=0; echo begun
while read -r line </in; do n=$((n+1)); echo "$line $n $(cat /proc/sys/kernel/random/uuid)" | tee -a /log; done`
	w.up("--name", "app", "--hostname", "first", "box", "sh", "-c", app)
	eventually(t, "the application", func() bool { return w.ok("logs", "app") == "begun" })
	say := func(name, word string) string {
		t.Helper()
		before := len(strings.Fields(w.ok("logs", name)))
		w.ok("exec", name, "sh", "-c", "echo "+word+" >/in")
		var out string
		eventually(t, "an answer of "+name, func() bool {
			out = w.ok("logs", name)
			return len(strings.Fields(out)) > before
		})
		lines := strings.Split(strings.TrimSpace(out), "\n")
		return lines[len(lines)-1]
	}
	if got := say("app", "one"); !strings.HasPrefix(got, "one 1 ") {
		t.Fatalf("the application says %q", got)
	}

	w.ok("checkpoint", "--name", "warm", "--leave-running", "--on-restore", "hostname >/renewed; date +%s >>/renewed", "app")
	if got := say("app", "two"); !strings.HasPrefix(got, "two 2 ") {
		t.Errorf("after it was saved the application says %q", got)
	}
	w.fails(1, "there is a snapshot of this name", "checkpoint", "--name", "warm", "app")
	w.fails(1, "name", "checkpoint", "--name", "../warm", "app")
	if got := w.ok("snapshot", "ls", "-q"); got != "warm" {
		t.Errorf("snapshots: %q", got)
	}

	seen := map[string]bool{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			name := fmt.Sprintf("copy%d", i)
			id := w.ok("restore", "--name", name, "warm")
			w.removeAtEnd(id)
			got := say(name, "word")
			fields := strings.Fields(got)
			if len(fields) != 3 || fields[1] != "2" {
				t.Errorf("%s says %q", name, got)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if seen[fields[2]] {
				t.Errorf("two copies have drawn %s", fields[2])
			}
			seen[fields[2]] = true
			if log := w.sh(name, "cut -d' ' -f1 /log | tr '\\n' ' '"); log != "one word " {
				t.Errorf("%s's disk holds %q", name, log)
			}
			if got := w.sh(name, "head -1 /renewed"); got != "first" {
				t.Errorf("the hook of %s has written %q", name, got)
			}
		})
	}
	all.Wait()
	if got := w.field("copy0", "{{.Manis.Boot}}"); got != "snapshot warm" {
		t.Errorf("a copy came from %q", got)
	}
	if got := w.sh("app", "cut -d' ' -f1 /log | tr '\\n' ' '"); got != "one two " {
		t.Errorf("the copies have changed their origin's disk: %q", got)
	}

	// A copy is a container like others: it stops, and starts anew on its disk.
	w.ok("stop", "-t", "0", "copy0")
	w.ok("start", "copy0")
	eventually(t, "the copy to begin anew", func() bool { return strings.HasSuffix(w.ok("logs", "copy0"), "begun") })
	if got := w.sh("copy0", "cut -d' ' -f1 /log | tr '\\n' ' '"); got != "one word " {
		t.Errorf("after a restart the disk holds %q", got)
	}

	// A container that is not left running ends.
	w.ok("checkpoint", "--name", "cold", "copy1")
	if got := w.status("copy1"); got != "exited" {
		t.Errorf("a container that was saved is %s", got)
	}
	w.ok("restore", "--name", "again", "cold")
	w.removeAtEnd("again")
	if got := say("again", "more"); !strings.HasPrefix(got, "more 3 ") {
		t.Errorf("a copy of a copy says %q", got)
	}

	w.ok("snapshot", "rm", "warm", "cold")
	w.fails(125, "no such snapshot", "run", "--from-snapshot", "warm")
	w.fails(1, "no such snapshot", "snapshot", "rm", "warm")
	if got := say("copy2", "still"); !strings.HasPrefix(got, "still 3 ") {
		t.Errorf("without its snapshot a copy says %q", got)
	}
}

// Who starts a container from a snapshot is not told that a template is built: none is, until it starts again.
func TestSnapshotNeedsNoTemplate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.env = append(w.env, "XDG_CACHE_HOME="+filepath.Join(w.dir, "cache"), "MANIS_EXERCISE=off")
	w.load("box")
	w.up("--name", "app", "box", "sleep", "1000")
	w.ok("checkpoint", "--name", "warm", "app")
	// Its machine may take a moment more to let go of the template.
	eventually(t, "the template is nobody's", func() bool { return w.manis("template", "rm", "--all").code == 0 })
	start := func(args ...string) string {
		t.Helper()
		p := w.terminal(args...)
		if r := p.wait(); r.code != 0 {
			t.Fatalf("%v: %s", args, r)
		}
		return p.out.String()
	}
	if said := start("restore", "--name", "copy", "warm"); strings.Contains(said, "template") {
		t.Errorf("restore said %q", said)
	}
	w.removeAtEnd("copy")
	if got := w.field("copy", "{{.Manis.Boot}}"); got != "snapshot warm" {
		t.Errorf("the copy came from %q", got)
	}
	w.ok("stop", "-t", "0", "copy")
	if said := start("start", "copy"); !strings.Contains(said, "building a template") {
		t.Errorf("start said %q", said)
	}
}

// In the foreground a copy has the terminal's and the pipes' ends of whoever runs it.
func TestSnapshotStreams(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	w.ok("run", "--rm", "box", "true")
	w.up("-i", "--name", "app", "box", "sh", "-c", counting)
	eventually(t, "the application", func() bool { return w.ok("logs", "app") == "begun" })
	w.ok("checkpoint", "app")
	for range 2 {
		r := w.manisIn("a\nb\n", "run", "--rm", "--from-snapshot", "app")
		if r.code != 0 || r.stdout != "a 1\nb 2\nend of input\n" {
			t.Errorf("the copy: %s", r)
		}
	}
	w.fails(125, "cannot be changed", "run", "--from-snapshot", "app", "-e", "A=b")
	w.fails(125, "", "run", "--from-snapshot", "app", "box")
}

// What cannot be saved or continued is refused with the reason, and what ran runs on.
func TestSnapshotTrouble(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	w.ok("run", "--rm", "box", "true")
	w.fails(1, "no such container", "checkpoint", "nobody")
	w.fails(125, "no such snapshot", "restore", "nothing")

	w.ok("volume", "create", "v")
	w.up("--name", "bound", "-v", "v:/data", "box", "sleep", "1000")
	w.fails(1, "/data", "checkpoint", "bound")
	w.up("--name", "booted", "--boot", "cold", "box", "sleep", "1000")
	w.fails(1, "template", "checkpoint", "booted")
	w.up("--name", "paused", "box", "sleep", "1000")
	w.ok("pause", "paused")
	w.fails(1, "paused", "checkpoint", "paused")
	w.ok("unpause", "paused")

	// A place that cannot be written to.
	if err := os.RemoveAll(filepath.Join(w.root, "snapshots")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.root, "snapshots"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w.fails(1, "snapshot", "checkpoint", "paused")
	if got := w.sh("paused", "echo well"); got != "well" {
		t.Errorf("after a snapshot that failed: %q", got)
	}
	if err := os.Remove(filepath.Join(w.root, "snapshots")); err != nil {
		t.Fatal(err)
	}

	w.ok("checkpoint", "--name", "s", "paused")
	w.ok("rm", "-f", "paused")
	saved := filepath.Join(w.root, "snapshots", "s", "saved.json")
	b, err := os.ReadFile(saved)
	if err != nil {
		t.Fatal(err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	other := strings.Replace(string(b), strings.TrimSpace(string(boot)), "11111111-2222-3333-4444-555555555555", 1)
	if err := os.WriteFile(saved, []byte(other), 0o600); err != nil {
		t.Fatal(err)
	}
	w.fails(125, "booted", "restore", "s")
	if err := os.WriteFile(saved, b, 0o600); err != nil {
		t.Fatal(err)
	}
	pages := filepath.Join(w.root, "snapshots", "s", "pages")
	f, err := os.OpenFile(pages, os.O_RDWR, 0)
	if err != nil {
		// Its owner may make it writable, as who damages it would.
		os.Chmod(pages, 0o600)
		if f, err = os.OpenFile(pages, os.O_RDWR, 0); err != nil {
			t.Fatal(err)
		}
	}
	f.WriteAt([]byte("damage"), 1<<20)
	f.Close()
	w.fails(125, "damaged", "restore", "s")
	w.ok("rm", "-f", "booted", "bound")
	w.ok("rmi", "box")
	w.fails(125, "s", "restore", "s")
}
