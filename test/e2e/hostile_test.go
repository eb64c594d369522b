package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// boundedMemory is what a monitor may take, whatever its container does.
const boundedMemory = 150 << 20

// moved is how many bytes a process has read so far.
func moved(pid int) (n uint64) {
	io, _ := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	fmt.Sscanf(string(io), "rchar: %d", &n)
	return n
}

// A container that floods its output without end, while nobody reads it or while somebody
// has stopped reading, takes a bounded part of the host's memory and disk.
func TestOutputFlood(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	t.Run("nobody reads", func(t *testing.T) {
		w := w.in(t)
		w.up("--name", "flood", "--log-opt", "max-size=1m", "--log-opt", "max-file=2", "box", "yes", "a line that is written again and again")
		monitor, _ := w.vm("flood")
		eventually(t, "a flood", func() bool { return moved(monitor) > 32<<20 })
		if _, peak := residentBytes(monitor); peak > boundedMemory {
			t.Errorf("the monitor takes %d MiB", peak>>20)
		}
		if _, bytes := w.files("containers/" + w.field("flood", "{{.Id}}") + "/log"); bytes > 4<<20 {
			t.Errorf("the log takes %d MiB", bytes>>20)
		}
		w.sh("flood", "true") // it still answers
		w.ok("rm", "-f", "flood")
	})
	t.Run("a reader that stops", func(t *testing.T) {
		w := w.in(t)
		read, write, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer read.Close()
		p := w.start(func(cmd *exec.Cmd, p *running) error {
			cmd.Stdout, cmd.Stderr = write, p.err
			return nil
		}, "run", "--rm", "--name", "stuck", "--log-driver", "none", "box", "yes")
		write.Close()
		if _, err := read.Read(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		monitor, _ := w.vm("stuck")
		// Everything stands still: the container waits for its reader.
		last, since := uint64(0), time.Now()
		eventually(t, "the flood to stand still", func() bool {
			if now := moved(monitor); now != last {
				last, since = now, time.Now()
			}
			return time.Since(since) > time.Second
		})
		for _, pid := range []int{monitor, p.cmd.Process.Pid} {
			if _, peak := residentBytes(pid); peak > boundedMemory {
				t.Errorf("process %d takes %d MiB", pid, peak>>20)
			}
		}
		w.sh("stuck", "true") // others are served
		// And it goes on when the reader does.
		buf := make([]byte, 1<<20)
		for n := 0; n < 8<<20; {
			m, err := read.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			n += m
		}
		// A reader that goes away ends it, as `manis run ... | head` should.
		read.Close()
		if r := p.wait(); r.code != 141 {
			t.Errorf("the reader is gone: %s", r)
		}
	})
}

// Forking without end is stopped by the limit, or by the machine's own; the host, and the
// container's owner, are unharmed.
func TestForkBomb(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	t.Run("with a limit", func(t *testing.T) {
		var children int
		out := w.in(t).ok("run", "--rm", "--pids-limit", "40", "box", "probe", "fork")
		if _, err := fmt.Sscanf(out, "%d children", &children); err != nil || children >= 40 || children < 5 || !strings.Contains(out, "unavailable") {
			t.Errorf("%q", out)
		}
	})
	t.Run("without", func(t *testing.T) {
		w := w.in(t)
		w.up("--name", "bomb", "box", "sh", "-c", "echo up; bomb() { bomb | bomb & }; bomb; sleep 1000")
		eventually(t, "the bomb", func() bool { return strings.HasPrefix(w.ok("logs", "bomb"), "up") })
		monitor, qemu := w.vm("bomb")
		// The host sees one process, with few threads.
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", qemu))
		if err != nil || len(threads) > 100 {
			t.Errorf("QEMU has %d threads, %v", len(threads), err)
		}
		if got := w.status("bomb"); got != "running" && got != "exited" {
			t.Errorf("status %s", got)
		}
		w.ok("rm", "-f", "bomb")
		if alive(qemu) || alive(monitor) {
			t.Error("processes are left")
		}
	})
}

// A container that takes more memory than it may is killed and says why; the host's memory is
// not what it takes.
func TestMemoryHog(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	t.Run("over its limit", func(t *testing.T) {
		w := w.in(t)
		r := w.manis("run", "--name", "hog", "-m", "48m", "box", "probe", "hold", "200")
		if r.code != 137 {
			t.Error(r)
		}
		if got := w.field("hog", "{{.State.OOMKilled}} {{.State.ExitCode}}"); got != "true 137" {
			t.Errorf("OOM, exit code: %s", got)
		}
	})
	t.Run("without a limit", func(t *testing.T) {
		w := w.in(t)
		p := w.begin("", "run", "--rm", "--name", "all", "box", "sh", "-c", "echo up; probe hold 100000; echo $?")
		p.expect("up")
		_, qemu := w.vm("all")
		r := p.wait()
		if r.code != 0 && r.code != 137 {
			t.Error(r)
		}
		// The machine ends at its own size, which is far below the host's.
		if alive(qemu) {
			t.Error("QEMU is left")
		}
	})
}

// What a container prints reaches a terminal only as far as the user asked for it: names,
// commands and errors that it chose cannot speak to the user's terminal.
func TestTerminalEscapesAreHarmless(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	w.up("--name", "c", "box", "sh", "-c", "exec -a $(printf 'evil\\033[31mred') sleep 1000 2>/dev/null || sleep 1000", "\x1b[31mred")
	for _, args := range [][]string{{"top", "c"}, {"ps", "--no-trunc"}} {
		if got := w.ok(args...); strings.Contains(got, "\x1b") {
			t.Errorf("manis %s prints an escape: %q", args[0], got)
		}
	}
	if r := w.manis("exec", "c", "/no\x1b[31msuch"); strings.Contains(r.stderr, "\x1b[31m") {
		t.Errorf("an error prints an escape: %q", r.stderr)
	}
}
