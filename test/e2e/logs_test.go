package e2e

import (
	"strings"
	"testing"
	"time"
)

func TestLogs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	w.up("--name", "c", "box", "sh", "-c",
		"for i in 1 2 3 4 5; do echo out $i; echo err $i >&2; done; while ! test -e /go; do sleep 0.05; done; echo late; printf 'no end'")
	eventually(t, "the first lines", func() bool { return strings.Count(w.manis("logs", "c").stderr, "\n") == 5 })
	t.Run("both streams", func(t *testing.T) {
		r := w.in(t).manis("logs", "c")
		if r.stdout != "out 1\nout 2\nout 3\nout 4\nout 5\n" || r.stderr != "err 1\nerr 2\nerr 3\nerr 4\nerr 5\n" {
			t.Error(r)
		}
	})
	t.Run("tail", func(t *testing.T) {
		r := w.in(t).manis("logs", "--tail", "2", "c")
		if strings.Count(r.stdout+r.stderr, "\n") != 2 {
			t.Error(r)
		}
		if r := w.in(t).manis("logs", "-n", "0", "c"); r.stdout+r.stderr != "" || r.code != 0 {
			t.Error(r)
		}
	})
	t.Run("timestamps", func(t *testing.T) {
		line, _, _ := strings.Cut(w.in(t).ok("logs", "-t", "c"), "\n")
		stamp, text, _ := strings.Cut(line, " ")
		if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil || text != "out 1" {
			t.Errorf("%q: %v", line, err)
		}
	})
	between := time.Now().UTC().Format(time.RFC3339Nano)
	t.Run("follow", func(t *testing.T) {
		w := w.in(t)
		p := w.begin("", "logs", "-f", "c")
		q := w.begin("", "logs", "-f", "--since", between, "c")
		p.complain("err 5")
		w.manis("exec", "c", "touch", "/go") // which may end with the container
		if r := p.wait(); !strings.HasSuffix(r.stdout, "out 5\nlate\nno end") || r.code != 0 {
			t.Errorf("follow: %s", r)
		}
		if r := q.wait(); r.stdout != "late\nno end" || r.stderr != "" {
			t.Errorf("follow since: %s", r)
		}
	})
	t.Run("since and until", func(t *testing.T) {
		w := w.in(t)
		if got := w.ok("logs", "--since", between, "c"); got != "late\nno end" {
			t.Errorf("since: %q", got)
		}
		if r := w.manis("logs", "--until", between, "c"); !strings.HasSuffix(r.stdout, "out 5\n") {
			t.Errorf("until: %s", r)
		}
		if r := w.manis("logs", "--since", "1h", "c"); !strings.HasPrefix(r.stdout, "out 1\n") {
			t.Errorf("since an hour: %s", r)
		}
		w.fails(1, "yesterday-ish", "logs", "--since", "yesterday-ish", "c")
	})
	t.Run("of a container that ended", func(t *testing.T) {
		if r := w.in(t).manis("logs", "-f", "c"); !strings.HasSuffix(r.stdout, "late\nno end") || r.code != 0 {
			t.Error(r)
		}
	})
}

// Logs are rotated as asked for, reading goes over the files, and none are kept where none are
// wanted.
func TestLogOptions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	w.ok("run", "-d", "--name", "small", "--log-opt", "max-size=64k", "--log-opt", "max-file=3", "box", "sh", "-c", "seq 1 20000")
	w.ok("wait", "small")
	lines := strings.Split(w.ok("logs", "small"), "\n")
	if n := len(lines); n < 1000 || n >= 20000 || lines[n-1] != "20000" {
		t.Errorf("%d lines are kept, the last is %s", n, lines[n-1])
	}
	for i := 1; i < len(lines); i++ {
		if len(lines[i]) < len(lines[i-1]) {
			t.Fatalf("after %s comes %s", lines[i-1], lines[i])
		}
	}
	if _, bytes := w.files("containers/" + w.field("small", "{{.Id}}") + "/log"); bytes > 3*64<<10+16<<10 {
		t.Errorf("the log takes %d bytes", bytes)
	}
	if got := w.ok("run", "--name", "none", "--log-driver", "none", "box", "echo", "seen"); got != "seen" {
		t.Errorf("run printed %q", got)
	}
	w.fails(1, "does not support reading", "logs", "none")
}
