package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// steps counts in its memory, one step for each file goN that appears in its root: it reads a line of a file that it has had
// open since the beginning, and appends to another one.
const steps = `exec 3>>/data/log 4</lines; i=0
while :; do
	i=$((i+1))
	until [ -e /go$i ]; do sleep 0.05; done
	read x <&4
	echo $i $x >&3
	echo $i $x
done`

// counter is a bundle that runs steps.
type counter struct {
	*bundleWorld
	dir string
}

func newCounter(w *bundleWorld, name string) *counter {
	w.t.Helper()
	data := filepath.Join(w.dir, name+"-data")
	if err := os.Mkdir(data, 0o755); err != nil {
		w.t.Fatal(err)
	}
	dir := w.bundle(name, steps, func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/data", Source: data, Type: "bind", Options: []string{"rbind", "rw"}})
	})
	c := &counter{w, dir}
	c.write("rootfs/lines", "a\nb\nc\nd\ne\nf\ng\n")
	return c
}

func (c *counter) path(name string) string {
	if rest, ok := strings.CutPrefix(name, "data/"); ok {
		return filepath.Join(c.dir+"-data", rest)
	}
	return filepath.Join(c.dir, name)
}

func (c *counter) write(name, content string) {
	c.t.Helper()
	if err := os.WriteFile(c.path(name), []byte(content), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

// step lets it go a step, and waits until that is in a file.
func (c *counter) step(n int, file, want string) {
	c.t.Helper()
	c.write(fmt.Sprintf("rootfs/go%d", n), "")
	c.shows(file, want)
}

func (c *counter) shows(file, want string) {
	c.t.Helper()
	var b []byte
	eventually(c.t, fmt.Sprintf("%s to end with %q", file, want), func() bool {
		b, _ = os.ReadFile(file)
		return strings.HasSuffix(string(b), want)
	})
}

// restored makes a container from an image whose output goes to a file, and returns the file.
func (w *bundleWorld) restored(id, dir, image string) string {
	w.t.Helper()
	out := filepath.Join(w.dir, id+".out")
	f, err := os.Create(out)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	cmd := w.command(context.Background(), "restore", "--image-path", image, "--bundle", dir, "--detach", id)
	cmd.Stdout, cmd.Stderr = f, f
	if err := w.launch(cmd); err != nil {
		w.t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		b, _ := os.ReadFile(out)
		w.t.Fatalf("restore: %v: %s", err, b)
	}
	w.t.Cleanup(func() { w.manis("delete", "--force", id) })
	return out
}

// A container goes on where it was, with its memory and its open files: the same one while it runs
// on, and any number of others.
func TestBundleCheckpoint(t *testing.T) {
	w := newBundles(t)
	c := newCounter(w, "b")
	image := filepath.Join(w.dir, "image")
	log := c.path("data/log")
	out := w.made("one", c.dir)
	w.fails(1, "created state", "checkpoint", "--image-path", image, "one")
	w.ok("oci", "start", "one")
	c.step(1, log, "1 a\n")

	w.ok("checkpoint", "--image-path", image, "--leave-running", "one")
	if s := w.state("one"); s.Status != "running" {
		t.Errorf("after --leave-running it is %s", s.Status)
	}
	c.step(2, log, "1 a\n2 b\n")
	c.shows(out, "1 a\n2 b\n")
	if got := w.ok("exec", "one", "echo", "there"); got != "there" {
		t.Errorf("exec: %q", got)
	}
	w.ok("checkpoint", "--image-path", image, "one")
	if s := w.state("one"); s.Status != "stopped" || s.Pid != 0 {
		t.Errorf("it is %+v", s)
	}
	w.fails(1, "stopped state", "checkpoint", "--image-path", image, "one")
	w.fails(1, "already exists", "restore", "--image-path", image, "--bundle", c.dir, "--detach", "one")
	w.ok("delete", "one")

	out = w.restored("two", c.dir, image)
	c.step(3, log, "1 a\n2 b\n3 c\n")
	c.shows(out, "3 c\n")
	if s := w.state("two"); s.Status != "running" || s.Bundle != c.dir || !alive(s.Pid) {
		t.Errorf("it is %+v", s)
	}
	if got := w.ok("exec", "two", "sh", "-c", "readlink /proc/1/fd/3; readlink /proc/1/fd/4"); got != "/data/log\n/lines" {
		t.Errorf("it has open: %q", got)
	}
	// What has changed since is said, and what was open elsewhere is not written to.
	w.fails(1, `"/data/log" open: it was open when the machine was saved: it had 8 bytes and has 12`, "restore", "--image-path", image, "--bundle", c.dir, "--detach", "three")

	// Others with files of their own, at the same time.
	var others []*counter
	for _, name := range []string{"c", "d"} {
		o := &counter{w, filepath.Join(w.dir, name)}
		for from, to := range map[string]string{c.dir: o.dir, c.dir + "-data": o.dir + "-data"} {
			if b, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
				t.Fatalf("copy: %v: %s", err, b)
			}
		}
		spec := w.config(o.dir)
		spec.Mounts[len(spec.Mounts)-1].Source = o.dir + "-data"
		w.configure(o.dir, spec)
		if err := errors.Join(os.Truncate(o.path("data/log"), 8), os.Remove(o.path("rootfs/go3"))); err != nil {
			t.Fatal(err)
		}
		w.restored(name, o.dir, image)
		others = append(others, o)
	}
	for _, o := range others {
		o.step(3, o.path("data/log"), "1 a\n2 b\n3 c\n")
	}
	others[0].step(4, others[0].path("data/log"), "3 c\n4 d\n")
	if b, err := os.ReadFile(others[1].path("data/log")); err != nil || string(b) != "1 a\n2 b\n3 c\n" {
		t.Errorf("a step of one was made by the other: %q, %v", b, err)
	}
	// One that was restored is saved in its turn, and its first image may be gone. A paused one stays so, and runs when it is
	// restored.
	if err := os.RemoveAll(image); err != nil {
		t.Fatal(err)
	}
	w.ok("pause", "c")
	w.ok("checkpoint", "--image-path", image, "--leave-running", "c")
	if s := w.state("c"); s.Status != "paused" {
		t.Errorf("it is %s", s.Status)
	}
	w.ok("checkpoint", "--image-path", image, "c")
	out = w.restored("e", others[0].dir, image)
	others[0].step(5, others[0].path("data/log"), "4 d\n5 e\n")
	c.shows(out, "5 e\n")
	w.ok("kill", "e", "KILL")
	w.await("e", "stopped")
}

// What cannot be saved is said before anything is harmed: the container runs on, and an earlier image is as it was.
func TestBundleCheckpointRefused(t *testing.T) {
	w := newBundles(t)
	c := newCounter(w, "b")
	image, log := filepath.Join(w.dir, "image"), c.path("data/log")
	w.fails(1, "does not exist", "oci", "checkpoint", "--image-path", image, "nobody")
	w.made("one", c.dir)
	w.ok("oci", "start", "one")
	c.step(1, log, "1 a\n")
	w.ok("checkpoint", "--image-path", image, "--leave-running", "one")
	manifest, err := os.ReadFile(filepath.Join(image, "inventory.img"))
	if err != nil {
		t.Fatal(err)
	}
	refused := func(words string, flags ...string) {
		t.Helper()
		w.fails(1, words, append(append([]string{"checkpoint", "--image-path", image}, flags...), "one")...)
		if s := w.state("one"); s.Status != "running" && s.Status != "paused" {
			t.Fatalf("after %q it is %s", words, s.Status)
		}
		if b, err := os.ReadFile(filepath.Join(image, "inventory.img")); err != nil || string(b) != string(manifest) {
			t.Errorf("after %q the earlier image is changed: %v", words, err)
		}
	}
	refused("in parts", "--pre-dump")
	refused("in parts", "--parent-path", "../parent")
	refused("fetched from elsewhere", "--lazy-pages")
	refused("directory only", "--page-server", "127.0.0.1:1")
	refused("cgroups mode", "--manage-cgroups-mode", "strange")

	added := w.begin("", "exec", "one", "sh", "-c", "touch /added; until [ -e /enough ]; do sleep 0.05; done")
	eventually(t, "a further process", func() bool { _, err := os.Stat(c.path("rootfs/added")); return err == nil })
	refused("1 processes that exec has added")
	c.write("rootfs/enough", "")
	if r := added.wait(); r.code != 0 {
		t.Errorf("exec: %s", r)
	}
	c.step(2, log, "1 a\n2 b\n")

	// A file that has no path any more. It stays open in the container.
	if err := os.Remove(c.path("rootfs/lines")); err != nil {
		t.Fatal(err)
	}
	refused(`the container has the file "/lines" open: was removed or replaced`)
	c.step(3, log, "2 b\n3 c\n")

	// A full disk.
	small := filepath.Join(w.dir, "small")
	if err := os.Mkdir(small, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=20m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(small, unix.MNT_DETACH)
	c.write("rootfs/lines", "")
	full := newCounter(w, "full")
	w.made("full", full.dir)
	w.ok("oci", "start", "full")
	full.step(1, full.path("data/log"), "1 a\n")
	w.fails(1, "no space left", "checkpoint", "--image-path", small, "full")
	if entries, _ := os.ReadDir(small); len(entries) != 0 {
		t.Errorf("left on the full disk: %v", entries)
	}
	full.step(2, full.path("data/log"), "1 a\n2 b\n")
	if err := unix.Mount("", small, "", unix.MS_REMOUNT|unix.MS_NOEXEC, "size=20m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	w.fails(1, "noexec", "checkpoint", "--image-path", small, "full")

	// A machine that was booted, and one that several containers have.
	cold := newCounter(w, "cold")
	spec := w.config(cold.dir)
	spec.Annotations = map[string]string{"manis.boot": "cold"}
	w.configure(cold.dir, spec)
	w.made("cold", cold.dir)
	w.ok("oci", "start", "cold")
	w.fails(1, "cold (asked for)", "checkpoint", "--image-path", image, "cold")
	mate := newCounter(w, "mate")
	spec = w.config(mate.dir)
	i := slices.IndexFunc(spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace })
	spec.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/ns/net", w.state("full").Pid)
	w.configure(mate.dir, spec)
	w.made("mate", mate.dir)
	w.fails(1, "with others of its pod", "checkpoint", "--image-path", image, "full")
}

// An image from elsewhere, a damaged one, and one that does not fit the bundle are refused, and leave nothing.
func TestBundleRestoreRefused(t *testing.T) {
	w := newBundles(t)
	c := newCounter(w, "b")
	image := filepath.Join(w.dir, "image")
	w.made("one", c.dir)
	w.ok("oci", "start", "one")
	c.step(1, c.path("data/log"), "1 a\n")
	w.ok("checkpoint", "--image-path", image, "one")
	w.ok("delete", "one")
	refused := func(words string) {
		t.Helper()
		w.fails(1, words, "restore", "--image-path", image, "--bundle", c.dir, "--detach", "x")
		w.fails(1, "does not exist", "state", "x")
	}
	good := w.config(c.dir)
	for words, change := range map[string]func(*specs.Spec){
		"no mount of the host at /data": func(s *specs.Spec) { s.Mounts = s.Mounts[:len(s.Mounts)-1] },
		"at /more, where the container had none": func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/more", Source: c.dir, Type: "bind", Options: []string{"bind"}})
		},
		"console socket":           func(s *specs.Spec) { s.Process.Terminal = true },
		"manis.accel asks for KVM": func(s *specs.Spec) { s.Annotations = map[string]string{"manis.accel": "kvm"} },
	} {
		s := *good
		process := *good.Process
		s.Process, s.Mounts = &process, slices.Clone(good.Mounts)
		change(&s)
		w.configure(c.dir, &s)
		refused(words)
	}
	w.configure(c.dir, good)

	// A file that was open is not the same, or leads elsewhere.
	lines := c.path("rootfs/lines")
	c.write("rootfs/lines", "a\n")
	refused("it had 14 bytes and has 2")
	if err := errors.Join(os.Remove(lines), os.Mkdir(lines, 0o755)); err != nil {
		t.Fatal(err)
	}
	refused("it is no file any more")
	if err := errors.Join(os.Remove(lines), os.Symlink("/etc/passwd", lines)); err != nil {
		t.Fatal(err)
	}
	refused(`"/lines" open`)
	if err := os.Remove(lines); err != nil {
		t.Fatal(err)
	}
	refused("no such file")
	c.write("rootfs/lines", "a\nb\nc\nd\ne\nf\ng\n")

	// Another installation, which would execute what is in it. The other's data directory is its own.
	other := *w.world
	other.env = append(slices.Clone(w.env), "MANIS_ROOT="+filepath.Join(w.dir, "other"))
	other.fails(1, "not made by this installation", "restore", "--image-path", image, "--bundle", c.dir, "--detach", "x")
	w.fails(1, "no checkpoint", "restore", "--image-path", w.dir, "--bundle", c.dir, "--detach", "x")

	manifest := filepath.Join(image, "inventory.img")
	text, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(manifest, []byte(strings.Replace(string(text), `"id": "one"`, `"id": "two"`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("or was changed since")
	if err := os.WriteFile(manifest, text, 0o600); err != nil {
		t.Fatal(err)
	}
	pages, _ := filepath.Glob(filepath.Join(image, "machine-*", "pages"))
	if len(pages) != 1 {
		t.Fatal(pages)
	}
	f, err := os.OpenFile(pages[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	turn := func() {
		t.Helper()
		if _, err := f.ReadAt(b, 1<<20); err != nil {
			t.Fatal(err)
		}
		b[0] ^= 1
		if _, err := f.WriteAt(b, 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	turn()
	refused("pages does not hold what was saved")
	turn()
	// As it was, it goes on.
	w.restored("last", c.dir, image)
	c.step(2, c.path("data/log"), "1 a\n2 b\n")
}
