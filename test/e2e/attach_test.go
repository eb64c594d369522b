package e2e

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A terminal of the user becomes one of the container: its size, its changes, its keys.
func TestTerminal(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	p := w.terminal("run", "--rm", "-it", "--name", "c", "box", "sh")
	p.expect("# ")
	p.keys("tty; stty size; echo TERM=$TERM\n")
	p.expect("/dev/pts/0\n40 120\nTERM=xterm\n")
	q := w.terminal("exec", "-it", "c", "sh", "-c", "trap 'stty size' WINCH; echo ready; while :; do sleep 0.1; done")
	q.expect("ready\n")
	p.resize(25, 81)
	q.resize(24, 80)
	q.expect("24 80\n")
	p.keys("until stty size | grep -q '25 81'; do sleep 0.1; done; echo res''ized\n")
	p.expect("resized\n")
	// Control-C goes to the foreground process of the container, not to manis.
	p.keys("sleep 4711\n")
	eventually(t, "the process in the foreground", func() bool { return strings.Contains(w.ok("top", "c"), "sleep 4711") })
	p.keys("\x03")
	p.keys("echo still $((40+2))\n")
	p.expect("still 42")
	p.keys("exit 6\n")
	if r := p.wait(); r.code != 6 {
		t.Errorf("exit code: %s", r)
	}
}

// A program that asks for its terminal's size at once gets the user's, at a later start too.
func TestFirstTerminalSize(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	p := w.terminal("run", "-it", "--name", "c", "box", "stty", "size")
	if r := p.wait(); !strings.HasSuffix("\n"+r.stdout, "\n40 120\n") || r.code != 0 {
		t.Errorf("run -it: %s", r)
	}
	p = w.terminal("start", "-ai", "c")
	if r := p.wait(); !strings.HasSuffix("\n"+r.stdout, "\n40 120\n") || r.code != 0 {
		t.Errorf("start -ai: %s", r)
	}
	p = w.terminal("run", "--rm", "-it", "box", "sh", "-c", "stty size; exit 3")
	if r := p.wait(); !strings.HasSuffix("\n"+r.stdout, "\n40 120\n") || r.code != 3 {
		t.Errorf("run --rm -it: %s", r)
	}
}

func TestTerminalWithoutOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	w.fails(125, "not a terminal", "run", "--rm", "-it", "box", "true")
	w.up("--name", "c", "box", "sleep", "1000")
	w.fails(1, "not a terminal", "exec", "-it", "c", "true")
	// -t alone needs none.
	if got := w.ok("exec", "-t", "c", "sh", "-c", "test -t 1 && echo terminal"); strings.TrimSpace(got) != "terminal" {
		t.Errorf("%q", got)
	}
	p := w.terminal("exec", "-it", "c", "sh", "-c", "stty size; exit 5")
	if r := p.wait(); r.stdout != "40 120\n" || r.code != 5 {
		t.Errorf("exec -it: %s", r)
	}
}

// Detach keys leave the container alone; attach comes back to it, with its input and signals.
func TestDetachAndAttach(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	p := w.terminal("run", "-it", "--name", "c", "--detach-keys", "ctrl-x,x", "box", "sh")
	p.expect("# ")
	p.keys("V=remembered; echo set\n")
	p.expect("\nset\n")
	p.keys("\x18x")
	if r := p.wait(); r.code != 0 || strings.Contains(r.stdout, "read escape sequence") { // as docker: run says nothing
		t.Errorf("detach: %s", r)
	}
	if got := w.status("c"); got != "running" {
		t.Fatalf("status after detach: %s", got)
	}
	p = w.terminal("attach", "c")
	p.keys("\necho it is $V\n")
	p.expect("it is remembered")
	p.keys("\x10\x11") // the default keys
	if r := p.wait(); r.code != 0 || !strings.HasSuffix(r.stdout, "read escape sequence\n") {
		t.Errorf("detach from attach: %s", r)
	}
	p = w.terminal("attach", "c")
	p.keys("\nexit 8\n")
	if r := p.wait(); r.code != 8 {
		t.Errorf("attach gives back %s", r)
	}
	if got := w.field("c", "{{.State.ExitCode}}"); got != "8" {
		t.Errorf("exit code %s", got)
	}
}

// Several may be attached to one container: all see its output; signals of each reach it.
func TestAttachWithoutTerminal(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	w.ok("create", "-i", "--name", "c", "box", "sh", "-c", "trap 'echo usr1' USR1; trap 'echo term; exit 9' TERM; while read line; do echo got $line; done; while :; do sleep 0.1; done")
	w.ok("start", "c")
	w.removeAtEnd("c")
	a, b := w.open("attach", "c"), w.open("attach", "--no-stdin", "c")
	a.write("one\n")
	a.expect("got one")
	b.expect("got one")
	a.write("two\n")
	b.expect("got two")
	a.signal(unix.SIGUSR1)
	a.write("three\n")
	a.expect("usr1")
	b.signal(unix.SIGTERM)
	a.write("four\n") // wakes the shell from its read
	if r := a.wait(); r.code != 9 {
		t.Errorf("the first: %s", r)
	}
	if r := b.wait(); r.code != 9 {
		t.Errorf("the second: %s", r)
	}
}

// Signals to a foreground run go to the container, which decides what they mean.
func TestSignalsGoToTheContainer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	p := w.begin("", "run", "--rm", "box", "sh", "-c", "trap 'echo usr2' USR2; trap 'echo int; exit 12' INT; echo up; while :; do sleep 0.1; done")
	p.expect("up")
	p.signal(unix.SIGUSR2)
	p.expect("usr2")
	p.signal(unix.SIGINT)
	if r := p.wait(); r.code != 12 || !strings.Contains(r.stdout, "int") {
		t.Error(r)
	}
}
