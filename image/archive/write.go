package archive

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"io"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Format of a written archive.
type Format string

const (
	// Docker is what "docker load" and everything newer reads: an OCI layout
	// with docker's manifest.json beside it, as docker itself writes since 25.
	Docker Format = "docker"
	// OCI is an OCI layout packed into tar.
	OCI Format = "oci"
)

// Content is an image to write.
type Content struct {
	Names      []string // in full, with tags
	ManifestID v1.Hash
	RawSize    int64 // of the manifest
	Manifest   v1.Manifest
	Platform   v1.Platform
}

// Write writes images as an archive; open gives out their blobs. The same
// images give the same bytes.
func Write(w io.Writer, format Format, images []Content, open func(v1.Hash) (io.ReadCloser, error)) error {
	tw := tar.NewWriter(w)
	files, err := lists(format, images)
	if err != nil {
		return err
	}
	for _, dir := range []string{"blobs/", "blobs/sha256/"} {
		if err := tw.WriteHeader(header(dir, tar.TypeDir, 0)); err != nil {
			return err
		}
	}
	done := map[v1.Hash]bool{}
	for _, img := range images {
		blobs := []v1.Descriptor{{Digest: img.ManifestID, Size: img.RawSize}, img.Manifest.Config}
		for _, d := range append(blobs, img.Manifest.Layers...) {
			if done[d.Digest] {
				continue
			}
			done[d.Digest] = true
			if err := copyBlob(tw, d, open); err != nil {
				return fmt.Errorf("blob %s: %w", d.Digest, err)
			}
		}
	}
	for _, f := range files {
		if err := tw.WriteHeader(header(f.name, tar.TypeReg, int64(len(f.data)))); err != nil {
			return err
		}
		if _, err := tw.Write(f.data); err != nil {
			return err
		}
	}
	return tw.Close()
}

type file struct {
	name string
	data []byte
}

// lists makes the members that say what the blobs are.
func lists(format Format, images []Content) ([]file, error) {
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{}}
	var entries []dockerEntry
	for _, img := range images {
		mediaType := img.Manifest.MediaType
		if mediaType == "" {
			mediaType = types.OCIManifestSchema1
		}
		d := v1.Descriptor{MediaType: mediaType, Digest: img.ManifestID, Size: img.RawSize}
		if img.Platform.OS != "" {
			d.Platform = &img.Platform
		}
		for _, name := range img.Names {
			named := d
			named.Annotations = map[string]string{
				"io.containerd.image.name":          name,
				"org.opencontainers.image.ref.name": tagOf(name),
			}
			index.Manifests = append(index.Manifests, named)
		}
		if len(img.Names) == 0 {
			index.Manifests = append(index.Manifests, d)
		}
		e := dockerEntry{Config: blobName(img.Manifest.Config.Digest), RepoTags: img.Names, Layers: []string{}}
		for _, l := range img.Manifest.Layers {
			e.Layers = append(e.Layers, blobName(l.Digest))
		}
		entries = append(entries, e)
	}
	raw, err := json.Marshal(index)
	if err != nil {
		return nil, err
	}
	files := []file{{"index.json", raw}}
	if format == Docker {
		if raw, err = json.Marshal(entries); err != nil {
			return nil, err
		}
		files = append(files, file{"manifest.json", raw})
	}
	return append(files, file{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)}), nil
}

func tagOf(name string) string {
	for i := len(name) - 1; i >= 0; i-- {
		if name[i] == ':' {
			return name[i+1:]
		}
	}
	return name
}

func blobName(d v1.Hash) string { return "blobs/" + d.Algorithm + "/" + d.Hex }

func header(name string, kind byte, size int64) *tar.Header {
	h := &tar.Header{Name: name, Typeflag: kind, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatUnknown}
	if kind == tar.TypeDir {
		h.Mode = 0o755
	}
	return h
}

func copyBlob(tw *tar.Writer, d v1.Descriptor, open func(v1.Hash) (io.ReadCloser, error)) error {
	r, err := open(d.Digest)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := tw.WriteHeader(header(blobName(d.Digest), tar.TypeReg, d.Size)); err != nil {
		return err
	}
	_, err = io.Copy(tw, r)
	return err
}
