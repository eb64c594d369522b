package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"manis/test/debimage"
)

const imageName = "manis-bench:latest"

// gvisorVersion is the newest release that is known to build from the module proxy.
const gvisorVersion = "v0.0.0-20260905035102-160fafc42237"

// workshop is where the benchmark keeps its things. Everything in dir is
// removed at the end; cache stays.
type workshop struct {
	dir, run, cache string
	layout          string // the image as an OCI layout
	rootfs          string // the same image, unpacked
	bundles         string
	volume          string // a host directory with the same data files
	bytes           int64  // of each data file
	// build says that peers which are missing may be built, if that takes only time.
	build    bool
	log      io.Writer
	releases []func()
}

// later calls f when the workshop closes.
func (w *workshop) later(f func()) { w.releases = append(w.releases, f) }

// newWorkshop builds the image and all that belongs to it.
func newWorkshop(ctx context.Context, mib int64, log io.Writer) (w *workshop, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("find a cache directory: %w (set XDG_CACHE_HOME)", err)
	}
	w = &workshop{cache: filepath.Join(cache, "manis", "bench"), bytes: mib << 20, log: log}
	if err := os.MkdirAll(w.cache, 0o755); err != nil {
		return nil, err
	}
	// Beside the cache, because /tmp may be memory.
	if w.dir, err = os.MkdirTemp(w.cache, "run-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	// A socket's address holds 107 bytes.
	if w.run, err = os.MkdirTemp("/tmp", "manis-bench-"); err != nil {
		return w, err
	}
	w.layout, w.rootfs = filepath.Join(w.dir, "layout"), filepath.Join(w.dir, "rootfs")
	w.bundles, w.volume = filepath.Join(w.dir, "bundles"), filepath.Join(w.dir, "volume")
	if err := os.MkdirAll(w.volume, 0o755); err != nil {
		return w, err
	}
	for i, name := range dataFiles {
		if err := writeNoise(filepath.Join(w.volume, name), w.bytes, uint64(i)); err != nil {
			return w, err
		}
	}
	img, err := w.makeImage(ctx)
	if err != nil {
		return w, err
	}
	if err := debimage.WriteLayout(w.layout, img, imageName); err != nil {
		return w, err
	}
	return w, unpack(mutate.Extract(img), w.rootfs)
}

// close says what could not be removed.
func (w *workshop) close() {
	for _, f := range slices.Backward(w.releases) {
		f()
	}
	for _, dir := range []string{w.dir, w.run} {
		if dir == "" {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			fmt.Fprintln(w.log, "bench: left behind:", err)
		}
	}
}

// dataFiles are one to read in order and one to read at random, so that the first does
// not fill the cache for the second.
var dataFiles = []string{"sequential", "random"}

// makeImage puts the probe and the data into a layer over busybox.
func (w *workshop) makeImage(ctx context.Context) (v1.Image, error) {
	fmt.Fprintln(w.log, "bench: building the image")
	probe := filepath.Join(w.cache, "probe")
	build := exec.CommandContext(ctx, goTool(), "build", "-trimpath", "-ldflags", "-s -w", "-o", probe, "./bench/probe")
	build.Dir = top()
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the probe: %w: %s", err, out)
	}
	builder, err := debimage.New(w.log)
	if err != nil {
		return nil, err
	}
	recipe, err := debimage.Find("busybox")
	if err != nil {
		return nil, err
	}
	base, err := builder.Build(ctx, recipe)
	if err != nil {
		return nil, err
	}
	layer := filepath.Join(w.dir, "layer.tar")
	files := map[string]string{"usr/bin/probe": probe}
	for _, name := range dataFiles {
		files["data/"+name] = filepath.Join(w.volume, name)
	}
	if err := writeLayer(layer, files); err != nil {
		return nil, err
	}
	added, err := tarball.LayerFromFile(layer)
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(base, added)
}

func writeLayer(name string, files map[string]string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	t := tar.NewWriter(f)
	for _, dir := range []string{"data/", "volume/"} {
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
			return err
		}
	}
	for to, from := range files {
		in, err := os.Open(from)
		if err != nil {
			return err
		}
		fi, err := in.Stat()
		if err == nil {
			err = t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: to, Mode: 0o755, Size: fi.Size()})
		}
		if err == nil {
			_, err = io.Copy(t, in)
		}
		in.Close()
		if err != nil {
			return err
		}
	}
	return errors.Join(t.Close(), f.Close())
}

// writeNoise writes what no compression makes smaller.
func writeNoise(name string, n int64, seed uint64) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	source := rand.NewChaCha8([32]byte{byte(seed)})
	_, err = io.CopyN(f, source, n)
	return errors.Join(err, f.Close())
}

// unpack writes an image of ours, whose names are known to be harmless.
func unpack(r io.ReadCloser, dir string) error {
	defer r.Close()
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unpack the image: %w", err)
		}
		name := filepath.Join(dir, filepath.Clean("/"+h.Name))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(name, 0o755)
		case tar.TypeReg:
			err = unpackFile(name, t, os.FileMode(h.Mode).Perm())
		case tar.TypeSymlink:
			err = os.Symlink(h.Linkname, name)
		case tar.TypeLink:
			err = os.Link(filepath.Join(dir, filepath.Clean("/"+h.Linkname)), name)
		}
		if err != nil {
			return fmt.Errorf("unpack %s: %w", h.Name, err)
		}
	}
}

func unpackFile(name string, r io.Reader, mode os.FileMode) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// runsc returns gVisor's runtime: an installed one, or one built into the cache.
func (w *workshop) runsc(ctx context.Context) (string, error) {
	if path, err := exec.LookPath("runsc"); err == nil {
		return path, nil
	}
	dir := filepath.Join(w.cache, "runsc-"+gvisorVersion)
	binary := filepath.Join(dir, "runsc")
	if _, err := os.Stat(binary); err == nil {
		return binary, nil
	}
	if !w.build {
		return "", errors.New("not installed, nor built by make bench before")
	}
	fmt.Fprintln(w.log, "bench: building gVisor's runsc, once (some minutes)")
	cmd := exec.CommandContext(ctx, goTool(), "install", "gvisor.dev/gvisor/runsc@"+gvisorVersion)
	// Outside of this module, and finished under its name only when complete.
	cmd.Dir = w.dir
	part := dir + ".part"
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOBIN="+part, "GOFLAGS=-mod=mod")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("building it failed: %w: %.300s", err, strings.TrimSpace(errs.String()))
	}
	if err := os.Rename(part, dir); err != nil {
		return "", err
	}
	return binary, nil
}

// top is the source tree, in which `go run ./bench` is started.
func top() string {
	dir, err := os.Getwd()
	if err != nil {
		return "."
	}
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return d
		}
	}
	return dir
}

// goTool is the toolchain that the source tree is built with.
func goTool() string {
	script := filepath.Join(top(), "scripts", "go")
	if _, err := os.Stat(script); err == nil {
		return script
	}
	return "go"
}
