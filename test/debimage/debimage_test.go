package debimage

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// build builds a recipe or skips where this machine cannot.
func build(t *testing.T, b *Builder, name string) v1.Image {
	t.Helper()
	recipe, err := Find(name)
	must(t, err)
	img, err := b.Build(t.Context(), recipe)
	if errors.Is(err, ErrNeedsRoot) || errors.Is(err, ErrUnavailable) {
		t.Skip(err)
	}
	must(t, err)
	return img
}

// intact reads an image to its end and compares every layer with the image's own account of it.
func intact(img v1.Image) error {
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	if len(layers) == 0 || len(layers) != len(config.RootFS.DiffIDs) {
		return fmt.Errorf("%d layers, %d named", len(layers), len(config.RootFS.DiffIDs))
	}
	for i, layer := range layers {
		content, err := layer.Uncompressed()
		if err != nil {
			return err
		}
		got, _, err := v1.SHA256(content)
		if err := errors.Join(err, content.Close()); err != nil {
			return err
		}
		if got != config.RootFS.DiffIDs[i] {
			return fmt.Errorf("layer %d is %s, named %s", i, got, config.RootFS.DiffIDs[i])
		}
	}
	return nil
}

func digest(t *testing.T, img v1.Image) v1.Hash {
	t.Helper()
	h, err := img.Digest()
	must(t, err)
	return h
}

// files maps each path of a layer to its header.
func files(t *testing.T, layer v1.Layer) map[string]*tar.Header {
	t.Helper()
	content, err := layer.Uncompressed()
	must(t, err)
	defer content.Close()
	found := map[string]*tar.Header{}
	for r := tar.NewReader(content); ; {
		h, err := r.Next()
		if err == io.EOF {
			return found
		}
		must(t, err)
		found[h.Name] = h
	}
}

func TestBusyboxImage(t *testing.T) {
	img := build(t, &Builder{Cache: t.TempDir()}, "busybox")
	must(t, intact(img))
	config, err := img.ConfigFile()
	must(t, err)
	if config.OS != "linux" || config.Architecture != "amd64" || strings.Join(config.Config.Cmd, " ") != "sh" || !strings.HasPrefix(config.Config.Env[0], "PATH=/") {
		t.Errorf("config is %+v", config)
	}
	layers, err := img.Layers()
	must(t, err)
	got := files(t, layers[0])
	for name, want := range map[string]string{"bin/sh": "/bin/busybox", "bin/uname": "/bin/busybox"} {
		if h := got[name]; h == nil || h.Linkname != want {
			t.Errorf("%s is %+v, want a link to %s", name, h, want)
		}
	}
	for _, name := range []string{"bin/busybox", "etc/passwd", "etc/group", "tmp/", "proc/"} {
		if got[name] == nil {
			t.Errorf("%s is missing", name)
		}
	}
}

func TestBusyboxImageIsReproducible(t *testing.T) {
	a := build(t, &Builder{Cache: t.TempDir()}, "busybox")
	b := build(t, &Builder{Cache: t.TempDir()}, "busybox")
	if digest(t, a) != digest(t, b) {
		t.Error("two builds differ")
	}
}

func TestBuildersMayShareACache(t *testing.T) {
	b := &Builder{Cache: t.TempDir()}
	build(t, b, "busybox")
	must(t, os.RemoveAll(b.Cache))
	recipe, err := Find("busybox")
	must(t, err)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if img, err := b.Build(t.Context(), recipe); err != nil {
				t.Error(err)
			} else if err := intact(img); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	left, err := filepath.Glob(filepath.Join(b.Cache, "building-*"))
	if must(t, err); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestDamagedCacheEntryIsBuiltAgain(t *testing.T) {
	b := &Builder{Cache: t.TempDir()}
	want := digest(t, build(t, b, "busybox"))
	indexes, err := filepath.Glob(filepath.Join(b.Cache, "busybox-*", "index.json"))
	if must(t, err); len(indexes) != 1 {
		t.Fatalf("%d entries, want 1", len(indexes))
	}
	must(t, os.WriteFile(indexes[0], []byte("{"), 0o644))
	if got := digest(t, build(t, b, "busybox")); got != want {
		t.Errorf("digest %s, want %s", got, want)
	}
}

func TestLayoutArchiveAndRegistryHoldTheSameImage(t *testing.T) {
	img := build(t, &Builder{Cache: t.TempDir()}, "busybox")
	dir := t.TempDir()

	at := filepath.Join(dir, "deep", "layout")
	for range 2 { // the second time replaces the first
		must(t, WriteLayout(at, img, "box:1"))
	}
	fromLayout, err := open(at)
	must(t, err)
	if digest(t, fromLayout) != digest(t, img) {
		t.Error("the layout holds another image")
	}
	index, err := os.ReadFile(filepath.Join(at, "index.json"))
	must(t, err)
	for _, want := range []string{"docker.io/library/box:1", `ref.name": "1"`} {
		if !strings.Contains(string(index), want) {
			t.Errorf("index does not name %s:\n%s", want, index)
		}
	}

	archive := filepath.Join(dir, "box.tar")
	must(t, WriteArchive(archive, img, "box:1"))
	tag, err := name.NewTag("box:1")
	must(t, err)
	fromArchive, err := tarball.ImageFromPath(archive, &tag)
	must(t, err, intact(fromArchive))

	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	ref := strings.TrimPrefix(server.URL, "http://") + "/test/box:1"
	must(t, Push(t.Context(), ref, img))
	parsed, err := name.ParseReference(ref, name.Insecure)
	must(t, err)
	pulled, err := remote.Image(parsed)
	must(t, err)
	if digest(t, pulled) != digest(t, img) {
		t.Error("the registry holds another image")
	}
}

func TestWriteLayoutLeavesOtherDirectoriesAlone(t *testing.T) {
	img := build(t, &Builder{Cache: t.TempDir()}, "busybox")
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "thesis"), nil, 0o644))
	if err := WriteLayout(dir, img, ""); err == nil {
		t.Error("a directory with a user's file was replaced")
	}
	if _, err := os.Stat(filepath.Join(dir, "thesis")); err != nil {
		t.Error(err)
	}
}

func TestRecipesAreChecked(t *testing.T) {
	tests := []struct {
		name   string
		recipe Recipe
	}{
		{"no name", Recipe{}},
		{"a flag", Recipe{Name: "x", Packages: []string{"-oDebug=1"}}},
		{"a shell command", Recipe{Name: "x", Packages: []string{"git;reboot"}}},
		{"upper case", Recipe{Name: "x", Packages: []string{"Git"}}},
		{"one letter", Recipe{Name: "x", Packages: []string{"r"}}},
		{"busybox with packages", Recipe{Name: "x", Busybox: true, Packages: []string{"git"}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if _, err := (&Builder{Cache: t.TempDir()}).Build(t.Context(), test.recipe); err == nil {
				t.Error("accepted")
			}
		})
	}
	for _, r := range Recipes() {
		if err := r.validate(); err != nil {
			t.Error(err)
		}
	}
	if _, err := Find("windows"); err == nil || !strings.Contains(err.Error(), "postgres") {
		t.Errorf("error %v, want one that lists the recipes", err)
	}
}

// TestDebianImages takes minutes and a network the first time; later from the cache.
func TestDebianImages(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a Debian root filesystem")
	}
	b, err := New(nil)
	must(t, err)
	base, above := build(t, b, "debian"), build(t, b, "python")
	below, err := base.Layers()
	must(t, err)
	layers, err := above.Layers()
	must(t, err)
	if len(below) != 1 || len(layers) != 2 {
		t.Fatalf("%d and %d layers, want 1 and 2", len(below), len(layers))
	}
	shared, err := layers[0].Digest()
	must(t, err)
	if d, err := below[0].Digest(); err != nil || d != shared {
		t.Errorf("the images do not share their first layer (%v)", err)
	}
	system, python := files(t, below[0]), files(t, layers[1])
	if h := system["etc/shadow"]; h == nil || h.Gid != 42 || h.Mode != 0o640 {
		t.Errorf("etc/shadow is %+v, want group shadow and mode 640", h)
	}
	if h := system["usr/bin/passwd"]; h == nil || h.Mode != 0o4755 {
		t.Errorf("usr/bin/passwd is %+v, want set-user-ID", h)
	}
	for _, name := range []string{"etc/resolv.conf", "etc/hostname", "usr/sbin/policy-rc.d"} {
		if system[name] != nil || python[name] != nil {
			t.Errorf("%s of the building machine is in the image", name)
		}
	}
	if python["usr/bin/python3"] == nil || python["usr/bin/dash"] != nil {
		t.Error("the second layer does not hold just what was added")
	}
}
