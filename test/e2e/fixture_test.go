package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"manis/test/debimage"
)

// fixture is an image that several tests use, made once.
type fixture struct {
	img    v1.Image
	layout string // the image in an OCI layout, named NAME:latest
	err    error
}

var fixtures sync.Map // name -> func() fixture

// image returns a fixture: "box", which is busybox with the probe, or one of
// test/debimage's recipes. Where this machine cannot build it, the test is skipped.
func image(t testing.TB, name string) v1.Image {
	t.Helper()
	return getFixture(t, name).img
}

func getFixture(t testing.TB, name string) fixture {
	t.Helper()
	once, _ := fixtures.LoadOrStore(name, sync.OnceValue(func() fixture {
		img, err := buildFixture(name)
		if err != nil {
			return fixture{err: err}
		}
		dir := filepath.Join(suiteDir, name)
		if err = debimage.WriteLayout(dir, img, name+":latest"); err == nil {
			err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					err = os.Chmod(path, 0o755) // for other users' tests
				}
				return err
			})
		}
		return fixture{img, dir, err}
	}))
	f := once.(func() fixture)()
	if errors.Is(f.err, debimage.ErrNeedsRoot) || errors.Is(f.err, debimage.ErrUnavailable) {
		t.Skip(f.err)
	}
	if f.err != nil {
		t.Fatal(f.err)
	}
	return f
}

func buildFixture(name string) (v1.Image, error) {
	recipe, withProbe := name, false
	if name == "box" {
		recipe, withProbe = "busybox", true
	}
	b, err := debimage.New(nil)
	if err != nil {
		return nil, err
	}
	r, err := debimage.Find(recipe)
	if err != nil {
		return nil, err
	}
	img, err := b.Build(context.Background(), r)
	if err != nil || !withProbe {
		return img, err
	}
	path, err := probeBinary()
	if err != nil {
		return nil, err
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	layer, err := layerOf(file{name: "bin/probe", mode: 0o755, body: string(content)})
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(img, layer)
}

// load brings fixtures into the world's store under their names.
func (w *world) load(names ...string) {
	w.t.Helper()
	for _, name := range names {
		w.ok("load", "-q", "-i", getFixture(w.t, name).layout)
	}
}

// file is one entry of a layer.
type file struct {
	name  string
	mode  int64 // permissions with setuid and so on
	body  string
	kind  byte // tar's; 0 is a regular file, or a directory when the name ends in a slash
	link  string
	uid   int
	gid   int
	major int64
	minor int64
	pax   map[string]string
	mtime time.Time
}

// layerOf makes a layer of files in this order.
func layerOf(files ...file) (v1.Layer, error) {
	b, err := archiveOf(files...)
	if err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
}

func archiveOf(files ...file) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{
			Name: f.name, Typeflag: f.kind, Linkname: f.link, Mode: f.mode, Size: int64(len(f.body)),
			Uid: f.uid, Gid: f.gid, Devmajor: f.major, Devminor: f.minor, PAXRecords: f.pax, ModTime: f.mtime,
		}
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1700000000, 0)
		}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if strings.HasSuffix(f.name, "/") {
				h.Typeflag = tar.TypeDir
			}
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			switch h.Typeflag {
			case tar.TypeDir:
				h.Mode = 0o755
			case tar.TypeSymlink:
				h.Mode = 0o777
			}
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
		if _, err := io.WriteString(w, f.body); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// boxWith is the box image with another layer and a changed configuration.
func boxWith(t testing.TB, change func(*v1.Config), files ...file) v1.Image {
	t.Helper()
	img := image(t, "box")
	if len(files) > 0 {
		layer, err := layerOf(files...)
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			t.Fatal(err)
		}
	}
	if change != nil {
		cfg, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		c := cfg.DeepCopy().Config
		change(&c)
		if img, err = mutate.Config(img, c); err != nil {
			t.Fatal(err)
		}
	}
	return img
}

// loadImage brings an image of the test's own into the store.
func (w *world) loadImage(img v1.Image, name string) {
	w.t.Helper()
	dir := filepath.Join(w.dir, "layout-"+strings.NewReplacer("/", "-", ":", "-").Replace(name))
	if err := debimage.WriteLayout(dir, img, name); err != nil {
		w.t.Fatal(err)
	}
	w.ok("load", "-q", "-i", dir)
	os.RemoveAll(dir)
}
