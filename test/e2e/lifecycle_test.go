package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The story of one container from create to rm, told by every command on the way.
func TestLifecycle(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	cid := filepath.Join(w.dir, "cid")
	id := w.ok("create", "--name", "c", "--cidfile", cid, "-l", "colour=blue", "-l", "empty", "--stop-timeout", "1", "box",
		"sh", "-c", "trap 'echo told; exit 3' TERM; echo begun; while :; do sleep 0.1; done")
	if b, err := os.ReadFile(cid); err != nil || string(b) != id || len(id) != 64 {
		t.Errorf("id %q, in the file %q, %v", id, b, err)
	}
	if got := w.status("c"); got != "created" {
		t.Errorf("status %s after create", got)
	}
	if got := w.ok("ps", "-q"); got != "" {
		t.Errorf("ps shows %q before the start", got)
	}
	w.fails(1, "not running", "kill", "c")
	w.fails(1, "not running", "pause", "c")
	w.fails(1, "not running", "top", "c")
	w.fails(1, "stopped container", "attach", "c")

	if got := w.ok("start", "c"); got != "c" {
		t.Errorf("start printed %q", got)
	}
	w.ok("start", "c") // already running: no error
	w.removeAtEnd(id)
	eventually(t, "the first line", func() bool { return w.ok("logs", "c") == "begun" })

	t.Run("ps", func(t *testing.T) {
		w := w.in(t)
		other := w.ok("create", "--name", "other", "box", "true")
		for _, c := range []struct{ args, want string }{
			{"-q", id[:12]},
			{"-q --no-trunc", id},
			{"-aq --filter name=other", other[:12]},
			{"-q --filter label=colour=blue", id[:12]},
			{"-q --filter label=colour=red", ""},
			{"-q --filter label=empty", id[:12]},
			{"-aq --filter status=created", other[:12]},
			{"-q --filter ancestor=box --filter status=running", id[:12]},
			{"-aq --filter since=c", other[:12]},
			{"-aq --filter before=other", id[:12]},
			{"-lq", other[:12]},
			{"-n 1 -q", other[:12]},
			{"--format {{.Names}}:{{.State}}:{{.Image}}", "c:running:box"},
			{"-q --filter id=" + id[:6], id[:12]},
		} {
			if got := w.ok(append([]string{"ps"}, strings.Fields(c.args)...)...); got != c.want {
				t.Errorf("ps %s: %q, want %q", c.args, got, c.want)
			}
		}
		w.fails(1, "invalid filter", "ps", "--filter", "status=asleep")
		w.fails(1, "colour", "ps", "--filter", "colour=blue")
		table := w.ok("ps")
		if !strings.HasPrefix(table, "CONTAINER ID") || !strings.Contains(table, "Up ") || strings.Contains(table, "other") {
			t.Errorf("table:\n%s", table)
		}
		var row struct{ ID, Names, State, Status, Image, Command, Labels string }
		if err := json.Unmarshal([]byte(w.ok("ps", "--format", "json")), &row); err != nil || row.Names != "c" || row.State != "running" {
			t.Errorf("json: %+v, %v", row, err)
		}
		if got := w.ok("ps", "--format", "table {{.Names}}\t{{.State}}"); !strings.HasPrefix(got, "NAMES") {
			t.Errorf("table of a template: %q", got)
		}
		w.ok("rm", "other")
	})
	t.Run("names and ids", func(t *testing.T) {
		w := w.in(t)
		for _, ref := range []string{"c", "/c", id, id[:12], id[:3]} {
			if got := w.field(ref, "{{.Id}}"); got != id {
				t.Errorf("%s is %s", ref, got)
			}
		}
		w.fails(1, "no such", "start", "nobody")
		w.fails(1, "no such", "logs", "nobody")
		w.fails(1, "no such", "stop", "nobody")
		w.fails(1, "no such", "rm", "nobody")
		w.fails(1, "no such", "wait", "nobody")
	})
	t.Run("top", func(t *testing.T) {
		out := w.in(t).ok("top", "c")
		if lines := strings.Split(out, "\n"); len(lines) < 2 || !strings.Contains(lines[0], "PID") || !strings.Contains(out, "sh -c trap") || !strings.Contains(out, "root") {
			t.Errorf("top:\n%s", out)
		}
	})
	t.Run("stats", func(t *testing.T) {
		w := w.in(t)
		var row struct{ Name, CPUPerc, MemUsage, PIDs, NetIO, HostMem string }
		if err := json.Unmarshal([]byte(w.ok("stats", "--no-stream", "--format", "json", "c")), &row); err != nil {
			t.Fatal(err)
		}
		pids, err := strconv.Atoi(row.PIDs)
		if row.Name != "c" || err != nil || pids < 1 || !strings.Contains(row.MemUsage, " / ") || !strings.HasSuffix(row.CPUPerc, "%") {
			t.Errorf("stats: %+v", row)
		}
	})
	t.Run("pause", func(t *testing.T) {
		w := w.in(t)
		w.ok("pause", "c")
		if got := w.ok("ps", "--format", "{{.State}} {{.Status}}"); !strings.HasPrefix(got, "paused Up") || !strings.Contains(got, "(Paused)") {
			t.Errorf("ps: %q", got)
		}
		w.fails(1, "paused", "exec", "c", "true")
		w.fails(1, "paused", "pause", "c")
		w.fails(1, "paused", "start", "c")
		w.fails(1, "container is paused", "rm", "c")
		w.ok("unpause", "c")
		w.fails(1, "not paused", "unpause", "c")
		w.sh("c", "true")
	})
	t.Run("rename", func(t *testing.T) {
		w := w.in(t)
		w.ok("rename", "c", "other") // a name that no id begins with
		if got := w.field("other", "{{.Name}}"); got != "/other" {
			t.Errorf("name %s", got)
		}
		w.ok("rename", "other", "c")
		w.fails(1, "no such", "inspect", "other")
		w.fails(1, "same name", "rename", "c", "c")
		w.fails(1, "a/b", "rename", "c", "a/b")
	})
	w.sh("c", "echo kept >/kept")
	t.Run("stop", func(t *testing.T) {
		w := w.in(t)
		w.fails(1, "container is running", "rm", "c")
		if got := w.ok("stop", "c"); got != "c" {
			t.Errorf("stop printed %q", got)
		}
		if got := w.field("c", "{{.State.Status}} {{.State.ExitCode}} {{.State.Running}} {{.State.Pid}}"); got != "exited 3 false 0" {
			t.Errorf("state: %s", got)
		}
		if got := w.ok("ps", "-a", "--format", "{{.Status}}"); !strings.HasPrefix(got, "Exited (3) ") {
			t.Errorf("ps: %q", got)
		}
		if got := w.ok("ps", "-aq", "--filter", "exited=3"); got != id[:12] {
			t.Errorf("ps --filter exited: %q", got)
		}
		if got := w.ok("wait", "c"); got != "3" {
			t.Errorf("wait printed %q", got)
		}
		w.ok("stop", "c") // stopped already: no error
		if got := w.ok("logs", "c"); got != "begun\ntold" {
			t.Errorf("logs: %q", got)
		}
	})
	t.Run("start again", func(t *testing.T) {
		w := w.in(t)
		w.ok("start", "c")
		if got := w.sh("c", "cat /kept"); got != "kept" {
			t.Errorf("the writable layer holds %q", got)
		}
		if got := w.field("c", "{{.State.Status}} {{.State.ExitCode}}"); got != "running 0" {
			t.Errorf("state: %s", got)
		}
	})
	t.Run("restart", func(t *testing.T) {
		w := w.in(t)
		before := w.field("c", "{{.State.StartedAt}}")
		w.ok("restart", "c")
		if after := w.field("c", "{{.State.StartedAt}}"); after == before {
			t.Error("it was not started anew")
		}
		if got := w.sh("c", "cat /kept"); got != "kept" {
			t.Errorf("the writable layer holds %q", got)
		}
		if got := w.field("c", "{{.RestartCount}}"); got != "0" {
			t.Errorf("a restart by the user counts as %s", got)
		}
	})
	t.Run("signals", func(t *testing.T) {
		w := w.in(t)
		w.fails(1, "SIGNOPE", "kill", "-s", "SIGNOPE", "c")
		// Before its trap is set, a container's first process is deaf to the signal.
		eventually(t, "the trap to be set", func() bool { return strings.HasSuffix(w.ok("logs", "c"), "begun") })
		p := w.begin("", "wait", "c")
		w.ok("kill", "-s", "TERM", "c")
		if r := p.wait(); r.stdout != "3\n" {
			t.Errorf("wait: %s", r)
		}
	})
	w.ok("rm", "c")
	w.fails(1, "no such object", "inspect", "c")
	if n, _ := w.files("containers"); n > 2 { // the directory and its lock
		t.Errorf("%d files left of containers", n)
	}
}

// A container that does not listen to its stop signal is killed when its time is up.
func TestStopTimeout(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	w.up("--name", "deaf", "--stop-signal", "USR1", "box", "sh", "-c", "trap 'echo got USR1' USR1; trap '' TERM; echo up; while :; do sleep 0.1; done")
	eventually(t, "the container", func() bool { return w.ok("logs", "deaf") == "up" })
	w.ok("stop", "-t", "1", "deaf")
	if got := w.field("deaf", "{{.State.ExitCode}} {{.State.OOMKilled}}"); got != "137 false" {
		t.Errorf("exit code, OOM: %s", got)
	}
	if got := w.ok("logs", "deaf"); got != "up\ngot USR1" {
		t.Errorf("logs: %q", got)
	}
	// A paused container is stopped too.
	w.ok("start", "deaf")
	w.ok("pause", "deaf")
	w.ok("stop", "-t", "0", "deaf")
	if got := w.status("deaf"); got != "exited" {
		t.Errorf("status %s", got)
	}
}

func TestRestartPolicies(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	t.Run("on-failure", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		w.ok("run", "-d", "--name", "fails", "--restart", "on-failure:2", "box", "sh", "-c", "echo try >>/tries; exit 4")
		if got := w.ok("wait", "fails"); got != "4" {
			t.Errorf("wait printed %s", got)
		}
		if got := w.field("fails", "{{.State.Status}} {{.RestartCount}}"); got != "exited 2" {
			t.Errorf("state and restarts: %s", got)
		}
		w.ok("run", "-d", "--name", "succeeds", "--restart", "on-failure:2", "box", "true")
		w.ok("wait", "succeeds")
		if got := w.field("succeeds", "{{.State.Status}} {{.RestartCount}}"); got != "exited 0" {
			t.Errorf("state and restarts: %s", got)
		}
	})
	t.Run("always, also over a killed machine", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		w.up("--name", "always", "--restart", "always", "box", "sh", "-c", "echo begun; exec sleep 1000")
		_, qemu := w.vm("always")
		if err := syscall.Kill(qemu, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a restart", func() bool { return w.field("always", "{{.RestartCount}} {{.State.Status}}") == "1 running" })
		if _, again := w.vm("always"); again == qemu {
			t.Error("it has the same machine")
		}
		// Who stops it means it.
		w.ok("stop", "-t", "0", "always")
		if got := w.status("always"); got != "exited" {
			t.Errorf("status %s after stop", got)
		}
		w.ok("update", "--restart", "no", "always")
		if got := w.field("always", "{{.HostConfig.RestartPolicy.Name}}"); got != "no" {
			t.Errorf("policy %s", got)
		}
	})
	t.Run("update while it runs", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		w.up("--name", "changed", "--restart", "always", "box", "sh", "-c", "sleep 0.2; exit 1")
		eventually(t, "a restart", func() bool { return w.field("changed", "{{.RestartCount}}") != "0" })
		w.ok("update", "--restart", "no", "changed")
		w.ok("wait", "changed")
		if got := w.field("changed", "{{.State.Status}} {{.State.ExitCode}}"); got != "exited 1" {
			t.Errorf("state: %s", got)
		}
		w.fails(1, "sometimes", "update", "--restart", "sometimes", "changed")
	})
}

func TestHealth(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	w.up("--name", "c", "--health-cmd", "echo checked; test -e /well", "--health-interval", "100ms", "--health-retries", "2",
		"--health-start-period", "0s", "--health-timeout", "30s", "box", "sleep", "1000")
	if got := w.ok("ps", "--format", "{{.Status}}"); !strings.Contains(got, "(health: starting)") && !strings.Contains(got, "(unhealthy)") {
		t.Errorf("ps: %q", got)
	}
	health := func() string { return w.field("c", "{{.State.Health.Status}}") }
	eventually(t, "unhealthy", func() bool { return health() == "unhealthy" })
	if got := w.ok("ps", "-q", "--filter", "health=unhealthy"); got == "" {
		t.Error("ps --filter health does not find it")
	}
	p := w.begin("", "wait", "--condition", "healthy", "c")
	w.sh("c", "touch /well")
	if r := p.wait(); r.code != 0 {
		t.Errorf("wait: %s", r)
	}
	if got := health(); got != "healthy" {
		t.Errorf("health %s after wait", got)
	}
	var log []struct {
		ExitCode int
		Output   string
	}
	if err := json.Unmarshal([]byte(w.field("c", "{{json .State.Health.Log}}")), &log); err != nil || len(log) == 0 || log[0].Output != "checked\n" {
		t.Errorf("log %+v, %v", log, err)
	}
	if got := w.ok("ps", "--format", "{{.Status}}"); !strings.Contains(got, "(healthy)") {
		t.Errorf("ps: %q", got)
	}
}

// Two that remove a container at one time leave nothing, and at least one says that it did.
func TestTwoRemovalsAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	w.ok("run", "-d", "--name", "c", "-v", "/anonymous", "box", "sleep", "1000")
	var both []*running
	for range 3 {
		both = append(both, w.begin("", "rm", "-f", "-v", "c"))
	}
	done := 0
	for _, p := range both {
		r := p.wait()
		if r.code == 0 && r.stdout == "c\n" {
			done++
		} else if r.code != 0 && !strings.Contains(r.stderr, "in progress") && !strings.Contains(r.stderr, "no such container") {
			t.Error(r)
		}
	}
	if done == 0 {
		t.Error("nobody removed it")
	}
	if got := w.ok("ps", "-aq") + w.ok("volume", "ls", "-q"); got != "" {
		t.Errorf("left: %s", got)
	}
	w.checkClean()
}

// Many requests at once to one container, and many containers' commands at once, keep the
// state right.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	w.up("--name", "c", "box", "sleep", "1000")
	var all []*running
	for i := range 12 {
		all = append(all, w.begin("", "exec", "c", "sh", "-c", "echo "+strconv.Itoa(i)))
		all = append(all, w.begin("", "create", "--name", "n"+strconv.Itoa(i/2), "box"))
	}
	created := 0
	for i, p := range all {
		r := p.wait()
		switch {
		case i%2 == 0 && (r.code != 0 || r.stdout != strconv.Itoa(i/2)+"\n"):
			t.Errorf("exec %d: %s", i/2, r)
		case i%2 == 1 && r.code == 0:
			created++
		}
	}
	if created != 6 {
		t.Errorf("%d containers of 6 names were created", created)
	}
	if got := len(strings.Fields(w.ok("ps", "-aq"))); got != 7 {
		t.Errorf("%d containers", got)
	}
}

// start -a and run give back the exit code, run --rm leaves nothing when the command returns.
func TestRemovedWhenRunReturns(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	if r := w.manis("run", "--rm", "--name", "c", "box", "sh", "-c", "exit 3"); r.code != 3 {
		t.Error(r)
	}
	if got := w.ok("ps", "-aq"); got != "" {
		t.Errorf("left: %s", got)
	}
	w.ok("run", "-d", "--rm", "--name", "c", "box", "sh", "-c", "sleep 0.3")
	eventually(t, "the container to go", func() bool { return w.ok("ps", "-aq") == "" })
	start := time.Now()
	w.checkClean()
	if time.Since(start) > commandTime {
		t.Error("cleaning took too long")
	}
}

// A monitor that has said that its container has ended, and that has not ended itself, holds up a start for as long. What a start
// fails of is told, whatever it is.
func TestStartAfterTheLastMonitor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	w.ok("run", "--name", "c", "box", "echo", "once")
	// As that monitor, until free is called.
	hold := func() (free func()) {
		path := filepath.Join(w.root, "containers", w.field("c", "{{.Id}}"), "lock")
		var f *os.File
		eventually(t, "the lock of the container", func() bool {
			var err error
			if f, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
				t.Fatal(err)
			}
			if unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}) == nil {
				return true
			}
			f.Close()
			return false
		})
		return func() { f.Close() }
	}
	free := hold()
	p := w.begin("", "start", "-a", "c")
	time.Sleep(time.Second) // so that it has found the lock taken
	free()
	if r := p.wait(); r.code != 0 || r.stdout != "once\n" {
		t.Errorf("start, while the last monitor ends: %s", r)
	}
	defer hold()()
	if r := w.manis("start", "c"); r.code != 1 || !strings.Contains(r.stderr, "container is running") {
		t.Errorf("start, while the last monitor does not end: %s", r)
	}
}
