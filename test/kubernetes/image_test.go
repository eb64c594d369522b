package kubernetes

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"manis/test/debimage"
	"manis/test/stage"
)

// extended gives the node an image that is the box with further programs: files of this machine by their names in the image.
func extended(t testing.TB, name string, files map[string]string, change func(*v1.Config)) {
	t.Helper()
	box, _ := stage.Box(t)
	img, err := extend(box, files, change)
	to := dir("image-" + strings.NewReplacer("/", "-", ":", "-").Replace(name))
	if err == nil {
		err = debimage.WriteLayout(to, img, name)
	}
	if err == nil {
		err = suite.c.load(t.Context(), to)
	}
	if err != nil {
		t.Fatalf("make the image %s: %v", name, err)
	}
}

func extend(box string, files map[string]string, change func(*v1.Config)) (v1.Image, error) {
	index, err := layout.ImageIndexFromPath(box)
	if err != nil {
		return nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	img, err := index.Image(manifest.Manifests[0].Digest)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		body, err := os.ReadFile(files[name])
		if err != nil {
			return nil, err
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(body)), ModTime: time.Unix(1700000000, 0)}); err != nil {
			return nil, fmt.Errorf("add %s: %w", name, err)
		}
		if _, err := w.Write(body); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		return nil, err
	}
	if img, err = mutate.AppendLayers(img, layer); err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	c := config.DeepCopy().Config
	change(&c)
	return mutate.Config(img, c)
}
