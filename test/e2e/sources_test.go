package e2e

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"manis/test/debimage"
)

// One image from three sources runs, and is one image.
func TestImageSources(t *testing.T) {
	t.Parallel()
	img := boxWith(t, func(c *v1.Config) { c.Cmd = []string{"cat", "/made-for-this"} }, file{name: "made-for-this", body: "source"})
	config, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	archive, layout := filepath.Join(dir, "image.tar"), filepath.Join(dir, "layout")
	if err := debimage.WriteArchive(archive, img, "from-archive:1"); err != nil {
		t.Fatal(err)
	}
	if err := debimage.WriteLayout(layout, img, "from-layout:1"); err != nil {
		t.Fatal(err)
	}
	h := newHub(t)
	pulled := h.push(img, "team/pulled:1")
	for _, c := range []struct {
		name, image string
		bring       func(w *world)
	}{
		{"pulled from a registry", pulled, func(*world) {}}, // run pulls
		{"archive of docker save", "from-archive:1", func(w *world) { w.ok("load", "-i", archive) }},
		{"archive on stdin", "from-archive:1", func(w *world) {
			b, err := os.ReadFile(archive)
			if err != nil {
				t.Fatal(err)
			}
			if r := w.manisIn(string(b), "load"); r.code != 0 || !strings.Contains(r.stdout, "Loaded image: from-archive:1") {
				w.t.Error(r)
			}
		}},
		{"OCI layout", "from-layout:1", func(w *world) { w.ok("load", "-i", layout) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			c.bring(w)
			if got := w.ok("run", "--rm", c.image); got != "source" {
				t.Errorf("the container printed %q", got)
			}
			if got := w.field(c.image, "{{.Id}}"); got != config.String() {
				t.Errorf("image id %s, want %s", got, config)
			}
		})
	}
}

// A second run of an image opens what the first has built: it needs neither registry nor
// layers, and builds nothing.
func TestSecondRunConvertsNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := newHub(t)
	name := h.push(image(t, "box"), "box:1")
	if r := w.manis("run", "--rm", name, "true"); r.code != 0 || !strings.Contains(r.stderr, "Building root filesystem") {
		t.Fatalf("the first run: %s", r)
	}
	built := w.rootfs()
	fetched := h.fetched()
	// Without the layers nothing could be converted.
	blobs := filepath.Join(w.root, "images", "blobs", "sha256")
	layers, err := image(t, "box").Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		digest, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(blobs, digest.Hex), filepath.Join(w.dir, digest.Hex)); err != nil {
			t.Fatal(err)
		}
	}
	r := w.manis("run", "--rm", name, "true")
	if r.code != 0 || r.stderr != "" {
		t.Errorf("the second run: %s", r)
	}
	if again := w.rootfs(); again != built {
		t.Errorf("the root filesystem was %s and is %s", built, again)
	}
	if n := h.fetched(); n != fetched {
		t.Errorf("%d more blobs were fetched", n-fetched)
	}
}

// rootfs identifies the converted images of the store.
func (w *world) rootfs() string {
	w.t.Helper()
	paths, err := filepath.Glob(filepath.Join(w.root, "images", "rootfs", "*", "image.erofs"))
	if err != nil || len(paths) == 0 {
		w.t.Fatalf("no converted image: %v", err)
	}
	var all []string
	for _, p := range paths {
		fi, err := os.Stat(p)
		if err != nil {
			w.t.Fatal(err)
		}
		all = append(all, fmt.Sprint(p, fi.Sys(), fi.ModTime()))
	}
	return strings.Join(all, "\n")
}

func TestPrivateRegistry(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := newHub(t)
	h.require("ann", "secret")
	name := h.push(image(t, "box"), "private/box:1")
	docker := filepath.Join(w.dir, "docker")
	if err := os.Mkdir(docker, 0o700); err != nil {
		t.Fatal(err)
	}
	configure := func(config string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(docker, "config.json"), []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("without a password", func(t *testing.T) {
		w.in(t).fails(1, "authentication", "pull", name)
	})
	t.Run("with a wrong one", func(t *testing.T) {
		configure(fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, h.addr, base64.StdEncoding.EncodeToString([]byte("ann:guess"))))
		w.in(t).fails(1, "authentication", "pull", name)
	})
	t.Run("with docker's configuration", func(t *testing.T) {
		configure(fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, h.addr, base64.StdEncoding.EncodeToString([]byte("ann:secret"))))
		w.in(t).ok("pull", name)
	})
	t.Run("with a credential helper", func(t *testing.T) {
		w := w.in(t)
		w.ok("rmi", name)
		helpers := t.TempDir()
		script := "#!/bin/sh\nread server\necho '{\"ServerURL\":\"'$server'\",\"Username\":\"ann\",\"Secret\":\"secret\"}'\n"
		if err := os.WriteFile(filepath.Join(helpers, "docker-credential-vault"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		configure(fmt.Sprintf(`{"credHelpers":{%q:"vault"}}`, h.addr))
		w.setenv("PATH", helpers+":"+os.Getenv("PATH"))
		w.ok("pull", "-q", name)
	})
}

// Every way in which a pull can fail is told apart in words, leaves the store as it was, and
// does not keep the next pull from working.
func TestBadPulls(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := newHub(t)
	good := h.push(image(t, "box"), "good:1")
	other := h.push(mutateArch(t, image(t, "box"), "arm64"), "other:arm")
	digest, err := image(t, "box").Digest()
	if err != nil {
		t.Fatal(err)
	}
	const nothing = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
	for _, c := range []struct{ name, ref, words string }{
		{"unknown repository", h.addr + "/no/such:1", "no/such"},
		{"unknown tag", h.addr + "/good:2", "good:2"},
		{"unknown digest", h.addr + "/good@" + nothing, nothing[:20]},
		{"nobody listens", "127.0.0.1:1/box:1", "127.0.0.1:1"},
		{"no such registry", "registry.invalid/box:1", "registry.invalid"},
		{"another architecture", other, "linux/arm64"},
		{"capital letters", "UPPER", "lowercase"},
		{"no name at all", "", "invalid reference"},
		{"a half digest", h.addr + "/good@sha256:12", "invalid"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := w.in(t)
			w.fails(1, c.words, "pull", "-q", c.ref)
			w.fails(125, c.words, "run", "--rm", "-q", c.ref)
		})
	}
	t.Run("never pull", func(t *testing.T) {
		w.in(t).fails(125, "--pull=never", "run", "--rm", "--pull", "never", good, "true")
	})
	t.Run("layer with other bytes", func(t *testing.T) {
		w := w.in(t)
		h.spoil(func(rw http.ResponseWriter, r *http.Request) bool {
			rw.Header().Set("Content-Type", "application/octet-stream")
			rw.Write(make([]byte, 4096))
			return true
		})
		defer h.spoil(nil)
		w.fails(1, "digest", "pull", "-q", good)
	})
	if got := w.ok("images", "-aq"); got != "" {
		t.Errorf("images after failures: %s", got)
	}
	if n, _ := w.files("images/partial"); n > 1 {
		t.Logf("%d files kept of interrupted downloads", n-1)
	}
	t.Run("and then a good one", func(t *testing.T) {
		w := w.in(t)
		w.ok("pull", "-q", good)
		w.ok("pull", "-q", h.addr+"/good@"+digest.String())
	})
}

// mutateArch is the image with another architecture in its configuration.
func mutateArch(t testing.TB, img v1.Image, arch string) v1.Image {
	t.Helper()
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg = cfg.DeepCopy()
	cfg.Architecture = arch
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		t.Fatal(err)
	}
	return img
}

func TestMultiArchitecture(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := newHub(t)
	ours := boxWith(t, func(c *v1.Config) { c.Cmd = []string{"true"} })
	arm := mutateArch(t, boxWith(t, func(c *v1.Config) { c.Cmd = []string{"false"} }), "arm64")
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: arm, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}}},
		mutate.IndexAddendum{Add: ours, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
	)
	name := h.pushIndex(index, "multi:1")
	w.ok("pull", "-q", name)
	if got := w.field(name, "{{.Architecture}} {{.Config.Cmd}}"); got != "amd64 [true]" {
		t.Errorf("pulled %q for this host", got)
	}
	w.ok("pull", "-q", "--platform", "linux/arm64", name)
	if got := w.field(name, "{{.Architecture}} {{.Config.Cmd}}"); got != "arm64 [false]" {
		t.Errorf("pulled %q for arm64", got)
	}
	// The name is now of an image that this host cannot run.
	w.fails(125, "arm64", "run", "--rm", "--pull", "never", name)
	w.fails(1, "linux/s390x", "pull", "--platform", "linux/s390x", name)
}

// Layers that try to leave their root filesystem, or to fill the disk, are refused before
// anything runs, and nothing of them is left.
func TestMaliciousLayers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	target := filepath.Join(w.dir, "owned")
	for _, c := range []struct {
		name  string
		files []file
	}{
		{"path with ..", []file{{name: "../../../../../../../.." + target, body: "x"}}},
		{"link and then through it", []file{{name: "out", kind: '2', link: w.dir}, {name: "out/owned", body: "x"}}},
		{"hard link out", []file{{name: "passwd", kind: '1', link: "../../../../../../etc/passwd"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := w.in(t)
			layer, err := layerOf(c.files...)
			if err != nil {
				t.Fatal(err)
			}
			img, err := mutate.AppendLayers(empty.Image, layer)
			if err != nil {
				t.Fatal(err)
			}
			img = mutateArch(t, img, "amd64")
			cfg, _ := img.ConfigFile()
			cfg = cfg.DeepCopy()
			cfg.OS = "linux"
			cfg.Config.Cmd = []string{"/x"}
			if img, err = mutate.ConfigFile(img, cfg); err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(t.TempDir(), "layout")
			if err := debimage.WriteLayout(dir, img, "evil:1"); err != nil {
				t.Fatal(err)
			}
			w.ok("load", "-q", "-i", dir)
			// Either it is refused, or what it wanted lands inside: the program is missing.
			if r := w.manis("run", "--rm", "evil:1"); r.code != 125 && r.code != 127 {
				t.Error(r)
			}
			if _, err := os.Lstat(target); err == nil {
				t.Error("a file was written outside")
			}
			w.ok("rmi", "evil:1")
		})
	}
	if n, _ := w.files("images/rootfs"); n > 4 {
		t.Errorf("%d files left among the root filesystems", n)
	}
}
