package containerd

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"manis/test/stage"
)

const (
	// erofsHandler is the handler whose containers have snapshots of containerd's erofs snapshotter.
	erofsHandler = "manis-erofs"
	stacked      = "docker.io/library/stacked:latest"
)

// erofsConfig has containerd use its erofs snapshotter for a handler; more is for the snapshotter itself.
func erofsConfig(more string) error {
	return os.WriteFile(dir("erofs.toml"), []byte(fmt.Sprintf(`version = 3
[plugins.'io.containerd.snapshotter.v1.erofs']
  %s
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.%s]
  runtime_type = %q
  snapshotter = 'erofs'
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = 'linux/amd64'
  snapshotter = 'overlayfs'
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = 'linux/amd64'
  snapshotter = 'erofs'
  differ = 'walking'
`, more, erofsHandler, runtime)), 0o644)
}

// needErofs skips where containerd has no erofs snapshotter.
func needErofs(t *testing.T) *stage.Engine {
	t.Helper()
	c := ctr(t)
	if _, err := exec.LookPath("mkfs.erofs"); err != nil {
		t.Skip("mkfs.erofs is not installed, by which containerd makes layers (Debian's erofs-utils)")
	}
	for line := range strings.Lines(c.OK(t, "plugins", "ls")) {
		if f := strings.Fields(line); len(f) > 3 && f[0] == "io.containerd.snapshotter.v1" && f[1] == "erofs" && f[len(f)-1] == "ok" {
			return c
		}
	}
	t.Skip("containerd's erofs snapshotter does not work here (it needs EROFS in the host's kernel)")
	return nil
}

// entries is a layer of these.
func entries(t *testing.T, list ...tar.Header) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range list {
		var body string
		if h.Typeflag == tar.TypeReg && !strings.HasPrefix(filepath.Base(h.Name), ".wh.") {
			if body = h.Linkname; body == "" {
				body = h.Name + "\n"
			}
			h.Linkname = ""
		}
		h.Size, h.ModTime = int64(len(body)), time.Unix(1700000000, 0)
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

// attributeProgram prints an extended attribute: PATH NAME.
func attributeProgram(t *testing.T) string {
	t.Helper()
	src := filepath.Join(t.TempDir(), "main.go")
	code := "package main\n\nimport (\n\t\"fmt\"\n\t\"os\"\n\t\"syscall\"\n)\n\nfunc main() {\n\tb := make([]byte, 256)\n\tn, err := syscall.Getxattr(os.Args[1], os.Args[2], b)\n\tfmt.Printf(\"%q %v\\n\", b[:max(n, 0)], err)\n}\n"
	if err := os.WriteFile(src, []byte(code), 0o644); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(filepath.Dir(src), "program")
	cmd := exec.Command(filepath.Join(stage.Top(), "scripts", "go"), "build", "-trimpath", "-ldflags", "-s -w", "-o", out, src)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build a program: %v: %s", err, said)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// importStacked gives containerd an image of several layers that hide parts of each other, until the test ends.
func importStacked(t *testing.T, c *stage.Engine) {
	t.Helper()
	const able = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // cap_net_bind_service=ep, as setcap writes it
	img := derived(t, nil)
	img, err := mutate.AppendLayers(img,
		entries(t,
			tar.Header{Name: "s/", Typeflag: tar.TypeDir},
			tar.Header{Name: "s/kept", Typeflag: tar.TypeReg, Mode: 0o4711, Uid: 5, Gid: 6},
			tar.Header{Name: "s/again", Typeflag: tar.TypeLink, Linkname: "s/kept", Mode: 0o4711, Uid: 5, Gid: 6},
			tar.Header{Name: "s/gone", Typeflag: tar.TypeReg},
			tar.Header{Name: "s/replaced", Typeflag: tar.TypeReg},
			tar.Header{Name: "s/marked", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"SCHILY.xattr.user.colour": "green"}},
			tar.Header{Name: "s/able", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": able}},
			tar.Header{Name: "s/attribute", Typeflag: tar.TypeReg, Linkname: attributeProgram(t)},
			tar.Header{Name: "s/opaque/", Typeflag: tar.TypeDir},
			tar.Header{Name: "s/opaque/below", Typeflag: tar.TypeReg},
			tar.Header{Name: "s/whole/", Typeflag: tar.TypeDir},
			tar.Header{Name: "s/whole/file", Typeflag: tar.TypeReg},
		),
		entries(t,
			tar.Header{Name: "s/.wh.gone", Typeflag: tar.TypeReg},
			tar.Header{Name: "s/.wh.whole", Typeflag: tar.TypeReg},
			tar.Header{Name: "s/opaque/", Typeflag: tar.TypeDir},
			tar.Header{Name: "s/opaque/.wh..wh..opq", Typeflag: tar.TypeReg},
			tar.Header{Name: "s/opaque/above", Typeflag: tar.TypeReg},
			tar.Header{Name: "s/replaced", Typeflag: tar.TypeSymlink, Linkname: "kept"},
		),
		entries(t, tar.Header{Name: "s/top", Typeflag: tar.TypeReg}),
	)
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "stacked.tar")
	ref, err := name.NewTag(stacked)
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(archive, ref, img); err != nil {
		t.Fatal(err)
	}
	for _, namespace := range []string{"default", "k8s.io"} {
		c.OK(t, "-n", namespace, "image", "import", "--no-unpack", archive)
		t.Cleanup(func() { c.OK(t, "-n", namespace, "image", "rm", "--sync", stacked) })
		// CRI would unpack all layers at once, by which containerd loses what they hide of each other where erofs-utils is older
		// than 1.8 and the layers are made of directories.
		for line := range strings.Lines(c.OK(t, "-n", namespace, "image", "ls", "name=="+stacked)) {
			if f := strings.Fields(line); len(f) > 2 && f[0] == stacked {
				c.OK(t, "-n", namespace, "snapshots", "--snapshotter", "erofs", "unpack", f[2])
			}
		}
	}
}

// seen is what a container of that image sees, and then changes of it.
const (
	seen = `cd /s; ls -R . | grep -v attribute; stat -c '%n %a %u:%g %h' kept again; cat replaced top; readlink replaced
/s/attribute marked user.colour; /s/attribute able security.capability`
	wanted = `.:
able
again
kept
marked
opaque
replaced
top

./opaque:
above
kept 4711 5:6 2
again 4711 5:6 2
s/kept
s/top
kept
"green" <nil>
"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" <nil>`
)

// hostMounts is what this host has mounted of containerd's snapshots.
func hostMounts(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, dir("root")) {
			list = append(list, line)
		}
	}
	return list
}

// layered starts a container of that image by ctr, detached, and removes it after the test.
func layered(t *testing.T, c *stage.Engine, id, script string) {
	t.Helper()
	c.OK(t, "run", "-d", "--snapshotter", "erofs", "--runtime", runtime, stacked, id, "sh", "-c", script)
	t.Cleanup(func() {
		c.Run(t, "task", "rm", "-f", id)
		c.OK(t, "container", "rm", id)
	})
}

const liveRoot = "its root is mounted on the host"

// TestErofsSnapshotter has the layers of containerd's erofs snapshotter in the machine as they are, as one disk; the host mounts none of them.
func TestErofsSnapshotter(t *testing.T) {
	c := needErofs(t)
	importStacked(t, c)
	before := hostMounts(t)
	layered(t, c, "stacked", idle)
	in := func(exec, script string) string {
		return strings.TrimSpace(c.OK(t, "task", "exec", "--exec-id", exec, "stacked", "sh", "-c", script))
	}
	if got := in("sees", seen); got != wanted {
		t.Errorf("it sees:\n%s\nand not:\n%s", got, wanted)
	}
	if now := hostMounts(t); !slices.Equal(now, before) {
		t.Errorf("the host has mounted %v", now)
	}
	if reported("container stacked: " + liveRoot) {
		t.Errorf("the root is not made of layers: %s", said())
	}
	// What it changes is in the snapshot at once, as the host's overlayfs would have it.
	in("changes", "cd /s; rm kept top; rm -r opaque; mkdir opaque; echo new >opaque/new; chmod 600 marked; echo done >/done; sync")
	found, _ := filepath.Glob(dir("root", "io.containerd.snapshotter.v1.erofs", "snapshots", "*", "fs", "done"))
	if len(found) != 1 {
		t.Fatalf("the container's changes are in %v", found)
	}
	upper := filepath.Dir(found[0])
	if b, err := os.ReadFile(filepath.Join(upper, "s", "opaque", "new")); err != nil || string(b) != "new\n" {
		t.Errorf("a file of a new directory: %q, %v", b, err)
	}
	for _, name := range []string{"kept", "top"} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(upper, "s", name), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
			t.Errorf("%s is not marked as removed: mode %o, device %d, %v", name, st.Mode, st.Rdev, err)
		}
	}
	restart(t)
	if got := in("after", "ls /s/opaque"); got != "new" {
		t.Errorf("after containerd was restarted: %s", got)
	}
	// A snapshot that was written to is mounted on the host, where the marks in it are understood.
	c.OK(t, "task", "kill", "stacked")
	await(t, c, "stacked", "STOPPED")
	c.Run(t, "task", "rm", "stacked")
	value := make([]byte, 8)
	if n, err := unix.Getxattr(filepath.Join(upper, "s", "opaque"), "trusted.overlay.opaque", value); err != nil || string(value[:n]) != "y" {
		t.Errorf("the directory that hides another one is marked by %q, %v", value[:max(n, 0)], err)
	}
	c.OK(t, "task", "start", "-d", "stacked")
	if got := in("again", "cd /s; ls . opaque | grep -v attribute; stat -c %a marked"); got != ".:\nable\nagain\nmarked\nopaque\nreplaced\n\nopaque:\nnew\n600" {
		t.Errorf("when it is started again it sees %q", got)
	}
	if !reported("container stacked: " + liveRoot) {
		t.Error("containerd's log does not say why the root is live")
	}
}

// TestErofsPod has two containers of one image in one machine, which do not see each other's changes.
func TestErofsPod(t *testing.T) {
	c := needErofs(t)
	importStacked(t, c)
	p := newPodOf(t, erofsHandler, "stackedpod", nil)
	of := func(c *cri.ContainerConfig) { c.Image.Image = stacked }
	before := hostMounts(t)
	one := p.start("one", of, "sh", "-c", idle)
	two := p.start("two", of, "sh", "-c", idle)
	if n := len(stage.Machines()); n != 1 {
		t.Errorf("there are %d machines", n)
	}
	for _, id := range []string{one, two} {
		if got, _ := p.exec(id, "sh", "-c", seen); got != wanted {
			t.Errorf("it sees:\n%s\nand not:\n%s", got, wanted)
		}
		if reported("container " + id + ": " + liveRoot) {
			t.Errorf("the root is not made of layers: %s", said())
		}
	}
	if now := hostMounts(t); !slices.Equal(now, before) {
		t.Errorf("the host has mounted %v", now)
	}
	if out, code := p.exec(one, "sh", "-c", "rm /s/kept; echo changed >/s/top"); code != 0 {
		t.Errorf("exit %d: %s", code, out)
	}
	if got, _ := p.exec(two, "sh", "-c", seen); got != wanted {
		t.Errorf("after the other has changed its own, it sees:\n%s", got)
	}
	disks := func() string {
		out, _ := p.exec(two, "sh", "-c", "ls -d /sys/block/vd*/device")
		return out
	}
	both := disks()
	// As often as the kubelet makes a container anew, with the disk of the former given back.
	for range 3 {
		if _, err := p.cri.StopContainer(p.ctx, &cri.StopContainerRequest{ContainerId: one, Timeout: 30}); err != nil {
			t.Fatal(err)
		}
		if _, err := p.cri.RemoveContainer(p.ctx, &cri.RemoveContainerRequest{ContainerId: one}); err != nil {
			t.Fatal(err)
		}
		if got := disks(); strings.Count(got, "\n") != strings.Count(both, "\n")-1 {
			t.Errorf("after the removal of one of two containers the machine has the disks\n%s\nand had\n%s", got, both)
		}
		one = p.start("one", of, "sh", "-c", idle)
		if got, _ := p.exec(one, "sh", "-c", seen); got != wanted {
			t.Errorf("made anew, it sees:\n%s", got)
		}
	}
}

// TestErofsDisk has the writable layer on a disk, too: what containerd's snapshotter does with a default_size, also
// on hosts that have no EROFS.
func TestErofsDisk(t *testing.T) {
	c := needErofs(t)
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("mkfs.ext4 is not installed, by which containerd makes writable layers")
	}
	importStacked(t, c)
	if err := erofsConfig("default_size = '64MiB'"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := erofsConfig(""); err != nil {
			t.Error(err)
		}
		restart(t)
	})
	restart(t)
	before := hostMounts(t)
	layered(t, c, "ondisk", idle)
	in := func(exec, script string) string {
		return strings.TrimSpace(c.OK(t, "task", "exec", "--exec-id", exec, "ondisk", "sh", "-c", script))
	}
	if got := in("sees", seen); got != wanted {
		t.Errorf("it sees:\n%s\nand not:\n%s", got, wanted)
	}
	in("changes", "cd /s; rm kept; rm -r opaque; mkdir opaque; echo new >opaque/new; dd if=/dev/zero of=/large bs=1M count=100 2>/dev/null; true")
	if got := in("full", "rm /large; ls /s/opaque; df -m / | tail -n 1 | awk '{print ($2 < 64)}'"); got != "new\n1" {
		t.Errorf("the writable layer: %s", got)
	}
	if now := hostMounts(t); !slices.Equal(now, before) {
		t.Errorf("the host has mounted %v", now)
	}
	c.OK(t, "task", "kill", "ondisk")
	await(t, c, "ondisk", "STOPPED")
	c.Run(t, "task", "rm", "ondisk")
	c.OK(t, "task", "start", "-d", "ondisk")
	if got := in("again", "cd /s; ls . opaque | grep -v attribute"); got != ".:\nable\nagain\nmarked\nopaque\nreplaced\ntop\n\nopaque:\nnew" {
		t.Errorf("when it is started again it sees %q", got)
	}
	if reported("container ondisk: " + liveRoot) {
		t.Errorf("the root is not made of layers: %s", said())
	}
}
