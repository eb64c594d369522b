package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"manis/image/archive"
	"manis/image/content"
)

// source gives out the content that descriptors name. It is not trusted.
type source interface {
	Manifest(d v1.Descriptor) (io.ReadCloser, error)
	Blob(d v1.Descriptor) (io.ReadCloser, error)
}

// blobs is a source that keeps manifests and blobs in one place.
type blobs func(d v1.Hash) (io.ReadCloser, error)

func (b blobs) Manifest(d v1.Descriptor) (io.ReadCloser, error) { return b(d.Digest) }
func (b blobs) Blob(d v1.Descriptor) (io.ReadCloser, error)     { return b(d.Digest) }

// unpacked is a source whose blobs are files that the store may take.
type unpacked struct{ *archive.Archive }

func (u unpacked) Manifest(d v1.Descriptor) (io.ReadCloser, error) { return u.Archive.Blob(d.Digest) }
func (u unpacked) Blob(d v1.Descriptor) (io.ReadCloser, error)     { return u.Archive.Blob(d.Digest) }

// readAll reads a small blob and verifies it.
func readAll(open func(v1.Descriptor) (io.ReadCloser, error), d v1.Descriptor, limit int64) ([]byte, error) {
	if err := content.CheckDigest(d.Digest); err != nil {
		return nil, err
	}
	if d.Size > limit {
		return nil, fmt.Errorf("%s of %d bytes (at most %d allowed): %w", d.Digest, d.Size, limit, ErrLimit)
	}
	r, err := open(d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, d.Size+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) < d.Size {
		return nil, fmt.Errorf("%s ends after %d of %d bytes: %w", d.Digest, len(b), d.Size, ErrTruncated)
	}
	if sum := sha256.Sum256(b); int64(len(b)) > d.Size || hex.EncodeToString(sum[:]) != d.Digest.Hex {
		return nil, fmt.Errorf("content of %s: %w", d.Digest, ErrDigest)
	}
	return b, nil
}

// found is an image in a source: its manifest, read and verified.
type found struct {
	raw      []byte
	digest   v1.Hash
	manifest *v1.Manifest
	config   *v1.ConfigFile
	rawCfg   []byte
	names    []string
	digests  []string
}

func (f *found) id() string { return f.manifest.Config.Digest.String() }

// blobs the image needs.
func (f *found) blobs() []v1.Hash {
	list := []v1.Hash{f.digest, f.manifest.Config.Digest}
	for _, l := range f.manifest.Layers {
		list = append(list, l.Digest)
	}
	return list
}

// descend follows a descriptor through indexes to the image for a platform.
func descend(src source, d v1.Descriptor, want v1.Platform, depth int) (*found, error) {
	raw, err := readAll(src.Manifest, d, maxManifest)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if isIndex(string(d.MediaType), raw) {
		if depth == 0 {
			return nil, fmt.Errorf("image indexes nested more than %d deep: %w", maxIndexDepth, ErrLimit)
		}
		x, err := parseIndex(raw)
		if err != nil {
			return nil, err
		}
		next, err := choose(x, want)
		if err != nil {
			return nil, err
		}
		return descend(src, next, want, depth-1)
	}
	return inspect(src, raw, d.Digest, want)
}

// inspect reads an image's manifest and config, and refuses one for another
// platform.
func inspect(src source, raw []byte, digest v1.Hash, want v1.Platform) (*found, error) {
	m, err := parseManifest(raw)
	if err != nil {
		return nil, err
	}
	f := &found{raw: raw, digest: digest, manifest: m}
	if f.rawCfg, err = readAll(src.Blob, m.Config, maxConfig); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if f.config, err = parseConfig(f.rawCfg, len(m.Layers)); err != nil {
		return nil, err
	}
	have := platformOf(f.config)
	if have.OS == "" && have.Architecture == "" {
		return f, nil // very old builders say nothing
	}
	if fits(have, want) == 0 {
		return nil, fmt.Errorf("want %s, the image is for %s: %w", want, have, ErrPlatform)
	}
	return f, nil
}

// lease keeps the blobs of f for as long as it is being taken in.
func (s *Store) leaseFor(ctx context.Context, f *found) (l *lease, err error) {
	err = s.locked(ctx, func() error {
		l, err = s.lease(f.blobs())
		return err
	})
	return l, err
}

// commit makes an image whose layers are all there part of the catalog.
func (s *Store) commit(ctx context.Context, f *found) (*Image, error) {
	for _, b := range [][]byte{f.raw, f.rawCfg} {
		if _, err := s.blobs.Put(ctx, b); err != nil {
			return nil, err
		}
	}
	var img *Image
	err := s.update(ctx, func(c *catalog) (err error) {
		// Another pull may have brought the same image by another manifest, and
		// a removal may have taken that since: what counts is what is there now.
		if r := c.Images[f.id()]; r != nil && !s.whole(r.Manifest) {
			r.Manifest = f.digest
		}
		c.add(f.id(), f.digest, f.names, f.digests)
		img, err = s.image(f.id(), c.Images[f.id()])
		return err
	})
	return img, err
}

// whole reports whether all blobs of a manifest are there.
func (s *Store) whole(manifest v1.Hash) bool {
	raw, err := s.blobs.ReadAll(manifest, maxManifest)
	if err != nil {
		return false
	}
	m, err := parseManifest(raw)
	if err != nil || !s.blobs.Has(m.Config.Digest) {
		return false
	}
	for _, l := range m.Layers {
		if !s.blobs.Has(l.Digest) {
			return false
		}
	}
	return true
}

// copyLayers takes the layers of f from a local source into the store.
func (s *Store) copyLayers(ctx context.Context, src source, f *found, progress Progress) error {
	buf := make([]byte, 1<<20)
	for i, l := range f.manifest.Layers {
		if err := s.copyLayer(ctx, src, l, buf, progress); err != nil {
			return fmt.Errorf("layer %d of %d: %w", i+1, len(f.manifest.Layers), err)
		}
	}
	return nil
}

func (s *Store) copyLayer(ctx context.Context, src source, d v1.Descriptor, buf []byte, progress Progress) error {
	if u, ok := src.(unpacked); ok {
		return s.adopt(u, d, progress)
	}
	w, err := s.blobs.Writer(ctx, d.Digest, d.Size)
	if err != nil {
		return err
	}
	if w == nil {
		progress(Event{Phase: Exists, ID: d.Digest.String(), Current: d.Size, Total: d.Size})
		return nil
	}
	defer w.Close()
	if err := w.Restart(); err != nil {
		return err
	}
	r, err := src.Blob(d)
	if err != nil {
		return err
	}
	defer r.Close()
	for {
		if err := ctx.Err(); err != nil {
			w.Discard()
			return err
		}
		n, err := r.Read(buf)
		if _, err := w.Write(buf[:n]); err != nil {
			w.Discard() // a local source costs nothing to read again
			return err
		}
		progress(Event{Phase: Loading, ID: d.Digest.String(), Current: w.Offset(), Total: d.Size})
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			w.Discard()
			return err
		}
	}
	if err := w.Commit(); err != nil {
		w.Discard()
		return err
	}
	progress(Event{Phase: Done, ID: d.Digest.String(), Current: d.Size, Total: d.Size})
	return nil
}

// adopt takes over a layer that was unpacked from an archive.
func (s *Store) adopt(u unpacked, d v1.Descriptor, progress Progress) error {
	if s.blobs.Has(d.Digest) {
		progress(Event{Phase: Exists, ID: d.Digest.String(), Current: d.Size, Total: d.Size})
		return nil
	}
	path, err := u.Path(d.Digest)
	if err != nil {
		return err
	}
	fi, err := os.Stat(path)
	if err != nil {
		return err
	}
	if fi.Size() != d.Size {
		return fmt.Errorf("%s has %d bytes, %d are announced: %w", d.Digest, fi.Size(), d.Size, ErrDigest)
	}
	if err := s.blobs.Adopt(d.Digest, path); err != nil {
		return err
	}
	progress(Event{Phase: Done, ID: d.Digest.String(), Current: d.Size, Total: d.Size})
	return nil
}
