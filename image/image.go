package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"manis/image/content"
	"manis/image/reference"
	"manis/image/rootfs"
)

// Image is one image of the store, as it was when looked up.
type Image struct {
	ID          string   // digest of the config: "sha256:..."
	Names       []string // short, with tags: "alpine:3.20"; none when dangling
	RepoDigests []string // short: "alpine@sha256:..."
	Manifest    v1.Manifest
	ManifestID  v1.Hash // digest of the manifest
	Config      v1.ConfigFile
	RawConfig   []byte // the config as it came, for what ConfigFile leaves out
	// Size in bytes of the root file system once Rootfs has built it; before
	// that, of the layers as they are stored.
	Size     int64
	Stored   int64 // bytes of manifest, config and layers as they are stored
	Created  time.Time
	Added    time.Time // when it came into this store
	Platform v1.Platform
	Users    []string // containers made from it
}

// Bounds of what describes an image; the largest in the wild stay under 4 MiB.
const (
	maxManifest = 8 << 20
	maxConfig   = 16 << 20
	maxLayers   = 4096
)

// ShortID is the ID as lists show it: 12 digits.
func (i *Image) ShortID() string { return i.ID[len("sha256:"):][:12] }

// image makes the Image of a record.
func (s *Store) image(id string, r *record) (*Image, error) {
	img := &Image{ID: id, ManifestID: r.Manifest, Added: r.Added, Users: r.Users}
	for _, n := range r.Names {
		img.Names = append(img.Names, familiar(n))
	}
	for _, d := range r.Digests {
		img.RepoDigests = append(img.RepoDigests, familiar(d))
	}
	raw, err := s.blobs.ReadAll(r.Manifest, maxManifest)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", id, err)
	}
	m, err := parseManifest(raw)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", id, err)
	}
	img.Manifest = *m
	if img.RawConfig, err = s.blobs.ReadAll(m.Config.Digest, maxConfig); err != nil {
		return nil, fmt.Errorf("image %s: %w", id, err)
	}
	cfg, err := parseConfig(img.RawConfig, len(m.Layers))
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", id, err)
	}
	img.Config = *cfg
	img.Created = cfg.Created.Time
	img.Platform = platformOf(cfg)
	img.Stored = int64(len(raw)) + int64(len(img.RawConfig))
	for _, l := range m.Layers {
		img.Stored += l.Size
		img.Size += l.Size
	}
	if meta, err := s.readMeta(rootfs.Key(cfg.RootFS.DiffIDs)); err == nil {
		img.Size = meta.DataSize
	}
	return img, nil
}

func familiar(name string) string {
	n, err := reference.Parse(name)
	if err != nil {
		return name
	}
	return n.Familiar()
}

func platformOf(cfg *v1.ConfigFile) v1.Platform {
	return v1.Platform{OS: cfg.OS, Architecture: cfg.Architecture, Variant: cfg.Variant, OSVersion: cfg.OSVersion}
}

// parseManifest reads an image manifest that anybody may have written.
func parseManifest(raw []byte) (*v1.Manifest, error) {
	var m v1.Manifest
	if err := decodeJSON(raw, &m); err != nil {
		return nil, fmt.Errorf("image manifest: %v: %w", err, ErrInvalid)
	}
	if m.SchemaVersion == 1 {
		return nil, fmt.Errorf("image manifest of schema 1, deprecated since 2017 (push the image again with a current tool): %w", ErrUnsupported)
	}
	if m.SchemaVersion != 2 || m.Config.Digest.Hex == "" {
		return nil, fmt.Errorf("image manifest without a config: %w", ErrInvalid)
	}
	if len(m.Layers) > maxLayers {
		return nil, fmt.Errorf("image manifest with %d layers (at most %d allowed): %w", len(m.Layers), maxLayers, ErrLimit)
	}
	for i, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		what := "config"
		if i > 0 {
			what = fmt.Sprintf("layer %d", i)
		}
		if err := content.CheckDigest(d.Digest); err != nil {
			return nil, fmt.Errorf("image manifest, %s: %w", what, err)
		}
		if d.Size < 0 {
			return nil, fmt.Errorf("image manifest, %s: size %d: %w", what, d.Size, ErrInvalid)
		}
		if i > 0 && !layerTypes[string(d.MediaType)] {
			return nil, fmt.Errorf("image manifest, %s: media type %q: %w", what, d.MediaType, ErrUnsupported)
		}
	}
	if m.Config.Size > maxConfig {
		return nil, fmt.Errorf("image config of %d bytes (at most %d allowed): %w", m.Config.Size, maxConfig, ErrLimit)
	}
	if !configTypes[string(m.Config.MediaType)] {
		return nil, fmt.Errorf("this is no container image: its config is of media type %q: %w", m.Config.MediaType, ErrUnsupported)
	}
	return &m, nil
}

// configTypes are the configs of runnable images. Docker's own archives and
// some builders leave the type out.
var configTypes = map[string]bool{
	"": true,
	"application/vnd.oci.image.config.v1+json":       true,
	"application/vnd.docker.container.image.v1+json": true,
}

// layerTypes are the layers that can be read. The compression is taken from
// the data, not from here.
var layerTypes = map[string]bool{
	"application/vnd.oci.image.layer.v1.tar":            true,
	"application/vnd.oci.image.layer.v1.tar+gzip":       true,
	"application/vnd.oci.image.layer.v1.tar+zstd":       true,
	"application/vnd.docker.image.rootfs.diff.tar":      true,
	"application/vnd.docker.image.rootfs.diff.tar.gzip": true,
	"application/vnd.docker.image.rootfs.diff.tar.zstd": true,
	// Non-distributable layers are read if the registry gives them out all the same.
	"application/vnd.oci.image.layer.nondistributable.v1.tar":      true,
	"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": true,
	"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": true,
	"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":    true,
}

// parseConfig reads an image config that anybody may have written.
func parseConfig(raw []byte, layers int) (*v1.ConfigFile, error) {
	var c v1.ConfigFile
	if err := decodeJSON(raw, &c); err != nil {
		return nil, fmt.Errorf("image config: %v: %w", err, ErrInvalid)
	}
	if len(c.RootFS.DiffIDs) != layers {
		return nil, fmt.Errorf("image config names %d layers, the manifest %d: %w", len(c.RootFS.DiffIDs), layers, ErrInvalid)
	}
	for i, d := range c.RootFS.DiffIDs {
		if err := content.CheckDigest(d); err != nil {
			return nil, fmt.Errorf("image config, layer %d: %w", i+1, err)
		}
	}
	return &c, nil
}

func decodeJSON(raw []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.More() {
		return errors.New("more than one JSON value")
	}
	return nil
}

// readMeta returns the description of a built root file system.
func (s *Store) readMeta(key string) (*rootfs.Image, error) {
	b, err := os.ReadFile(s.path("rootfs", key, "meta.json"))
	if err != nil {
		return nil, err
	}
	var m rootfs.Image
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	m.Path = s.path("rootfs", key, "image.erofs")
	if m.Format != rootfs.Format {
		return nil, fs.ErrNotExist
	}
	return &m, nil
}
