package image

import (
	"context"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"manis/image/fault"
)

// Take takes in an image of another store, which opens content by its digest and is not trusted: the image that a manifest
// or an index is or has for this host. It gets no name here.
func (s *Store) Take(ctx context.Context, d v1.Descriptor, open func(v1.Hash) (io.ReadCloser, error)) (*Image, error) {
	src := blobs(open)
	f, err := descend(src, d, HostPlatform(), maxIndexDepth)
	if err != nil {
		return nil, err
	}
	images, err := s.take(ctx, src, []*found{f}, LoadOptions{})
	if err != nil {
		return nil, fmt.Errorf("take image %s: %w", d.Digest, fault.Disk(err))
	}
	return images[0], nil
}
