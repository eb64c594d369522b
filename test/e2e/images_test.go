package e2e

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"manis/test/debimage"
)

// recipes builds each image once for all tests.
var recipes sync.Map

// recipe returns one of test/debimage's images, or skips the test where this
// machine cannot build it.
func recipe(t testing.TB, name string) v1.Image {
	t.Helper()
	type built struct {
		img v1.Image
		err error
	}
	make := sync.OnceValue(func() built {
		b, err := debimage.New(nil)
		if err != nil {
			return built{nil, err}
		}
		r, err := debimage.Find(name)
		if err != nil {
			return built{nil, err}
		}
		img, err := b.Build(context.Background(), r)
		return built{img, err}
	})
	once, _ := recipes.LoadOrStore(name, make)
	got := once.(func() built)()
	if errors.Is(got.err, debimage.ErrNeedsRoot) || errors.Is(got.err, debimage.ErrUnavailable) {
		t.Skip(got.err)
	}
	if got.err != nil {
		t.Fatal(got.err)
	}
	return got.img
}

// layoutOf writes an image as an OCI layout under a name.
func layoutOf(t testing.TB, img v1.Image, name string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": name})); err != nil {
		t.Fatal(err)
	}
	return dir
}

// load brings an image into the world's store under a name.
func (w *world) load(name string) {
	w.t.Helper()
	w.ok("load", "-q", "-i", layoutOf(w.t, recipe(w.t, name), name+":latest"))
}

func (w *world) loadBusybox() {
	w.t.Helper()
	w.load("busybox")
}

func md5sum(s string) string {
	sum := md5.Sum([]byte(s))
	return strings.ToLower(hex.EncodeToString(sum[:]))
}
