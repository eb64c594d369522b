package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"manis/guest/initramfs"
)

// hostileAgent builds test/breakout/agent, which takes the agent's place.
var hostileAgent = sync.OnceValues(func() ([]byte, error) {
	path := filepath.Join(suiteDir, "hostile-agent")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./test/breakout/agent")
	cmd.Dir, cmd.Env = top, append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if out, err := cmd.CombinedOutput(); err != nil {
		return out, err
	}
	return os.ReadFile(path)
})

// withAgent gives the machines of a world a guest whose agent has this vice.
func (w *world) withAgent(vice string) {
	w.t.Helper()
	program, err := hostileAgent()
	if err != nil {
		w.t.Fatalf("build the agent: %v\n%s", err, program)
	}
	dir := filepath.Join(w.dir, "guest")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		w.t.Fatal(err)
	}
	var b bytes.Buffer
	if err := initramfs.Write(&b, append(bytes.Clone(program), "\n"+vice...)); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "initramfs"), b.Bytes(), 0o644); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(guestDir(), "vmlinuz"), filepath.Join(dir, "vmlinuz")); err != nil && !os.IsExist(err) {
		w.t.Fatal(err)
	}
	w.setenv("MANIS_GUEST", dir)
}

// An agent that has been replaced, and speaks the protocol with bad intent, gets a bounded part of the host, and ends
// as an error that says why.
func TestBreakOutAgent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	for _, c := range []struct {
		vice string
		code int
		want string // in the error
	}{
		{"none", 7, ""}, // the control: the replaced agent is believed as far as it goes
		{"lies", 7, ""},
		{"version", 125, "protocol 99"},
		{"words", 127, "?[31mred"},
		{"many", 125, "broke the protocol: an answer of"},
		{"pings", 125, "broke the protocol: a ping"},
		{"streams", 125, "broke the protocol: it opened a stream"},
		{"unasked", 125, "broke the protocol: an answer to what was not asked"},
		{"requests", 125, "broke the protocol: a message of type 1"},
		{"huge frame", 125, "broke the protocol: a frame of 2147483648 bytes"},
		{"huge reply", 125, "broke the protocol: an answer"},
		{"noise", 125, "broke the protocol: a frame of version 255"},
		{"console", 125, "owned"},
	} {
		t.Run(c.vice, func(t *testing.T) {
			w := w.in(t)
			w.withAgent(c.vice)
			r := w.manis("run", "--rm", "--boot", "cold", "box", "true")
			if r.code != c.code || !strings.Contains(r.stderr, c.want) {
				t.Errorf("want exit %d and %q, got %s", c.code, c.want, r)
			}
			if strings.ContainsAny(r.stdout+r.stderr, "\x1b\a") || len(r.stderr) > 16<<10 {
				t.Errorf("it speaks to the terminal, or says %d bytes: %s", len(r.stderr), r)
			}
			if (c.vice == "none") != (r.stdout == "said\n") && c.vice != "lies" {
				t.Errorf("output %q", r.stdout)
			}
			w.checkClean()
		})
	}
}

// An agent that never answers holds nothing up: the container is removed by force.
func TestBreakOutSilentAgent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	w.withAgent("silent")
	p := w.begin("", "run", "--boot", "cold", "--name", "mute", "box", "true")
	eventually(t, "a machine", func() bool {
		return len(w.processes()) >= 3 // the front end, the monitor and QEMU at least
	})
	w.ok("rm", "-f", "mute")
	if r := p.wait(); r.code == 0 {
		t.Errorf("an agent that never answered: %s", r)
	}
}

// What a copy is called on the host is the user's choice and not the guest's.
func TestBreakOutCopyNames(t *testing.T) {
	t.Parallel()
	for _, vice := range []string{"honest names", "names"} {
		t.Run(vice, func(t *testing.T) {
			w := newWorld(t)
			w.load("box")
			w.withAgent(vice)
			w.up("--boot", "cold", "--name", "c", "box", "true")
			home := t.TempDir()
			profile := filepath.Join(home, ".profile")
			if err := os.WriteFile(profile, []byte("mine"), 0o644); err != nil {
				t.Fatal(err)
			}
			r := w.manis("cp", "c:/report.txt", home)
			if b, err := os.ReadFile(profile); string(b) != "mine" {
				t.Errorf("the user's file became %q, %v: %s", b, err, r)
			}
			got, _ := os.ReadFile(filepath.Join(home, "report.txt"))
			if control := vice == "honest names"; control != (r.code == 0) || control != (string(got) == "echo owned\n") {
				t.Errorf("copied %q: %s", got, r)
			}
			w.ok("rm", "-f", "c")
		})
	}
}

// Root of a privileged container finds in a share what is in the shared directory, and nothing else of the host.
func TestBreakOutShare(t *testing.T) {
	t.Parallel()
	needRoot(t, "look at what root of a container has made of a directory")
	w := newWorld(t)
	w.load("box")
	outer := filepath.Join(w.dir, "outer")
	share := filepath.Join(outer, "share")
	for _, dir := range []string{filepath.Join(share, "sub"), filepath.Join(outer, "beside")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const secret = "of-the-host-only"
	for _, name := range []string{"secret", "beside/secret"} {
		if err := os.WriteFile(filepath.Join(outer, name), []byte(secret), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(share, "sub", "secret"), []byte("shared"), 0o644); err != nil {
		t.Fatal(err)
	}
	// Links that the host itself has made lead nowhere either.
	for name, target := range map[string]string{"absolute": filepath.Join(outer, "secret"), "relative": "../secret", "directory": filepath.Join(outer, "beside"), "up": ".."} {
		if err := os.Symlink(target, filepath.Join(share, name)); err != nil {
			t.Fatal(err)
		}
	}
	w.up("--name", "in", "--privileged", "-v", share+":/share", "box", "sleep", "1000")
	defer w.ok("rm", "-f", "in")
	if got := w.sh("in", "cat /share/sub/secret"); got != "shared" {
		t.Fatalf("the control: %q", got)
	}
	attempts := map[string]string{
		"the host's links":     "cat /share/absolute /share/relative /share/directory/secret /share/up/secret",
		"links of one's own":   "ln -s " + outer + "/secret /share/own; ln -s ../../secret /share/sub/own; cat /share/own /share/sub/own",
		"dots":                 "cat /share/../secret /share/sub/../../secret /share/sub/../../../secret; cd /share/sub && cat ../../secret",
		"hard links":           "ln /share/absolute /share/hard; ln /share/../secret /share/hard2; ln -L /share/relative /share/hard3; cat /share/hard /share/hard2 /share/hard3",
		"descriptors":          "cd /share/sub; exec 3</share; cat /proc/self/fd/3/../secret /proc/self/cwd/../../secret; cat /proc/1/root/../secret",
		"the share once more":  "mkdir -p /m; for tag in $(cat /sys/bus/virtio/drivers/9pnet_virtio/virtio*/mount_tag 2>/dev/null | tr '\\0' ' '); do mount -t 9p -o trans=virtio,version=9p2000.L $tag /m && find /m -name secret -exec cat {} +; umount /m; done",
		"names with a slash":   "touch '/share/..%2fx' '/share/sub\\..\\..\\x'; mv /share/sub/secret /share/../stolen; cp /share/sub/secret /share/../../placed",
		"renames under way":    "mkdir /share/turn /share/hold; echo shared >/share/turn/secret; (i=0; while [ $i -lt 60 ]; do mv /share/turn /share/hold/; ln -s " + outer + "/beside /share/turn; rm /share/turn; mv /share/hold/turn /share/; i=$((i+1)); done) & i=0; while [ $i -lt 120 ]; do cat /share/turn/secret; i=$((i+1)); done; wait",
		"a directory moved up": "mkdir -p /share/a/b; cd /share/a/b; mv /share/a/b /share/b; cat ../../secret ../secret; mv /share/b /share/../b",
	}
	for name, script := range attempts {
		t.Run(name, func(t *testing.T) {
			r := w.in(t).manis("exec", "in", "sh", "-c", script)
			if strings.Contains(r.stdout, secret) {
				t.Errorf("it has read the host's file: %s", r)
			}
		})
	}
	// Devices: what is made is no device of the host.
	w.manis("exec", "in", "sh", "-c", "mknod /share/mem c 1 1; mknod /share/null c 1 3; mknod /share/disk b 8 0; cp /bin/busybox /share/suid; chmod 4755 /share/suid; echo overwritten >/share/null")
	err := filepath.WalkDir(outer, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Type()&os.ModeDevice != 0 {
			t.Errorf("a device on the host: %s", path)
		}
		if d.Type().IsRegular() && !strings.HasPrefix(path, share+"/") {
			if b, err := os.ReadFile(path); string(b) != secret {
				t.Errorf("%s is %q, %v", path, b, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(outer); len(entries) != 3 {
		t.Errorf("beside the shared directory there are %v, %v", entries, err)
	}
	// Nothing of a file of another sandbox.
	other := filepath.Join(w.dir, "other")
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	w.up("--name", "neighbour", "-v", other+":/mine", "box", "sh", "-c", "echo "+secret+" >/mine/secret; sleep 1000")
	defer w.ok("rm", "-f", "neighbour")
	eventually(t, "the neighbour's file", func() bool { _, err := os.Stat(filepath.Join(other, "secret")); return err == nil })
	if r := w.manis("exec", "in", "sh", "-c", "find / -xdev -name secret -exec cat {} + ; cat /mine/secret; find /share -name secret -exec cat {} +"); strings.Contains(r.stdout, secret) {
		t.Errorf("the neighbour's file: %s", r)
	}
}
