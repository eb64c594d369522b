package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func kill(t testing.TB, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill %d: %v", pid, err)
	}
}

// A QEMU that is killed ends its container with 137 and a reason; everybody who waits
// hears of it, and the container starts again with what it had written.
func TestKilledQEMU(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	p := w.begin("", "run", "--name", "c", "-p", "127.0.0.1::80", "-v", "data:/data", "box", "sh", "-c", "cat /data/kept 2>/dev/null; echo kept >/data/kept; sync; echo up; sleep 1000")
	w.removeAtEnd("c")
	p.expect("up")
	e := w.begin("", "exec", "c", "sleep", "1000")
	wait := w.begin("", "wait", "c")
	follow := w.begin("", "logs", "-f", "c")
	follow.expect("up")
	monitor, qemu := w.vm("c")
	kill(t, qemu)
	if r := p.wait(); r.code != 137 || !strings.Contains(r.stderr, "virtual machine") {
		t.Errorf("run: %s", r)
	}
	if r := e.wait(); r.code == 0 {
		t.Errorf("exec: %s", r)
	}
	if r := wait.wait(); r.stdout != "137\n" {
		t.Errorf("wait: %s", r)
	}
	if r := follow.wait(); r.code != 0 {
		t.Errorf("logs -f: %s", r)
	}
	if got := w.field("c", "{{.State.Status}} {{.State.ExitCode}} {{.State.Error}}"); !strings.HasPrefix(got, "exited 137 ") || !strings.Contains(got, "ended") {
		t.Errorf("state: %s", got)
	}
	eventually(t, "the monitor to end", func() bool { return !alive(monitor) })
	w.ok("start", "c")
	eventually(t, "what was written before", func() bool { return w.ok("logs", "c") == "up\nkept\nup" })
}

// A monitor that is killed takes its QEMU with it; the next command says so, and the
// container can be started or removed like any other.
func TestKilledMonitor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	p := w.begin("", "run", "--name", "c", "box", "sh", "-c", "echo >>/count; sync; wc -l </count; sleep 1000")
	w.removeAtEnd("c")
	p.expect("1")
	monitor, qemu := w.vm("c")
	kill(t, monitor)
	if r := p.wait(); r.code != 125 || !strings.Contains(r.stderr, "monitor") {
		t.Errorf("run: %s", r)
	}
	eventually(t, "QEMU to end", func() bool { return !alive(qemu) })
	if got := w.field("c", "{{.State.Status}} {{.State.ExitCode}} {{.State.Pid}}"); got != "dead 137 0" {
		t.Errorf("state: %s", got)
	}
	if got := w.ok("ps", "-a", "--format", "{{.Names}} {{.State}}"); got != "c dead" {
		t.Errorf("ps: %q", got)
	}
	if got := w.ok("wait", "c"); got != "137" {
		t.Errorf("wait: %q", got)
	}
	w.fails(1, "not running", "exec", "c", "true")
	w.ok("stop", "c")
	w.ok("start", "c")
	eventually(t, "the second life", func() bool { return w.ok("logs", "c") == "1\n2" })

	t.Run("with --rm", func(t *testing.T) {
		w := w.in(t)
		w.ok("run", "-d", "--rm", "--name", "gone", "-v", "/anonymous", "box", "sleep", "1000")
		monitor, _ := w.vm("gone")
		kill(t, monitor)
		eventually(t, "the container to go", func() bool { return w.ok("ps", "-aq", "--filter", "name=gone") == "" })
		w.ok("system", "prune", "-f", "--volumes")
		if got := w.ok("volume", "ls", "-q"); got != "" {
			t.Errorf("volumes left: %s", got)
		}
	})
	t.Run("asked to end", func(t *testing.T) {
		w := w.in(t)
		w.up("--name", "polite", "box", "sh", "-c", "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.1; done")
		eventually(t, "the trap to be set", func() bool { return w.ok("logs", "polite") == "up" })
		monitor, _ := w.vm("polite")
		if err := syscall.Kill(monitor, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		w.awaitStatus("polite", "exited")
		if got := w.ok("logs", "polite"); got != "up\nbye" {
			t.Errorf("logs: %q", got)
		}
	})
}

// A guest whose kernel panics ends its container with a reason, and a machine that does not
// answer any more can still be stopped and removed.
func TestGuestPanicAndHang(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	t.Run("panic", func(t *testing.T) {
		w := w.in(t)
		// There is no magic key in the guest's kernel: it panics when memory runs out.
		r := w.manis("run", "--name", "panic", "--privileged", "box", "sh", "-c", "echo 2 >/proc/sys/vm/panic_on_oom && probe hold 4000")
		if r.code != 137 || !strings.Contains(strings.ToLower(r.stderr), "panic") {
			t.Error(r)
		}
		if got := w.field("panic", "{{.State.Status}} {{.State.ExitCode}} {{.State.Error}}"); !strings.HasPrefix(got, "exited 137 ") || !strings.Contains(strings.ToLower(got), "panic") {
			t.Errorf("state: %s", got)
		}
	})
	t.Run("hang", func(t *testing.T) {
		w := w.in(t)
		w.up("--name", "hang", "box", "sleep", "1000")
		_, qemu := w.vm("hang")
		if err := syscall.Kill(qemu, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		w.ok("stop", "-t", "1", "hang")
		if alive(qemu) {
			t.Error("QEMU is still there")
		}
		if got := w.field("hang", "{{.State.Status}} {{.State.ExitCode}}"); got != "exited 137" {
			t.Errorf("state: %s", got)
		}
	})
}

// A front end may be killed at any moment of a pull, a start or a run: the container goes on
// if it was started and is gone or startable if not, and nothing is left behind.
func TestKilledFrontEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := newHub(t)
	name := h.push(image(t, "box"), "box:1")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	w.ok("pull", "-q", name)
	for i := range 10 {
		delay := time.Duration(random.IntN(4000)) * time.Millisecond
		var args []string
		switch i % 3 {
		case 0:
			w.manis("rmi", "-f", name)
			args = []string{"run", "--rm", "--name", "c", name, "sh", "-c", "echo up; sleep 1000"}
		case 1:
			args = []string{"run", "-d", "--name", "c", name, "sleep", "1000"}
		case 2:
			w.manis("pull", "-q", name)
			w.ok("create", "--name", "c", name, "sleep", "1000")
			args = []string{"start", "-a", "c"}
		}
		p := w.begin("", args...)
		time.Sleep(delay) // the moment is what is tried
		p.cmd.Process.Kill()
		<-p.done
		// Whatever is there is told truly, and can be removed.
		for _, id := range strings.Fields(w.ok("ps", "-aq")) {
			if r := w.manis("inspect", "--format", "{{.State.Status}}", id); r.code != 0 && !strings.Contains(r.stderr, "no such") {
				t.Errorf("after %v of %v: %s", delay, args, r)
			}
			w.ok("rm", "-f", "-v", id)
		}
		eventually(t, "every process to end", func() bool { return len(w.processes()) == 0 })
	}
	w.ok("run", "--rm", "-q", name, "true")
	w.ok("system", "prune", "-f", "-a")
	if n, bytes := w.files("images/blobs"); bytes > 64<<10 {
		t.Errorf("%d files of %d bytes left of images", n, bytes)
	}
}

// Ctrl-C ends a pull and a start at once, with 130 and without a trace; the next pull goes
// on where the first was.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := newHub(t)
	name := h.push(image(t, "box"), "box:1")
	t.Run("pull", func(t *testing.T) {
		w := w.in(t)
		asked, release := make(chan struct{}, 16), make(chan struct{})
		h.spoil(func(_ http.ResponseWriter, r *http.Request) bool {
			asked <- struct{}{}
			select {
			case <-release:
			case <-r.Context().Done():
			}
			return false
		})
		p := w.begin("", "pull", name)
		<-asked
		p.signal(unix.SIGINT)
		if r := p.wait(); r.code != 130 {
			t.Error(r)
		}
		h.spoil(nil)
		close(release)
		if got := w.ok("images", "-aq"); got != "" {
			t.Errorf("images: %s", got)
		}
		w.ok("pull", "-q", name)
	})
	t.Run("start", func(t *testing.T) {
		w := w.in(t)
		for _, delay := range []time.Duration{100, 700, 1500} {
			p := w.begin("", "run", "--name", "c", name, "sh", "-c", "trap 'exit 130' INT; while :; do sleep 0.1; done")
			time.Sleep(delay * time.Millisecond)
			p.signal(unix.SIGINT)
			// A shell that has begun and not yet set its trap is deaf to it, as every first
			// process is: its user tries again.
			ended := make(chan struct{})
			go func() {
				for {
					select {
					case <-ended:
						return
					case <-time.After(2 * time.Second):
						p.cmd.Process.Signal(unix.SIGINT)
					}
				}
			}()
			if r := p.wait(); r.code != 130 {
				t.Errorf("after %d ms: %s", delay, r)
			}
			close(ended)
			// It was given up before it began, or it ended by its own decision.
			w.manis("rm", "-f", "c")
		}
		if got := w.ok("ps", "-aq"); got != "" {
			t.Errorf("containers: %s", got)
		}
	})
	t.Run("terminate", func(t *testing.T) {
		w := w.in(t)
		p := w.begin("", "run", "--rm", "--name", "c", name, "sleep", "1000")
		eventually(t, "the container's directory", func() bool { return w.ok("ps", "-aq") != "" })
		p.signal(unix.SIGTERM)
		if r := p.wait(); r.code != 143 && r.code != 137 {
			// A sleep that has begun is deaf to it as the first process; then it is killed.
			t.Log(r)
		}
	})
}

// A store on a full disk says so, keeps what it has, and works again when there is room.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	needRoot(t, "mount a small disk")
	w := newWorld(t)
	if err := os.Mkdir(w.root, 0o700); err != nil {
		t.Fatal(err)
	}
	// A conversion leaves 256 MiB of a disk to others.
	if err := unix.Mount("tmpfs", w.root, "tmpfs", 0, "size=340m"); err != nil {
		t.Skipf("no tmpfs on this machine: %v", err)
	}
	root := w.root
	t.Cleanup(func() { unix.Unmount(root, unix.MNT_DETACH) })
	h := newHub(t)
	box := h.push(image(t, "box"), "box:1")
	large := h.push(boxWith(t, nil, file{name: "large", body: noise(100 << 20)}), "large:1")
	small := h.push(boxWith(t, nil, file{name: "small", body: noise(4 << 20)}), "small:1")
	w.ok("run", "--rm", "-q", box, "true")
	t.Run("no room for a root filesystem", func(t *testing.T) {
		w := w.in(t)
		w.fails(125, "no space left", "run", "--rm", "-q", large, "true")
		w.ok("rmi", "-f", large)
	})
	filler := filepath.Join(w.root, "filler")
	fill(t, filler)
	t.Run("no room at all", func(t *testing.T) {
		w := w.in(t)
		w.fails(1, "no space left", "pull", "-q", small)
		w.fails(125, "no space left", "run", "--rm", "-q", small, "true")
		if got := w.ok("images", "--format", "{{.Repository}}"); got != h.addr+"/box" {
			t.Errorf("images: %q", got)
		}
		if got := w.ok("ps", "-aq"); got != "" {
			t.Errorf("containers: %q", got)
		}
	})
	t.Run("a container whose disk cannot grow", func(t *testing.T) {
		w := w.in(t)
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		p := w.open("run", "-i", "--name", "full", "-q", box, "sh", "-c", "echo up; read x; dd if=/dev/urandom of=/fill bs=1M count=8 conv=fsync 2>/dev/null; echo status $?")
		w.removeAtEnd("full")
		p.expect("up")
		fill(t, filler)
		p.write("go\n")
		p.stdin.Close()
		r := p.wait()
		if strings.Contains(r.stdout, "status 0") {
			t.Errorf("the container wrote to a full disk: %s", r)
		}
		t.Logf("it heard: %s", r)
	})
	t.Run("room again", func(t *testing.T) {
		w := w.in(t)
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		w.ok("image", "prune", "-f")
		if got := w.ok("run", "--rm", "-q", small, "echo", "works"); got != "works" {
			t.Errorf("%q", got)
		}
	})
}

// fill writes until the disk is full.
func fill(t testing.TB, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 64<<10)
	for {
		if _, err := f.Write(block); err != nil {
			return
		}
	}
}

// noise is data that does not compress.
func noise(n int) string {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b)
	return string(b)
}

// A volume's durable data outlives a machine that is killed while it writes.
func TestVolumeOverAKilledMachine(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	p := w.begin("", "run", "--name", "writer", "-v", "data:/data", "box", "probe", "writefd", "/data/log")
	w.removeAtEnd("writer")
	p.expect("\n20\n")
	_, qemu := w.vm("writer")
	kill(t, qemu)
	lines := strings.Fields(p.wait().stdout)
	said := lines[len(lines)-1]
	got := w.ok("run", "--rm", "-v", "data:/data:ro", "box", "cat", "/data/log")
	if !strings.Contains(got+"\n", fmt.Sprintf("line %s\n", said)) {
		t.Errorf("line %s was said to be durable; the file ends with %q", said, got[max(0, len(got)-40):])
	}
	// The writable layer is a disk with a journal: what was synced is there.
	q := w.begin("", "run", "--name", "layer", "box", "probe", "writefd", "/log")
	w.removeAtEnd("layer")
	q.expect("\n5\n")
	_, qemu = w.vm("layer")
	kill(t, qemu)
	lines = strings.Fields(q.wait().stdout)
	said = lines[len(lines)-1]
	w.ok("start", "layer")
	if got := w.sh("layer", "cat /log"); !strings.Contains(got+"\n", "line "+said+"\n") {
		t.Errorf("line %s was said to be durable in the writable layer; the file begins with %q", said, got[:min(len(got), 80)])
	}
}
