package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"manis/image/content"
	"manis/image/fault"
	"manis/image/reference"
	"manis/image/registry"
)

// PullOptions tune Pull. The zero value is what "pull" means without flags.
type PullOptions struct {
	Platform v1.Platform    // zero: the host's
	Insecure bool           // plain HTTP and unknown certificates for any registry
	Hosts    registry.Hosts // mirrors and exceptions, by registry
	Keychain authn.Keychain // nil: docker's configuration and credential helpers
	Progress Progress
	Jobs     int   // layers at once; 0 means 4
	MaxBytes int64 // of all layers as they are sent; 0 means 128 GiB

	// For tests and special networks.
	Transport   http.RoundTripper
	Backoff     time.Duration
	Retries     int
	IdleTimeout time.Duration
}

// Pull gets an image from its registry by tag or digest. Layers that the store
// has are not fetched; interrupted ones are continued. The image appears
// under its name once everything is there and verified.
func (s *Store) Pull(ctx context.Context, ref string, opts PullOptions) (*Image, error) {
	n, err := reference.Parse(ref)
	if err != nil {
		return nil, fmt.Errorf("pull: %w", err)
	}
	img, err := s.pull(ctx, n, opts)
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", n, fault.Disk(err))
	}
	return img, nil
}

func (s *Store) pull(ctx context.Context, n reference.Name, opts PullOptions) (*Image, error) {
	if opts.Platform.OS == "" {
		opts.Platform = HostPlatform()
	}
	if opts.Jobs <= 0 {
		opts.Jobs = 4
	}
	if opts.MaxBytes == 0 {
		opts.MaxBytes = 128 << 30
	}
	progress := serial(opts.Progress)
	client := registry.New(registry.Options{
		Keychain: opts.Keychain, Insecure: opts.Insecure, Hosts: opts.Hosts, Transport: opts.Transport,
		Backoff: opts.Backoff, Retries: opts.Retries, IdleTimeout: opts.IdleTimeout,
	})
	defer client.Close()
	repo, err := client.Repository(n)
	if err != nil {
		return nil, err
	}
	progress(Event{Phase: Resolving, ID: n.Familiar()})
	f, err := find(ctx, repo, n, opts.Platform)
	if err != nil {
		return nil, err
	}
	var total int64
	for _, l := range f.manifest.Layers {
		if total += l.Size; total > opts.MaxBytes || total < 0 {
			return nil, fmt.Errorf("layers of more than %d bytes: %w", opts.MaxBytes, ErrLimit)
		}
	}
	lease, err := s.leaseFor(ctx, f)
	if err != nil {
		return nil, err
	}
	defer lease.release()
	if err := s.fetchLayers(ctx, repo, f.manifest.Layers, opts.Jobs, progress); err != nil {
		return nil, err
	}
	img, err := s.commit(ctx, f)
	if err == nil {
		progress(Event{Phase: Done, ID: n.Familiar()})
	}
	return img, err
}

// find follows a name to the image for a platform.
func find(ctx context.Context, repo *registry.Repository, n reference.Name, want v1.Platform) (*found, error) {
	raw, mediaType, err := repo.Manifest(ctx, n.Identifier(), maxManifest)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(raw)
	digest := v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
	if n.Digest != "" && n.Digest != digest.String() {
		return nil, fmt.Errorf("the registry sent a manifest with digest %s: %w", digest, ErrDigest)
	}
	src := &remoteSource{ctx: ctx, repo: repo, top: raw, digest: digest}
	f, err := descend(src, v1.Descriptor{MediaType: types.MediaType(mediaType), Size: int64(len(raw)), Digest: digest}, want, maxIndexDepth)
	if err != nil {
		return nil, err
	}
	f.digests = []string{n.WithDigest(digest.String()).String()}
	if n.Tag != "" {
		f.names = []string{n.String()}
	}
	return f, nil
}

func (s *Store) fetchLayers(ctx context.Context, repo *registry.Repository, layers []v1.Descriptor, jobs int, progress Progress) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(jobs)
	for _, l := range layers {
		progress(Event{Phase: Waiting, ID: l.Digest.String(), Total: l.Size})
	}
	for i, l := range layers {
		g.Go(func() error {
			if err := s.fetchLayer(ctx, repo, l, progress); err != nil {
				return fmt.Errorf("layer %d of %d: %w", i+1, len(layers), err)
			}
			return nil
		})
	}
	return g.Wait()
}

func (s *Store) fetchLayer(ctx context.Context, repo *registry.Repository, d v1.Descriptor, progress Progress) error {
	id := d.Digest.String()
	w, err := s.blobs.Writer(ctx, d.Digest, d.Size)
	if err != nil {
		return err
	}
	if w == nil {
		progress(Event{Phase: Exists, ID: id, Current: d.Size, Total: d.Size})
		return nil
	}
	defer w.Close()
	sink := &countedSink{Writer: w, told: func(at int64) {
		progress(Event{Phase: Downloading, ID: id, Current: at, Total: d.Size})
	}}
	resumed := w.Offset() > 0
	for {
		err := repo.Fetch(ctx, d.Digest, d.Size, sink, func(err error) {
			progress(Event{Phase: Retrying, ID: id, Current: w.Offset(), Total: d.Size, Note: err.Error()})
		})
		if err != nil {
			return err
		}
		err = w.Commit()
		if err == nil {
			progress(Event{Phase: Downloaded, ID: id, Current: d.Size, Total: d.Size})
			return nil
		}
		if !resumed {
			return err
		}
		// What an earlier attempt left may be what is wrong, after a power
		// failure for instance: once more from the start.
		resumed = false
	}
}

// countedSink tells how far a blob has come.
type countedSink struct {
	*content.Writer
	told func(at int64)
}

func (c *countedSink) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.told(c.Offset())
	return n, err
}

// remoteSource is a source that asks a repository. The manifest that the name led to
// is there already.
type remoteSource struct {
	ctx    context.Context
	repo   *registry.Repository
	top    []byte
	digest v1.Hash
}

// Manifest implements source.
func (r *remoteSource) Manifest(d v1.Descriptor) (io.ReadCloser, error) {
	raw := r.top
	if d.Digest != r.digest {
		var err error
		if raw, _, err = r.repo.Manifest(r.ctx, d.Digest.String(), maxManifest); err != nil {
			return nil, err
		}
	}
	return io.NopCloser(bytes.NewReader(raw)), nil
}

// Blob implements source.
func (r *remoteSource) Blob(d v1.Descriptor) (io.ReadCloser, error) {
	var b memorySink
	if err := r.repo.Fetch(r.ctx, d.Digest, d.Size, &b, nil); err != nil {
		return nil, err
	}
	return io.NopCloser(&b.Buffer), nil
}

// memorySink takes a small blob.
type memorySink struct{ bytes.Buffer }

func (m *memorySink) Offset() int64  { return int64(m.Len()) }
func (m *memorySink) Restart() error { m.Reset(); return nil }
