package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// daemon is a manisd of a world.
type daemon struct {
	w   *world
	cmd *exec.Cmd
}

// startDaemon starts manisd, which ends with the test. That others keep the host busy, other tests
// perhaps, is no reason for it to wait.
func (w *world) startDaemon(args ...string) *daemon {
	w.t.Helper()
	path := filepath.Join(filepath.Dir(w.binary), "manisd")
	if _, err := os.Stat(path); err != nil {
		w.t.Skip("manisd is not beside manis: ", err)
	}
	cmd := exec.Command(path, append([]string{"--max-pressure", "0"}, args...)...)
	cmd.Env, cmd.Dir = w.env, w.dir
	var said strings.Builder
	cmd.Stderr = &said
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if w.user != nil {
		cmd.SysProcAttr.Credential = w.user.credential()
	}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	d := &daemon{w, cmd}
	w.t.Cleanup(func() {
		d.end(syscall.SIGTERM)
		if w.t.Failed() {
			w.t.Logf("manisd said: %s", said.String())
		}
	})
	return d
}

// end sends a signal and waits.
func (d *daemon) end(sig syscall.Signal) {
	d.cmd.Process.Signal(sig)
	d.cmd.Wait()
}

// waiting are the sockets of machines that wait.
func (w *world) waiting() []string {
	sockets, _ := filepath.Glob(filepath.Join(w.run, "pool", "*-*"))
	var found []string
	for _, s := range sockets {
		if !strings.HasPrefix(filepath.Base(s), ".") {
			found = append(found, s)
		}
	}
	return found
}

func (w *world) awaitWaiting(n int) {
	w.t.Helper()
	eventually(w.t, "machines to wait", func() bool { return len(w.waiting()) == n })
}

// With manisd, containers get machines that run already; each gets one of its own, and those
// that need what such a machine has not, or find none, start from the template.
func TestPool(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	d := w.startDaemon("-n", "2")
	w.awaitWaiting(2)
	const script = "cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/boot_id; hostname; date +%s"
	seen := map[string]bool{}
	var names []string
	for i := range 3 {
		w.awaitWaiting(2)
		name := string(rune('a' + i))
		names = append(names, name)
		w.up("--name", name, "--hostname", "host-"+name, "-p", "127.0.0.1::80", "box", "sh", "-c", "echo hello; sleep 1000")
		if got := w.field(name, "{{.Manis.Boot}}"); !strings.HasPrefix(got, "pool ") {
			t.Errorf("%s came from %q", name, got)
		}
		if _, qemu := w.vm(name); idle(qemu) {
			t.Errorf("%s runs only when nobody else wants the processor", name)
		}
		lines := strings.Split(w.sh(name, script), "\n")
		if len(lines) != 5 || lines[3] != "host-"+name {
			t.Fatalf("%s printed %q", name, lines)
		}
		for _, line := range lines[:3] {
			if seen[line] {
				t.Errorf("%s has %q of another container", name, line)
			}
			seen[line] = true
		}
		if clock, err := time.ParseDuration(lines[4] + "s"); err != nil || time.Since(time.Unix(int64(clock.Seconds()), 0)).Abs() > commandTime {
			t.Errorf("%s believes that it is %s", name, lines[4])
		}
		eventually(t, "the logs", func() bool { return w.ok("logs", name) == "hello" })
	}
	w.sh("a", "echo kept >/file")
	w.ok("restart", "-t", "0", "a") // not from the pool, with the same writable layer
	if got := w.sh("a", "cat /file"); got != "kept" {
		t.Errorf("after a restart: %q", got)
	}
	w.awaitWaiting(2)
	for _, args := range []string{
		"--rm --boot template", "--rm -v data:/data", "--rm -m 100m", "--rm --network none", "--rm --read-only", "--rm --storage-opt type=memory",
	} {
		if got := w.ok(append(append([]string{"run"}, strings.Fields(args)...), "box", "echo", args)...); got != args {
			t.Errorf("%s: %q", args, got)
		}
	}
	w.fails(127, "no such file", "run", "--rm", "box", "/nonexistent")

	// A daemon that dies takes the machines that wait along, and no container.
	d.end(syscall.SIGKILL)
	w.awaitWaiting(0)
	for _, name := range names {
		if got := w.sh(name, "echo well"); got != "well" {
			t.Errorf("%s after the daemon's death: %q", name, got)
		}
	}
	if got := w.ok("run", "--rm", "box", "echo", "well"); got != "well" {
		t.Errorf("without the daemon: %q", got)
	}
}

// More starts at once than machines wait, some of which are dead: all containers run.
func TestPoolUnderPressure(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	w.startDaemon("-n", "2")
	w.awaitWaiting(2)
	// A waiting process that is killed leaves its socket.
	for pid, command := range w.processes() {
		if strings.Contains(command, "standby") {
			kill(t, pid)
			break
		}
	}
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			if got := w.ok("run", "--rm", "box", "echo", "well"); got != "well" {
				t.Errorf("%q", got)
			}
		})
	}
	wg.Wait()
	w.awaitWaiting(2)
	// What is replaced may also be the machine.
	for pid, command := range w.processes() {
		if strings.Contains(command, "qemu") {
			kill(t, pid)
		}
	}
	if got := w.ok("run", "--rm", "box", "echo", "well"); got != "well" {
		t.Errorf("%q", got)
	}
	w.awaitWaiting(2)
}
