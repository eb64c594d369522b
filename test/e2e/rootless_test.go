package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Everything works for an ordinary user with nothing but a home directory: no root, no
// daemon, no configuration, no runtime directory.
func TestRootless(t *testing.T) {
	t.Parallel()
	w := newUserWorld(t)
	w.load("box")
	shared := filepath.Join(w.dir, "shared")
	if err := os.Mkdir(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	if w.user != nil {
		if err := os.Chown(shared, int(w.user.uid), int(w.user.gid)); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("exit codes", func(t *testing.T) {
		w := w.in(t)
		w.fails(7, "", "run", "--rm", "box", "sh", "-c", "exit 7")
		w.fails(127, "no-such", "run", "--rm", "box", "no-such")
	})
	w.up("--name", "c", "-v", "data:/data", "-v", shared+":/shared", "-v", shared+":/ro:ro", "box", "sleep", "1000")
	_, qemu := w.vm("c")
	t.Run("root inside, nobody outside", func(t *testing.T) {
		w := w.in(t)
		if got := w.sh("c", "id -u; touch /root-owned && chown 7:8 /root-owned && stat -c %u:%g /root-owned"); got != "0\n7:8" {
			t.Errorf("%q", got)
		}
		var st unix.Stat_t
		if err := unix.Stat("/proc/"+w.field("c", "{{.State.Pid}}"), &st); err != nil {
			t.Fatal(err)
		}
		if st.Uid == 0 {
			t.Error("QEMU runs as root")
		}
	})
	t.Run("jail", func(t *testing.T) { checkJail(t, w.in(t), qemu, noCapabilities) })
	t.Run("volume keeps ownership", func(t *testing.T) {
		w := w.in(t)
		w.sh("c", "echo kept >/data/f && chown 33:34 /data/f && chmod 4750 /data/f")
		if got := w.sh("c", "stat -c '%u:%g %a' /data/f"); got != "33:34 4750" {
			t.Errorf("%q", got)
		}
	})
	t.Run("host directory", func(t *testing.T) {
		w := w.in(t)
		w.sh("c", "echo from inside >/shared/f")
		b, err := os.ReadFile(filepath.Join(shared, "f"))
		if err != nil || string(b) != "from inside\n" {
			t.Errorf("%q, %v", b, err)
		}
		if got := w.sh("c", "touch /ro/x 2>&1; true"); !strings.Contains(got, "Read-only") {
			t.Errorf("%q", got)
		}
	})
	t.Run("exec, logs, stats, cp", func(t *testing.T) {
		w := w.in(t)
		w.ok("logs", "c")
		w.ok("stats", "--no-stream", "c")
		w.ok("cp", "c:/etc/passwd", w.tmp+"/passwd")
		os.Remove(w.tmp + "/passwd")
	})
	t.Run("pull", func(t *testing.T) {
		w := w.in(t)
		h := newHub(t)
		w.ok("pull", "-q", h.push(image(t, "box"), "box:1"))
	})
	t.Run("killed machine and restart", func(t *testing.T) {
		w := w.in(t)
		_, qemu := w.vm("c")
		kill(t, qemu)
		w.awaitStatus("c", "exited")
		w.ok("start", "c")
		if got := w.sh("c", "stat -c '%u:%g %a' /data/f; cat /data/f"); got != "33:34 4750\nkept" {
			t.Errorf("%q", got)
		}
	})
	t.Run("stop and remove", func(t *testing.T) {
		w := w.in(t)
		w.ok("rm", "-f", "c")
		w.ok("volume", "rm", "data")
	})
}
