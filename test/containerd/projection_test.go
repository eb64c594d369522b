package containerd

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"manis/test/stage"
)

// projected is a volume as the kubelet writes it.
type projected struct {
	t    *testing.T
	dir  string
	last int
	// pause is between making the new content the present one and the links to it.
	pause time.Duration
}

// newProjected makes a volume where the kubelet has those of a kind.
func newProjected(t *testing.T, kind, name string, files map[string]string) *projected {
	t.Helper()
	v := &projected{t: t, dir: filepath.Join(t.TempDir(), "pods", "uid", "volumes", "kubernetes.io~"+kind, name)}
	if err := os.MkdirAll(v.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	v.write(files)
	return v
}

// write puts files in place of those that are there, in the kubelet's order.
func (v *projected) write(files map[string]string) {
	v.t.Helper()
	v.last++
	now := fmt.Sprintf("..2026_11_23_10_00_00.%d", v.last)
	before, _ := os.Readlink(filepath.Join(v.dir, "..data"))
	at := func(parts ...string) string { return filepath.Join(append([]string{v.dir}, parts...)...) }
	err := os.Mkdir(at(now), 0o755)
	tops := make(map[string]bool)
	for name, content := range files {
		top, _, _ := strings.Cut(name, "/")
		tops[top] = true
		err = errors.Join(err, os.MkdirAll(filepath.Dir(at(now, name)), 0o755), os.WriteFile(at(now, name), []byte(content), 0o644),
			os.Chmod(at(now, name), 0o440), os.Chown(at(now, name), 0, 2000))
	}
	err = errors.Join(err, os.Symlink(now, at("..data_tmp")), os.Rename(at("..data_tmp"), at("..data")))
	time.Sleep(v.pause)
	for top := range tops {
		if _, e := os.Lstat(at(top)); e != nil {
			err = errors.Join(err, os.Symlink("..data/"+top, at(top)))
		}
	}
	names, e := os.ReadDir(v.dir)
	err = errors.Join(err, e)
	for _, n := range names {
		if !strings.HasPrefix(n.Name(), "..") && !tops[n.Name()] && n.Type()&os.ModeSymlink != 0 {
			err = errors.Join(err, os.Remove(at(n.Name())))
		}
	}
	if before != "" {
		err = errors.Join(err, os.RemoveAll(at(before)))
	}
	if err != nil {
		v.t.Errorf("write the volume: %v", err)
	}
}

func (v *projected) at(path string) func(*cri.ContainerConfig) {
	return volume(&cri.Mount{HostPath: v.dir, ContainerPath: path, Readonly: true})
}

func (v *projected) now() string { return fmt.Sprintf("..2026_11_23_10_00_00.%d", v.last) }

// probe is a static program that can wait for changes.
func probe(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "probe")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "./test/probe")
	cmd.Dir, cmd.Env = stage.Top(), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the probe: %v: %s", err, out)
	}
	return path
}

// TestProjectedVolumes are changed while a container that waits for changes has them.
func TestProjectedVolumes(t *testing.T) {
	config := newProjected(t, "configmap", "config", map[string]string{"name": "one", "sub/name": "below"})
	p := newPod(t, "projected", nil)
	// What is watched is the volume's directory, and the file that a link in it leads to.
	id := p.start("watches", func(c *cri.ContainerConfig) {
		config.at("/v")(c)
		volume(&cri.Mount{HostPath: probe(t), ContainerPath: "/probe", Readonly: true})(c)
	}, "sh", "-c", "/probe watch /v /v/name >/tmp/events & "+idle)
	read := func(id, path string) string { out, _ := p.exec(id, "cat", path); return out }
	if got := read(id, "/v/name") + " " + read(id, "/v/sub/name"); got != "one below" {
		t.Errorf("at the start: %q", got)
	}
	if out, _ := p.exec(id, "sh", "-c", "stat -L -c '%a %u %g' /v/name; readlink /v/name; touch /v/new 2>&1"); out != "440 0 2000\n..data/name\ntouch: /v/new: Read-only file system" {
		t.Errorf("the file: %q", out)
	}
	stage.Eventually(t, "the program that waits", func() bool {
		return read(id, "/tmp/events") == "ready"
	})
	first := config.now()
	config.pause = 50 * time.Millisecond
	config.write(map[string]string{"name": "two", "more": "new"})
	config.pause = 0
	stage.Eventually(t, "the new content", func() bool { return read(id, "/v/name") == "two" && read(id, "/v/more") == "new" })
	var events string
	stage.Eventually(t, "the events", func() bool {
		events = read(id, "/tmp/events")
		return strings.Contains(events, "/v deleted "+first)
	})
	at := -1
	for _, want := range []string{"/v created " + config.now(), "/v created ..data_tmp", "/v moved-to ..data", "/v created more", "/v deleted sub", "/v deleted " + first} {
		i := strings.Index(events, want+"\n")
		if i <= at && !strings.HasSuffix(events, want) {
			t.Errorf("no event %q in its place among %q", want, events)
		}
		at = max(at, i)
	}
	if !strings.Contains(events, "/v/name deleted-self") {
		t.Errorf("nothing was said of the file itself: %q", events)
	}
	// Many in a row, with a container that comes meanwhile.
	written := make(chan int)
	go func() {
		for i := range 100 {
			config.write(map[string]string{"name": fmt.Sprint("update ", i), "number": fmt.Sprint(i)})
			written <- i
		}
		close(written)
	}()
	for range 50 {
		<-written
	}
	done := make(chan bool)
	go func() {
		defer close(done)
		for range written {
		}
	}()
	late := p.start("late", config.at("/v"), "sh", "-c", idle)
	<-done
	for _, c := range []string{id, late} {
		stage.Eventually(t, "the last content", func() bool { return read(c, "/v/name")+read(c, "/v/number") == "update 9999" })
		if out, _ := p.exec(c, "ls", "-A", "/v"); out != "..data\n"+config.now()+"\nname\nnumber" && out != config.now()+"\n..data\nname\nnumber" {
			t.Errorf("after many updates there are %q", out)
		}
	}
	// One whose directory goes does no harm to who has it, whatever it holds then.
	if err := os.RemoveAll(config.dir); err != nil {
		t.Fatal(err)
	}
	if out, code := p.exec(id, "ls", "/v"); code != 0 {
		t.Errorf("after the volume has gone: %q, exit %d", out, code)
	}
}

// TestOddProjectedVolumes hold what the kubelet would not write.
func TestOddProjectedVolumes(t *testing.T) {
	volumes := make(map[string]*projected)
	var mounts []func(*cri.ContainerConfig)
	for _, kind := range []string{"secret", "projected", "downward-api", "configmap"} {
		volumes[kind] = newProjected(t, kind, "v", map[string]string{"file": kind})
		mounts = append(mounts, volumes[kind].at("/"+kind))
	}
	in := func(kind string, parts ...string) string {
		return filepath.Join(append([]string{volumes[kind].dir}, parts...)...)
	}
	secret := filepath.Join(t.TempDir(), "host")
	if err := errors.Join(
		os.WriteFile(secret, []byte("of the host"), 0o644),
		os.Symlink(secret, in("secret", "out")), os.Symlink("../../../../../../../etc/hostname", in("secret", "up")),
		unix.Mkfifo(in("projected", "..data", "fifo"), 0o644),
		os.WriteFile(in("downward-api", "..data", "huge"), make([]byte, 5<<20), 0o644),
		os.MkdirAll(in("configmap", "..data", strings.Repeat("d/", 100)), 0o755),
	); err != nil {
		t.Fatal(err)
	}
	p := newPod(t, "odd", nil)
	id := p.start("odd", func(c *cri.ContainerConfig) {
		for _, m := range mounts {
			m(c)
		}
	}, "sh", "-c", idle)
	out, _ := p.exec(id, "sh", "-c", "cat /secret/file /projected/file /downward-api/file /configmap/file; wc -c </downward-api/..data/huge; for d in secret projected downward-api configmap; do grep \" /$d \" /proc/mounts | cut -d ' ' -f 3; done")
	// What cannot be copied is live.
	if want := "secretprojecteddownward-apiconfigmap5242880\ntmpfs\n9p\n9p\n9p"; out != want {
		t.Errorf("got %q, want %q", out, want)
	}
	if out, _ := p.exec(id, "sh", "-c", "cat /secret/out 2>/dev/null; cat /secret/up"); out != "odd-host" {
		t.Errorf("links that lead out: %q", out)
	}
	if !reported("programs will not be told when " + volumes["projected"].dir) {
		t.Error("nothing says that a volume is live")
	}
	// One that grows too large keeps what it had, and takes what comes after.
	volumes["secret"].write(map[string]string{"file": strings.Repeat("x", 4<<20)})
	stage.Eventually(t, "word of a volume that is too large", func() bool {
		return reported("the containers that have the volume " + volumes["secret"].dir + " keep what it held before")
	})
	if out, _ := p.exec(id, "cat", "/secret/file"); out != "secret" {
		t.Errorf("after an update that is too large: %.40q", out)
	}
	volumes["secret"].write(map[string]string{"file": "small"})
	stage.Eventually(t, "the next content", func() bool { out, _ := p.exec(id, "cat", "/secret/file"); return out == "small" })
}
