package debimage

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// writeLayer writes a gzip-compressed tar to a new file and returns it as an OCI layer.
func writeLayer(path string, content func(*tar.Writer) error) (v1.Layer, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	buffer := bufio.NewWriterSize(f, 1<<20)
	// The fastest level: layers are written once, read a few times, and never sent far.
	zip, err := gzip.NewWriterLevel(buffer, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	archive := tar.NewWriter(zip)
	if err := content(archive); err != nil {
		return nil, fmt.Errorf("write layer: %w", err)
	}
	for _, finish := range []func() error{archive.Close, zip.Close, buffer.Flush, f.Close} {
		if err := finish(); err != nil {
			return nil, fmt.Errorf("write layer: %w", err)
		}
	}
	return tarball.LayerFromFile(path, tarball.WithMediaType(types.OCILayer))
}

// assemble makes an OCI image of layers, the lowest first.
func assemble(config *v1.ConfigFile, layers ...v1.Layer) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.ConfigFile(img, config)
	if err != nil {
		return nil, err
	}
	addenda := make([]mutate.Addendum, 0, len(layers))
	for _, layer := range layers {
		addenda = append(addenda, mutate.Addendum{
			Layer:   layer,
			History: v1.History{CreatedBy: "manis/test/debimage", Created: v1.Time{Time: time.Unix(0, 0).UTC()}},
		})
	}
	return mutate.Append(img, addenda...)
}

// virtualTree is a file tree that exists only as tar headers, all owned by root and dated at the
// epoch.
type virtualTree struct {
	entries []virtualEntry
}

type virtualEntry struct {
	header  tar.Header
	content []byte
}

func (t *virtualTree) add(h tar.Header, content []byte) {
	h.ModTime = time.Unix(0, 0)
	h.Size = int64(len(content))
	t.entries = append(t.entries, virtualEntry{h, content})
}

func (t *virtualTree) dir(name string, mode int64) {
	t.add(tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}, nil)
}

func (t *virtualTree) file(name string, mode int64, content []byte) {
	t.add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, content)
}

func (t *virtualTree) link(name, target string) {
	t.add(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil)
}

// writeTo writes the tree sorted by name, which puts a directory before what is in it.
func (t *virtualTree) writeTo(w *tar.Writer) error {
	slices.SortFunc(t.entries, func(a, b virtualEntry) int { return strings.Compare(a.header.Name, b.header.Name) })
	for _, e := range t.entries {
		if err := w.WriteHeader(&e.header); err != nil {
			return err
		}
		if _, err := w.Write(e.content); err != nil {
			return err
		}
	}
	return nil
}

// copyFile writes the content of a regular file of the given size.
func copyFile(w io.Writer, path string, size int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.Copy(w, io.LimitReader(f, size))
	if err == nil && n != size {
		err = fmt.Errorf("%s became shorter while it was read", path)
	}
	return err
}
