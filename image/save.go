package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"manis/image/archive"
	"manis/image/fault"
)

// Save writes images, each given as Resolve takes it, as an archive that Load
// and docker read. Those given by name keep just that name.
func (s *Store) Save(ctx context.Context, refs []string, w io.Writer, format archive.Format) error {
	if err := s.save(ctx, refs, w, format); err != nil {
		return fmt.Errorf("save: %w", fault.Disk(err))
	}
	return nil
}

func (s *Store) save(ctx context.Context, refs []string, w io.Writer, format archive.Format) error {
	switch {
	case format != archive.Docker && format != archive.OCI:
		return fmt.Errorf("format %q (want %q or %q): %w", format, archive.Docker, archive.OCI, ErrInvalid)
	case len(refs) == 0:
		return fmt.Errorf("no image given: %w", ErrInvalid)
	}
	var lease *lease
	var contents []archive.Content
	err := s.locked(ctx, func() error {
		c, err := s.catalog()
		if err != nil {
			return err
		}
		var digests []v1.Hash
		contents, digests, err = s.contents(c, refs)
		if err != nil {
			return err
		}
		lease, err = s.lease(digests)
		return err
	})
	if err != nil {
		return err
	}
	defer lease.release()
	out := &interruptible{ctx: ctx, w: w}
	err = archive.Write(out, format, contents, func(d v1.Hash) (io.ReadCloser, error) { return s.blobs.Open(d) })
	if out.err != nil && errors.Is(err, out.err) {
		return fmt.Errorf("write the archive: %w", out.err)
	}
	return err
}

// contents describes the images to save, each once.
func (s *Store) contents(c *catalog, refs []string) ([]archive.Content, []v1.Hash, error) {
	var list []archive.Content
	var digests []v1.Hash
	at := map[string]int{}
	for _, ref := range refs {
		id, name, err := c.resolve(ref)
		if err != nil {
			return nil, nil, err
		}
		i, seen := at[id]
		if !seen {
			img, err := s.image(id, c.Images[id])
			if err != nil {
				return nil, nil, err
			}
			raw, err := s.blobs.ReadAll(img.ManifestID, maxManifest)
			if err != nil {
				return nil, nil, err
			}
			i = len(list)
			at[id] = i
			list = append(list, archive.Content{ManifestID: img.ManifestID, RawSize: int64(len(raw)), Manifest: img.Manifest, Platform: img.Platform})
			digests = append(digests, img.ManifestID, img.Manifest.Config.Digest)
			for _, l := range img.Manifest.Layers {
				digests = append(digests, l.Digest)
			}
		}
		names := c.Images[id].Names
		if slices.Contains(names, name) {
			names = []string{name}
		} else if name != "" {
			names = nil // by digest: no name to keep
		}
		for _, n := range names {
			if !slices.Contains(list[i].Names, n) {
				list[i].Names = append(list[i].Names, n)
			}
		}
	}
	return list, digests, nil
}

// interruptible ends a long write when its context ends.
type interruptible struct {
	ctx context.Context
	w   io.Writer
	err error
}

func (i *interruptible) Write(p []byte) (int, error) {
	if i.err = i.ctx.Err(); i.err != nil {
		return 0, i.err
	}
	n, err := i.w.Write(p)
	i.err = err
	return n, err
}
