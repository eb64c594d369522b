// Package debimage makes container images from Debian's own packages, without a registry, a
// Dockerfile or a container engine: for a first run on a fresh machine and for tests that need
// real software. Images are kept in a cache, and can be written as an OCI layout or a `docker save`
// archive, or pushed to a registry. The package must not know Manis: whatever runs
// images can use it.
package debimage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"golang.org/x/sys/unix"
)

// ErrNeedsRoot says that a Debian root filesystem was asked for by an ordinary user: its files
// have many owners, and debootstrap runs the packages' own scripts in a chroot.
var ErrNeedsRoot = errors.New("building a Debian root filesystem needs root")

// ErrUnavailable says that this machine lacks a tool or a package source that a build needs.
var ErrUnavailable = errors.New("cannot build Debian images on this machine")

// generation is part of every cache key; a change of how images are made raises it.
const generation = 2

// Builder makes images and remembers them. The zero Builder is not usable; use New or set Cache.
type Builder struct {
	// Cache is a directory for finished images, one OCI layout each. Any number of
	// builders may use it at once.
	Cache string
	// Log gets the output of debootstrap and apt and a line per slow step. Nil discards it.
	Log io.Writer
}

// New returns a builder that caches where the kernel's build does, outside the source tree:
// ${MANIS_CACHE:-${XDG_CACHE_HOME:-~/.cache}/manis}/debimage.
func New(log io.Writer) (*Builder, error) {
	cache := os.Getenv("MANIS_CACHE")
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("find a cache for images: %w (set MANIS_CACHE)", err)
		}
		cache = filepath.Join(user, "manis")
	}
	return &Builder{Cache: filepath.Join(cache, "debimage"), Log: log}, nil
}

// Build returns the image of a recipe, from the cache if it was built before. Its layers are files
// in the cache, which the caller must leave alone. Errors wrap ErrNeedsRoot or ErrUnavailable where
// the reason is the machine, so that a test can skip.
func (b *Builder) Build(ctx context.Context, r Recipe) (v1.Image, error) {
	key, err := r.key()
	if err != nil {
		return nil, err
	}
	img, err := b.cached(ctx, key, func(ctx context.Context, work string) (v1.Image, error) {
		if len(r.Packages) == 0 && r.Busybox {
			return buildBusybox(ctx, r, work)
		}
		return b.buildDebian(ctx, r, work)
	})
	if err != nil {
		return nil, fmt.Errorf("build image %s: %w", r.Name, err)
	}
	return img, nil
}

// cached returns the image at key, or lets make build it in a temporary directory and keeps it.
// A second caller for the same key waits for the first, in this process or another.
func (b *Builder) cached(ctx context.Context, key string, make func(ctx context.Context, work string) (v1.Image, error)) (v1.Image, error) {
	if err := os.MkdirAll(b.Cache, 0o755); err != nil {
		return nil, err
	}
	home := filepath.Join(b.Cache, key)
	if img, err := open(home); err == nil {
		return img, nil
	}
	unlock, err := lock(home + ".lock")
	if err != nil {
		return nil, err
	}
	defer unlock()
	if img, err := open(home); err == nil {
		return img, nil
	}
	work, err := os.MkdirTemp(b.Cache, "building-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	img, err := make(ctx, work)
	if err != nil {
		return nil, err
	}
	fresh := filepath.Join(work, "layout")
	if err := WriteLayout(fresh, img, ""); err != nil {
		return nil, err
	}
	// What is there at this point did not open: a damaged entry.
	if err := os.RemoveAll(home); err != nil {
		return nil, err
	}
	if err := os.Rename(fresh, home); err != nil {
		return nil, err
	}
	return open(home)
}

// open returns the only image of a layout.
func open(path string) (v1.Image, error) {
	index, err := layout.ImageIndexFromPath(path)
	if err != nil {
		return nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	if len(manifest.Manifests) != 1 {
		return nil, fmt.Errorf("%s holds %d images, want 1", path, len(manifest.Manifests))
	}
	return index.Image(manifest.Manifests[0].Digest)
}

// lock takes the advisory lock of a file, which it leaves behind: removing it would let a third
// caller in beside the second.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// digestOf names a cache entry by everything that decides its content.
func digestOf(parts any) (string, error) {
	b, err := json.Marshal(parts)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16]), nil
}

func (b *Builder) log() io.Writer {
	if b.Log == nil {
		return io.Discard
	}
	return b.Log
}

func (b *Builder) sayf(format string, args ...any) {
	fmt.Fprintf(b.log(), "debimage: "+format+"\n", args...)
}
