package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"manis/image/archive"
	"manis/image/fault"
	"manis/image/layout"
	"manis/image/reference"
	"manis/image/signature"
)

// LoadOptions tune Load.
type LoadOptions struct {
	// Tag names the image, instead of what the source says. It needs a source
	// of one image.
	Tag      string
	Platform v1.Platform // zero: the host's
	Progress Progress
}

// Load takes in the images of a local source: an OCI layout directory, an OCI
// layout packed into a tar archive, or an archive as "docker save" makes them,
// compressed or not. Which of them it is, is found out.
func (s *Store) Load(ctx context.Context, path string, opts LoadOptions) ([]*Image, error) {
	images, err := s.load(ctx, path, opts)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", path, fault.Disk(err))
	}
	return images, nil
}

// LoadFrom takes in the images of an archive that is read from r, as Load does.
func (s *Store) LoadFrom(ctx context.Context, r io.Reader, opts LoadOptions) ([]*Image, error) {
	images, err := s.loadArchive(ctx, r, opts)
	if err != nil {
		return nil, fmt.Errorf("load: %w", fault.Disk(err))
	}
	return images, nil
}

func (s *Store) load(ctx context.Context, path string, opts LoadOptions) ([]*Image, error) {
	fi, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no such file or directory: %w", ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	if !fi.IsDir() {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return s.loadArchive(ctx, f, opts)
	}
	if !layout.Is(path) {
		return nil, fmt.Errorf("a directory without oci-layout and index.json: %w", ErrUnsupported)
	}
	dir, err := layout.Open(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	raw, err := dir.Index(maxManifest)
	if err != nil {
		return nil, err
	}
	list, err := indexed(blobs(dir.Blob), raw, opts)
	if err != nil {
		return nil, err
	}
	signed, err := layoutSignatures(blobs(dir.Blob), raw)
	if err != nil {
		return nil, err
	}
	images, err := s.take(ctx, blobs(dir.Blob), list, opts)
	if err != nil {
		return nil, err
	}
	return images, s.keepLoaded(images, signed)
}

func (s *Store) loadArchive(ctx context.Context, r io.Reader, opts LoadOptions) ([]*Image, error) {
	work, err := s.workspace()
	if err != nil {
		return nil, err
	}
	defer work.close()
	progress := serial(opts.Progress)
	a, err := archive.Read(ctx, r, work.dir, archive.Limits{Bytes: s.Limits.ImageBytes}, func(n int64) {
		progress(Event{Phase: Loading, ID: "archive", Current: n})
	})
	if err != nil {
		return nil, err
	}
	src := unpacked{a}
	var list []*found
	var signed []signature.Signed
	switch {
	case a.Has("manifest.json"):
		list, err = listed(src, opts)
	case a.Has("index.json") && a.Has("oci-layout"):
		var raw []byte
		if raw, err = a.File("index.json", maxManifest); err == nil {
			list, err = indexed(src, raw, opts)
		}
		if err == nil {
			signed, err = layoutSignatures(src, raw)
		}
	default:
		err = fmt.Errorf("an archive without manifest.json (docker) and index.json (OCI): %w", ErrUnsupported)
	}
	if err != nil {
		return nil, err
	}
	images, err := s.take(ctx, src, list, opts)
	if err != nil {
		return nil, err
	}
	return images, s.keepLoaded(images, signed)
}

// listed finds the images of an archive's manifest.json. Where the archive is
// an OCI layout too, its own manifests are used, so that digests stay the same.
func listed(src unpacked, opts LoadOptions) ([]*found, error) {
	images, err := src.Docker()
	if err != nil {
		return nil, err
	}
	if len(images) == 0 {
		return nil, fmt.Errorf("no image in manifest.json: %w", ErrNotFound)
	}
	original := map[string]*found{}
	if raw, err := src.File("index.json", maxManifest); err == nil {
		if fs, err := indexed(src, raw, opts); err == nil {
			for _, f := range fs {
				original[f.id()] = f
			}
		}
	}
	var list []*found
	for _, i := range images {
		sum := sha256.Sum256(i.Manifest)
		digest := v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
		f, err := inspect(src, i.Manifest, digest, opts.platform())
		if err != nil {
			return nil, err
		}
		if o := original[f.id()]; o != nil {
			f = o
		}
		f.names = i.Names
		list = append(list, f)
	}
	return list, nil
}

func (o LoadOptions) platform() v1.Platform {
	if o.Platform.OS == "" {
		return HostPlatform()
	}
	return o.Platform
}

// indexed finds the images that a layout's index names.
func indexed(src source, raw []byte, opts LoadOptions) ([]*found, error) {
	x, err := parseIndex(raw)
	if err != nil {
		return nil, err
	}
	return entries(src, x, opts.platform())
}

// entries finds the images of a layout's index for a platform. Several
// entries of the same name, or of none, are one image for several platforms.
func entries(src source, x *v1.IndexManifest, want v1.Platform) ([]*found, error) {
	var order []string
	groups := map[string]*v1.IndexManifest{}
	for _, d := range x.Manifests {
		if d.Platform != nil && d.Platform.OS == "unknown" || holdsSignatures(d) {
			continue
		}
		name := annotatedName(d.Annotations)
		if groups[name] == nil {
			groups[name] = &v1.IndexManifest{}
			order = append(order, name)
		}
		groups[name].Manifests = append(groups[name].Manifests, d)
	}
	var list []*found
	for _, name := range order {
		g := groups[name]
		all := g.Manifests
		if len(all) > 1 && all[0].Platform != nil {
			d, err := choose(g, want)
			if err != nil {
				return nil, err
			}
			all = []v1.Descriptor{d}
		}
		for _, d := range all {
			f, err := descend(src, d, want, maxIndexDepth)
			if err != nil {
				return nil, err
			}
			if name != "" {
				f.names = []string{name}
			}
			list = append(list, f)
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("no image in the index: %w", ErrNotFound)
	}
	return list, nil
}

// annotatedName is the name that a tool gave an index's entry. A bare tag is
// no name.
func annotatedName(a map[string]string) string {
	if n := a["io.containerd.image.name"]; n != "" {
		return n
	}
	n := a["org.opencontainers.image.ref.name"]
	for _, c := range n {
		if c == ':' || c == '/' || c == '@' {
			return n
		}
	}
	return ""
}

// take stores the images found in a local source.
func (s *Store) take(ctx context.Context, src source, list []*found, opts LoadOptions) ([]*Image, error) {
	if opts.Tag != "" {
		if len(list) != 1 {
			return nil, fmt.Errorf("a name for the image was given, but there are %d: %w", len(list), ErrInvalid)
		}
		list[0].names = []string{opts.Tag}
	}
	progress := serial(opts.Progress)
	var images []*Image
	for _, f := range list {
		for i, n := range f.names {
			name, err := reference.Parse(n)
			if err != nil {
				return nil, err
			}
			if name.Digest != "" {
				return nil, fmt.Errorf("image name %q: a digest is no name to give: %w", n, ErrInvalid)
			}
			f.names[i] = name.String()
		}
		lease, err := s.leaseFor(ctx, f)
		if err != nil {
			return nil, err
		}
		err = s.copyLayers(ctx, src, f, progress)
		var img *Image
		if err == nil {
			img, err = s.commit(ctx, f)
		}
		lease.release()
		if err != nil {
			return nil, err
		}
		images = append(images, img)
	}
	return images, nil
}
