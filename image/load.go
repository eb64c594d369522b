package image

import (
	"context"
	"fmt"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"manis/image/fault"
	"manis/image/layout"
	"manis/image/reference"
)

// LoadOptions tune Load.
type LoadOptions struct {
	// Tag names the image, instead of what the source says. It needs a source
	// of one image.
	Tag      string
	Platform v1.Platform // zero: the host's
	Progress Progress
}

// Load takes in the images of a local source: an OCI layout directory.
func (s *Store) Load(ctx context.Context, path string, opts LoadOptions) ([]*Image, error) {
	if opts.Platform.OS == "" {
		opts.Platform = HostPlatform()
	}
	images, err := s.load(ctx, path, opts)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", path, fault.Disk(err))
	}
	return images, nil
}

func (s *Store) load(ctx context.Context, path string, opts LoadOptions) ([]*Image, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !fi.IsDir() || !layout.Is(path) {
		return nil, fmt.Errorf("neither an OCI layout nor an image archive: %w", ErrUnsupported)
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
	return s.loadIndex(ctx, blobs(dir.Blob), raw, opts)
}

// loadIndex takes in the images that a layout's index names.
func (s *Store) loadIndex(ctx context.Context, src source, raw []byte, opts LoadOptions) ([]*Image, error) {
	x, err := parseIndex(raw)
	if err != nil {
		return nil, err
	}
	list, err := entries(src, x, opts.Platform)
	if err != nil {
		return nil, err
	}
	if opts.Tag != "" {
		if len(list) != 1 {
			return nil, fmt.Errorf("a name for the image was given, but there are %d: %w", len(list), ErrInvalid)
		}
		list[0].names = []string{opts.Tag}
	}
	return s.take(ctx, src, list, serial(opts.Progress))
}

// entries finds the images of a layout's index for a platform. Several
// entries of the same name, or of none, are one image for several platforms.
func entries(src source, x *v1.IndexManifest, want v1.Platform) ([]*found, error) {
	var order []string
	groups := map[string]*v1.IndexManifest{}
	for _, d := range x.Manifests {
		if d.Platform != nil && d.Platform.OS == "unknown" {
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
func (s *Store) take(ctx context.Context, src source, list []*found, progress Progress) ([]*Image, error) {
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
