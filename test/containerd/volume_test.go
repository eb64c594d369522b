package containerd

import (
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// hostDir makes a directory with files for a volume, a mount of its own that is shared or not.
func hostDir(t *testing.T, propagation uintptr) string {
	t.Helper()
	d := filepath.Join(t.TempDir(), "volume")
	for _, name := range []string{"below", "later"} {
		if err := os.MkdirAll(filepath.Join(d, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	bind(t, d, d)
	if err := unix.Mount("", d, "", propagation|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", filepath.Join(d, "below"), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	return d
}

// bind mounts until the test ends.
func bind(t *testing.T, from, to string) {
	t.Helper()
	if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(to, unix.MNT_DETACH) })
}

func volume(m *cri.Mount) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) { c.Mounts = append(c.Mounts, m) }
}

// TestPropagation makes and takes away mounts on the host while containers have the directory.
func TestPropagation(t *testing.T) {
	d := hostDir(t, unix.MS_SHARED)
	p := newPod(t, "propagates", nil)
	private := p.start("private", volume(&cri.Mount{HostPath: d, ContainerPath: "/v"}), "sh", "-c", idle)
	follows := p.start("follows", volume(&cri.Mount{HostPath: d, ContainerPath: "/v", Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}), "sh", "-c", idle)
	source := t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "file"), []byte("words"), 0o644); err != nil {
		t.Fatal(err)
	}
	bind(t, source, filepath.Join(d, "later"))
	if out, code := p.exec(follows, "cat", "/v/later/file"); out != "words" || code != 0 {
		t.Errorf("HostToContainer: %q, exit %d", out, code)
	}
	if out, code := p.exec(private, "ls", "/v/later"); out != "" || code != 0 {
		t.Errorf("private: %q, exit %d", out, code)
	}
	if err := unix.Unmount(filepath.Join(d, "later"), unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if out, code := p.exec(follows, "ls", "/v/later"); out != "" || code != 0 {
		t.Errorf("HostToContainer, after the mount has gone: %q, exit %d", out, code)
	}
	p.fails("both", "mountPropagation: Bidirectional", volume(&cri.Mount{HostPath: d, ContainerPath: "/v", Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL}))
	// It refuses that container and nothing else.
	if out, _ := p.exec(private, "echo", "lives"); out != "lives" {
		t.Errorf("the other container: %q", out)
	}
}

// TestReadOnlyVolumes are read-only for themselves, or with all that is mounted below.
func TestReadOnlyVolumes(t *testing.T) {
	d := hostDir(t, unix.MS_PRIVATE)
	p := newPod(t, "readonly", nil)
	const try = "touch /v/file 2>/dev/null && echo top; touch /v/below/file 2>/dev/null && echo below; true"
	for name, c := range map[string]struct {
		readonly, recursive bool
		want                string
	}{"writable": {false, false, "top\nbelow"}, "readonly": {true, false, "below"}, "recursive": {true, true, ""}} {
		out, _ := p.output(name, volume(&cri.Mount{HostPath: d, ContainerPath: "/v", Readonly: c.readonly, RecursiveReadOnly: c.recursive}), "sh", "-c", try)
		if out != c.want {
			t.Errorf("%s: could write %q, want %q", name, out, c.want)
		}
	}
	p.fails("follows", "", volume(&cri.Mount{HostPath: d, ContainerPath: "/v", Readonly: true, RecursiveReadOnly: true, Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}))
	p.fails("unlikely", "", volume(&cri.Mount{HostPath: d, ContainerPath: "/v", RecursiveReadOnly: true}))
	r, err := p.cri.Status(p.ctx, new(cri.StatusRequest))
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range r.RuntimeHandlers {
		if h.Name == "manis" && (!h.Features.GetRecursiveReadOnlyMounts() || !h.Features.GetUserNamespaces()) {
			t.Errorf("features of the handler: %v", h.Features)
		}
	}
}

// TestImageVolumes are images as volumes, whole and in part.
func TestImageVolumes(t *testing.T) {
	push(t, derived(t, func(c *v1.Config) { c.User = "1000" }, file{"data/one/file", 0o644, "words\n"}), "tests/data:latest")
	pull(t, "example.com/tests/data:latest")
	p := newPod(t, "images", nil)
	of := func(sub string) *cri.Mount {
		return &cri.Mount{ContainerPath: "/v", Image: &cri.ImageSpec{Image: "example.com/tests/data:latest"}, ImageSubPath: sub, Readonly: true}
	}
	if out, _ := p.output("whole", volume(of("")), "sh", "-c", "cat /v/data/one/file; touch /v/x 2>&1; ls /data 2>/dev/null; true"); out != "words\ntouch: /v/x: Read-only file system" {
		t.Errorf("a whole image: %q", out)
	}
	if out, _ := p.output("part", volume(of("data/one")), "cat", "/v/file"); out != "words" {
		t.Errorf("a part of an image: %q", out)
	}
	p.fails("absent", "nonesuch", volume(of("nonesuch")))
	p.fails("climbs", "", volume(of("../..")))
	m := of("")
	m.Readonly = false
	p.fails("writable", "", volume(m))
	m = of("")
	m.Image.Image = "example.com/tests/nonesuch:latest"
	p.fails("unknown", "", volume(m))
}

// TestVolumes are what a path of the host may be, and may not.
func TestVolumes(t *testing.T) {
	d := t.TempDir()
	if err := os.MkdirAll(filepath.Join(d, "real"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d, "real", "file"), []byte("words"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", filepath.Join(d, "link")); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(d, "socket")}); err != nil {
		t.Fatal(err)
	}
	p := newPod(t, "volumes", nil)
	if out, _ := p.output("link", volume(&cri.Mount{HostPath: filepath.Join(d, "link"), ContainerPath: "/v"}), "sh", "-c", "cat /v/file; echo more >/v/made"); out != "words" {
		t.Errorf("a symbolic link: %q", out)
	}
	if b, err := os.ReadFile(filepath.Join(d, "real", "made")); err != nil || string(b) != "more\n" {
		t.Errorf("on the host: %q, %v", b, err)
	}
	if out, _ := p.output("file", volume(&cri.Mount{HostPath: filepath.Join(d, "real", "file"), ContainerPath: "/etc/some/file", Readonly: true}), "sh", "-c", "cat /etc/some/file; echo 2>/dev/null >/etc/some/file || echo refused"); out != "wordsrefused" {
		t.Errorf("a file: %q", out)
	}
	// As the kubelet has it made, and as it is with other runtimes.
	if _, code := p.output("made", volume(&cri.Mount{HostPath: filepath.Join(d, "absent"), ContainerPath: "/v"}), "touch", "/v/file"); code != 0 {
		t.Errorf("a directory that was not there: exit %d", code)
	}
	p.fails("socket", "is a socket of the host", volume(&cri.Mount{HostPath: filepath.Join(d, "socket"), ContainerPath: "/v"}))
	p.fails("nothing", "", volume(&cri.Mount{HostPath: "", ContainerPath: "/v"}))
	p.fails("root", "destination", volume(&cri.Mount{HostPath: d, ContainerPath: "/"}))
}
