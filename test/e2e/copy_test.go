package e2e

import (
	"archive/tar"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// cp takes files and directories to a running container and back, with docker's rules of
// where they land.
func TestCopy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	w.up("--name", "c", "box", "sleep", "1000")
	dir := filepath.Join(w.dir, "src")
	for path, text := range map[string]string{"a": "first", "sub/b": "second", "sub/run": "#!/bin/sh\n"} {
		file := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	os.Chmod(filepath.Join(dir, "sub/run"), 0o755)
	if err := os.Symlink("sub/b", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	t.Run("in", func(t *testing.T) {
		w := w.in(t)
		w.ok("cp", filepath.Join(dir, "a"), "c:/tmp/renamed")
		w.ok("cp", filepath.Join(dir, "a"), "c:/tmp")
		w.ok("cp", dir, "c:/new")
		w.ok("cp", dir+"/.", "c:/tmp")
		if got := w.sh("c", "cat /tmp/renamed /tmp/a /new/sub/b /tmp/sub/b; readlink /new/link; test -x /new/sub/run && echo executable"); got != "firstfirstsecondsecondsub/b\nexecutable" {
			t.Errorf("%q", got)
		}
	})
	t.Run("out", func(t *testing.T) {
		w := w.in(t)
		back := t.TempDir()
		w.sh("c", "mkdir -p /data/deep && echo one >/data/one && echo two >/data/deep/two && chmod 600 /data/one")
		w.ok("cp", "c:/data", back)
		w.ok("cp", "c:/data/one", back+"/renamed")
		for path, want := range map[string]string{"data/one": "one\n", "data/deep/two": "two\n", "renamed": "one\n"} {
			if b, err := os.ReadFile(filepath.Join(back, path)); err != nil || string(b) != want {
				t.Errorf("%s: %q, %v", path, b, err)
			}
		}
		if fi, err := os.Stat(filepath.Join(back, "data/one")); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", fi.Mode(), err)
		}
	})
	t.Run("streams", func(t *testing.T) {
		w := w.in(t)
		r := w.manis("cp", "c:/data", "-")
		names := 0
		for tr := tar.NewReader(strings.NewReader(r.stdout)); ; names++ {
			if _, err := tr.Next(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
		if names != 4 {
			t.Errorf("%d entries in the archive", names)
		}
		if r := w.manisIn(r.stdout, "cp", "-", "c:/mnt"); r.code != 0 {
			w.sh("c", "mkdir -p /mnt")
			if r = w.manisIn(w.manis("cp", "c:/data", "-").stdout, "cp", "-", "c:/mnt"); r.code != 0 {
				t.Error(r)
			}
		}
		if got := w.sh("c", "cat /mnt/data/deep/two"); got != "two" {
			t.Errorf("%q", got)
		}
	})
	t.Run("errors", func(t *testing.T) {
		w := w.in(t)
		w.fails(1, "/no/such", "cp", "c:/no/such", w.tmp)
		w.fails(1, "no such file", "cp", "/no/such/here", "c:/tmp")
		w.fails(1, "no such container", "cp", "nobody:/etc/passwd", w.tmp)
		w.fails(1, "between containers", "cp", "c:/a", "c:/b")
		w.fails(1, "at least one container", "cp", "/a", "/b")
	})
	t.Run("nothing leads out", func(t *testing.T) {
		w := w.in(t)
		back := t.TempDir()
		victim := filepath.Join(w.dir, "victim")
		w.sh("c", "mkdir /evil && ln -s "+w.dir+" /evil/out && ln -s /etc/passwd /evil/passwd")
		w.ok("cp", "c:/evil", back)
		// The link is copied as one; what is behind it on the host is not written to.
		w.sh("c", "rm /evil/out && mkdir /evil/out && echo x >/evil/out/victim")
		w.manis("cp", "c:/evil", back)
		if _, err := os.Lstat(victim); err == nil {
			t.Error("written through a link")
		}
	})
}

// cp takes files to containers that were never started and out of those that have ended. Nothing
// else of them changes, and nothing of them runs.
func TestCopyWithoutRunning(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	file := filepath.Join(w.dir, "file")
	if err := os.WriteFile(file, []byte("copied\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	// All that inspect and logs say.
	whole := func(w *world, name string) string {
		return w.ok("inspect", name) + w.manis("logs", "--timestamps", name).stdout
	}
	t.Run("created", func(t *testing.T) {
		w := w.in(t)
		w.removeAtEnd(w.ok("create", "--name", "new", "--restart", "on-failure:3", "--health-cmd", "touch /checked",
			"box", "sh", "-c", "stat -c '%u %a' /tmp/renamed; cat /tmp/renamed /dir/file; ls /checked; echo result >/result; exit 7"))
		before := whole(w, "new")
		w.ok("cp", file, "new:/tmp/renamed")
		w.ok("cp", "new:/tmp/renamed", filepath.Join(w.dir, "back"))
		if b, err := os.ReadFile(filepath.Join(w.dir, "back")); err != nil || string(b) != "copied\n" {
			t.Errorf("copied back: %q, %v", b, err)
		}
		if r := w.manisIn(oneFileTar(t, "dir/file", "streamed\n"), "cp", "-", "new:/"); r.code != 0 {
			t.Error(r)
		}
		w.fails(1, "could not find the file /no/such", "cp", "new:/no/such", w.tmp)
		w.fails(1, "no such file", "cp", "/no/such/here", "new:/tmp")
		if after := whole(w, "new"); after != before {
			t.Errorf("changed from\n%s\nto\n%s", before, after)
		}
		w.ok("update", "--restart", "no", "new")
		if r := w.manis("start", "-a", "new"); r.code != 7 || r.stdout != "0 640\ncopied\nstreamed\n" {
			t.Error(r)
		}

		before = whole(w, "new")
		names := make(map[string]bool)
		for tr := tar.NewReader(strings.NewReader(w.manis("cp", "new:/result", "-").stdout)); ; {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			names[h.Name] = true
		}
		if !names["result"] {
			t.Errorf("the archive has %v", names)
		}
		w.ok("cp", file, "new:/later")
		if after := whole(w, "new"); after != before {
			t.Errorf("changed from\n%s\nto\n%s", before, after)
		}
		if got := w.ok("ps", "-a", "--filter", "name=new", "--format", "{{.Status}}"); !strings.HasPrefix(got, "Exited (7)") {
			t.Errorf("status %q", got)
		}
	})
	t.Run("ownership", func(t *testing.T) {
		needRoot(t, "give files away")
		w := w.in(t)
		mine := filepath.Join(t.TempDir(), "mine")
		if err := os.WriteFile(mine, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(mine, 1234, 4321); err != nil {
			t.Fatal(err)
		}
		w.removeAtEnd(w.ok("create", "--name", "owner", "box", "sh", "-c", "stat -c '%u:%g' /kept /given; chown 99:98 /kept"))
		w.ok("cp", "-a", mine, "owner:/kept")
		w.ok("cp", mine, "owner:/given")
		if got := w.ok("start", "-a", "owner"); got != "1234:4321\n0:0" {
			t.Errorf("owners %q", got)
		}
		back := filepath.Join(t.TempDir(), "back")
		w.ok("cp", "-a", "owner:/kept", back)
		var st syscall.Stat_t
		if err := syscall.Stat(back, &st); err != nil || st.Uid != 99 || st.Gid != 98 {
			t.Errorf("owner %d:%d, %v", st.Uid, st.Gid, err)
		}
	})
	t.Run("links", func(t *testing.T) {
		w := w.in(t)
		w.removeAtEnd(w.ok("run", "-d", "--name", "links", "box", "sh", "-c", "echo behind >/target; ln -s target /link"))
		w.ok("wait", "links")
		back := t.TempDir()
		w.ok("cp", "links:/link", back+"/link")
		w.ok("cp", "-L", "links:/link", back+"/file")
		if target, err := os.Readlink(back + "/link"); err != nil || target != "target" {
			t.Errorf("link to %q, %v", target, err)
		}
		if b, err := os.ReadFile(back + "/file"); err != nil || string(b) != "behind\n" {
			t.Errorf("%q, %v", b, err)
		}
	})
	t.Run("a port that is taken", func(t *testing.T) {
		w := w.in(t)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		w.removeAtEnd(w.ok("create", "--name", "port", "-p", l.Addr().String()+":80", "box", "true"))
		w.ok("cp", file, "port:/")
	})
	t.Run("removed at its end", func(t *testing.T) {
		w := w.in(t)
		w.ok("create", "--rm", "--name", "once", "-v", "/anonymous", "box", "cat", "/file", "/anonymous/file")
		w.ok("cp", file, "once:/")
		w.ok("cp", file, "once:/anonymous/")
		if got := w.ok("ps", "-a", "--filter", "name=once", "--format", "{{.State}}"); got != "created" {
			t.Errorf("status %q", got)
		}
		if got := w.ok("start", "-a", "once"); got != "copied\ncopied" {
			t.Errorf("%q", got)
		}
		eventually(t, "the container to go", func() bool { return w.ok("ps", "-aq", "--filter", "name=once") == "" })
	})
	t.Run("volumes", func(t *testing.T) {
		w := w.in(t)
		host := t.TempDir()
		w.removeAtEnd(w.ok("create", "--name", "mounts", "-v", "data:/data", "-v", host+":/host", "-v", host+":/fixed:ro", "--tmpfs", "/memory", "box", "true"))
		w.ok("cp", file, "mounts:/data/")
		w.ok("cp", file, "mounts:/host/")
		w.fails(1, "read-only", "cp", file, "mounts:/fixed/")
		w.fails(1, "would be lost", "cp", file, "mounts:/memory/")
		if b, err := os.ReadFile(filepath.Join(host, "file")); err != nil || string(b) != "copied\n" {
			t.Errorf("on the host: %q, %v", b, err)
		}
		if got := w.ok("run", "--rm", "-v", "data:/data", "box", "cat", "/data/file"); got != "copied" {
			t.Errorf("in the volume: %q", got)
		}
	})
	t.Run("nothing to write to", func(t *testing.T) {
		w := w.in(t)
		w.removeAtEnd(w.ok("create", "--name", "fixed", "--read-only", "-v", "kept:/kept", "box", "true"))
		w.fails(1, "read-only", "cp", file, "fixed:/etc/")
		w.ok("cp", file, "fixed:/kept/")
		w.removeAtEnd(w.ok("create", "--name", "memory", "--storage-opt", "type=memory", "box", "true"))
		w.fails(1, "would be lost", "cp", file, "memory:/")
		w.ok("cp", "memory:/bin/busybox", filepath.Join(t.TempDir(), "busybox"))
		w.ok("cp", "fixed:/bin/busybox", filepath.Join(t.TempDir(), "busybox"))
	})
}

// oneFileTar is a tar of one file.
func oneFileTar(t testing.TB, name, content string) string {
	t.Helper()
	var b strings.Builder
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, content)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// slowCopy is a copy to a container that goes on until its input is closed.
func (w *world) slowCopy(name string) *running {
	w.t.Helper()
	p := w.open("cp", "-", name+":/tmp")
	// Half of a file has arrived when the rest can only be waited for.
	whole := oneFileTar(w.t, "slow", strings.Repeat("x", 64<<20))
	p.write(whole[:48<<20])
	return p
}

// copier returns the pids of the monitor and of QEMU that a copy has started; 0 for what is
// not there.
func (w *world) copier() (monitor, qemu int) {
	for pid, cmdline := range w.processes() {
		switch {
		case strings.Contains(cmdline, " monitor "):
			monitor = pid
		case strings.Contains(cmdline, "qemu"):
			qemu = pid
		}
	}
	return monitor, qemu
}

// Of those who want a container at the same time each has its turn, or is told.
func TestCopyTakesTurns(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	file := filepath.Join(w.dir, "file")
	if err := os.WriteFile(file, []byte("copied\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	rest := oneFileTar(t, "slow", strings.Repeat("x", 64<<20))[48<<20:]
	t.Run("copies", func(t *testing.T) {
		w := w.in(t)
		w.removeAtEnd(w.ok("create", "--name", "many", "box", "sh", "-c", "cat /1 /2 /3"))
		var all []*running
		for _, name := range []string{"1", "2", "3"} {
			all = append(all, w.begin("", "cp", file, "many:/"+name))
		}
		for _, p := range all {
			if r := p.wait(); r.code != 0 {
				t.Error(r)
			}
		}
		if got := w.ok("start", "-a", "many"); got != "copied\ncopied\ncopied" {
			t.Errorf("%q", got)
		}
	})
	t.Run("a start", func(t *testing.T) {
		w := w.in(t)
		w.removeAtEnd(w.ok("create", "--name", "c", "box", "sh", "-c", "stat -c %s /tmp/slow; sleep 1000"))
		p := w.slowCopy("c")
		start := w.begin("", "start", "c")
		if got := w.ok("ps", "-a", "--filter", "name=c", "--format", "{{.State}}"); got != "created" {
			t.Errorf("status %q", got)
		}
		p.write(rest)
		p.stdin.Close()
		if r := p.wait(); r.code != 0 {
			t.Error(r)
		}
		if r := start.wait(); r.code != 0 {
			t.Error(r)
		}
		eventually(t, "what was copied", func() bool { return w.ok("logs", "c") == "67108864" })

		// The other way round: a copy that comes while it is being started, or stopped, finds it
		// running, or ended.
		for _, command := range [][]string{{"stop", "-t", "0", "c"}, {"start", "c"}, {"kill", "c"}} {
			other := w.begin("", command...)
			w.ok("cp", file, "c:/"+command[0])
			if r := other.wait(); r.code != 0 {
				t.Errorf("%s: %s", command[0], r)
			}
		}
	})
	t.Run("a removal", func(t *testing.T) {
		w := w.in(t)
		w.ok("create", "--name", "gone", "box", "true")
		p := w.slowCopy("gone")
		w.fails(1, "container is busy: files are being copied", "rm", "gone")
		w.ok("container", "prune", "-f")
		if r := w.manis("rm", "-f", "gone"); r.code != 0 {
			t.Error(r)
		}
		p.stdin.Close()
		if r := p.wait(); r.code != 1 {
			t.Errorf("the copy: %s", r)
		}
		if got := w.ok("ps", "-aq", "--filter", "name=gone"); got != "" {
			t.Errorf("left: %s", got)
		}
	})
}

// Whoever is killed during a copy, and whenever: the container is as it was, and nothing is
// left running.
func TestKilledCopy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	file := filepath.Join(w.dir, "file")
	if err := os.WriteFile(file, []byte("copied\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	w.ok("run", "--name", "c", "box", "true")
	w.ok("create", "--rm", "--name", "once", "box", "true")
	before := w.ok("inspect", "c", "once")
	idle := func(what string) {
		t.Helper()
		eventually(t, "every process to end after "+what, func() bool { return len(w.processes()) == 0 })
		// Any command tidies up. A monitor that was being started when its front end was killed may not
		// have been among the processes yet, and leaves its directory to the next one.
		eventually(t, "nothing to be left after "+what, func() bool {
			w.ok("ps", "-a")
			entries, err := os.ReadDir(w.run)
			return err == nil && len(entries) == 0 && len(w.processes()) == 0
		})
		if after := w.ok("inspect", "c", "once"); after != before {
			t.Fatalf("%s: changed from\n%s\nto\n%s", what, before, after)
		}
	}
	for _, name := range []string{"c", "once"} {
		for _, victim := range []string{"front end", "monitor", "QEMU"} {
			p := w.slowCopy(name)
			monitor, qemu := w.copier()
			if monitor == 0 || qemu == 0 {
				t.Fatalf("no monitor or no QEMU: %v", w.processes())
			}
			pid := map[string]int{"front end": p.cmd.Process.Pid, "monitor": monitor, "QEMU": qemu}[victim]
			kill(t, pid)
			if name == "once" {
				// More comes than can be written; how much of it is read does not matter.
				io.WriteString(p.stdin, strings.Repeat("x", 16<<20))
			}
			p.stdin.Close()
			if r := p.wait(); victim != "front end" && (r.code != 1 || !strings.Contains(r.stderr, "ended")) {
				t.Errorf("%s killed: %s", victim, r)
			}
			idle(victim)
		}
	}
	t.Run("from a container", func(t *testing.T) {
		w := w.in(t)
		w.ok("run", "--name", "big", "box", "truncate", "-s", "8G", "/big")
		dir := t.TempDir()
		p := w.begin("", "cp", "big:/big", dir)
		eventually(t, "the first of the file", func() bool {
			fi, err := os.Stat(filepath.Join(dir, "big"))
			return err == nil && fi.Size() > 0 || p.ended()
		})
		_, qemu := w.copier()
		if qemu == 0 {
			t.Fatalf("no QEMU: %v, %s", w.processes(), p.wait())
		}
		kill(t, qemu)
		if r := p.wait(); r.code != 1 || !strings.Contains(r.stderr, "the virtual machine ended") {
			t.Errorf("QEMU killed: %s", r)
		}
		idle("a copy from a container")
		// What fails on the host is said too: nothing is read of what it does not take.
		p = w.start(func(cmd *exec.Cmd, p *running) error {
			full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
			cmd.Stdout, cmd.Stderr = full, p.err
			t.Cleanup(func() { full.Close() })
			return err
		}, "cp", "big:/big", "-")
		if r := p.wait(); r.code != 1 || !strings.Contains(r.stderr, "no space left") {
			t.Errorf("a full disk: %s", r)
		}
		idle("a copy to a full disk")
	})
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	for i := range 9 {
		delay := time.Duration(random.IntN(4000)) * time.Millisecond
		p := w.begin("", "cp", file, "c:/file")
		time.Sleep(delay) // the moment is what is tried
		monitor, qemu := w.copier()
		victim := []int{p.cmd.Process.Pid, monitor, qemu}[i%3]
		if i == 3 {
			p.cmd.Process.Signal(unix.SIGINT)
		} else if victim != 0 {
			syscall.Kill(victim, syscall.SIGKILL)
		}
		p.wait()
		idle(delay.String())
	}
	w.ok("cp", file, "c:/file")
	w.ok("cp", "c:/file", filepath.Join(w.dir, "back"))
	idle("a copy")
}
