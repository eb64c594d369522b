package archive

import (
	"encoding/json"
	"fmt"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"manis/image/fault"
	"manis/image/layer"
)

// DockerImage is one image that an archive's manifest.json lists.
type DockerImage struct {
	Names    []string
	Config   []byte
	Manifest []byte // made here: docker's archives have none
}

// dockerEntry is an entry of manifest.json.
type dockerEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

const (
	maxList   = 8 << 20
	maxConfig = 16 << 20
	maxImages = 1024
	maxLayers = 4096
)

// Docker returns the images of manifest.json, each with an OCI manifest that
// names its members by digest. The same archive gives the same manifests.
func (a *Archive) Docker() ([]DockerImage, error) {
	raw, err := a.File("manifest.json", maxList)
	if err != nil {
		return nil, err
	}
	var list []dockerEntry
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("manifest.json: %v: %w", err, fault.ErrInvalid)
	}
	if len(list) > maxImages {
		return nil, fmt.Errorf("manifest.json lists %d images (at most %d allowed): %w", len(list), maxImages, fault.ErrLimit)
	}
	images := make([]DockerImage, 0, len(list))
	for i, e := range list {
		img, err := a.docker(e)
		if err != nil {
			return nil, fmt.Errorf("image %d of manifest.json: %w", i+1, err)
		}
		images = append(images, img)
	}
	return images, nil
}

func (a *Archive) docker(e dockerEntry) (DockerImage, error) {
	img := DockerImage{Names: e.RepoTags}
	if len(e.Layers) > maxLayers {
		return img, fmt.Errorf("%d layers (at most %d allowed): %w", len(e.Layers), maxLayers, fault.ErrLimit)
	}
	var err error
	if img.Config, err = a.File(e.Config, maxConfig); err != nil {
		return img, fmt.Errorf("config: %w", err)
	}
	config, size, _, err := a.Describe(e.Config)
	if err != nil {
		return img, err
	}
	// Archives name the config by its digest; a wrong one has been tampered with.
	if hex := strings.TrimSuffix(path.Base(e.Config), ".json"); len(hex) == 64 && hex != config.Hex {
		return img, fmt.Errorf("config %s has digest %s: %w", e.Config, config, fault.ErrDigest)
	}
	m := v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Config: v1.Descriptor{MediaType: types.OCIConfigJSON, Digest: config, Size: size},
		Layers: []v1.Descriptor{},
	}
	for i, l := range e.Layers {
		d, size, kind, err := a.Describe(l)
		if err != nil {
			return img, fmt.Errorf("layer %d: %w", i+1, err)
		}
		mediaType := types.OCIUncompressedLayer
		switch kind {
		case layer.Gzip:
			mediaType = types.OCILayer
		case layer.Zstd:
			mediaType = types.OCILayerZStd
		}
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: mediaType, Digest: d, Size: size})
	}
	img.Manifest, err = json.Marshal(m)
	return img, err
}
