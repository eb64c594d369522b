package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"manis/image/fault"
	"manis/image/reference"
	"manis/image/registry"
	"manis/image/signature"
)

// maxKept bounds the file that signatures of an image are kept in, bytes.
const maxKept = 16 << 20

// Digests are those that a signature of the image may be of: its manifest's, and those by which registries know it,
// which may be an index's.
func (i *Image) Digests() []string {
	list := []string{i.ManifestID.String()}
	for _, d := range i.RepoDigests {
		if _, digest, ok := strings.Cut(d, "@"); ok && !slices.Contains(list, digest) {
			list = append(list, digest)
		}
	}
	return list
}

// signaturesOf is the file of what FetchSignatures has found for a manifest.
func (s *Store) signaturesOf(manifest v1.Hash) string {
	return s.path("signatures", manifest.Hex+".json")
}

// KeptSignatures are the signatures that FetchSignatures has found for an image before; nothing of them was verified.
func (s *Store) KeptSignatures(img *Image) ([]signature.Signed, error) {
	f, err := os.Open(s.signaturesOf(img.ManifestID))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the signatures of %s: %w", img.ShortID(), err)
	}
	defer f.Close()
	var list []signature.Signed
	if err := json.NewDecoder(io.LimitReader(f, maxKept)).Decode(&list); err != nil {
		return nil, fmt.Errorf("read the signatures of %s: %w", img.ShortID(), err)
	}
	return list, nil
}

// FetchSignatures looks for signatures of an image in the repositories of some names, as cosign keeps them there, and keeps
// what it finds for when there is no registry. They are as they came: signature.Verify says what they are worth. An
// image without any is no error.
func (s *Store) FetchSignatures(ctx context.Context, img *Image, names []string, opts PullOptions) ([]signature.Signed, error) {
	client := registry.New(registry.Options{
		Keychain: opts.Keychain, Insecure: opts.Insecure, Hosts: opts.Hosts, Transport: opts.Transport,
		Backoff: opts.Backoff, Retries: opts.Retries, IdleTimeout: opts.IdleTimeout,
	})
	defer client.Close()
	var list []signature.Signed
	var asked []string
	for _, text := range names {
		n, err := reference.Parse(text)
		if err != nil {
			return nil, err
		}
		if slices.Contains(asked, n.Repository()) {
			continue
		}
		asked = append(asked, n.Repository())
		for _, digest := range img.Digests() {
			found, err := fetchSignatures(ctx, client, reference.Name{Domain: n.Domain, Path: n.Path, Tag: signature.Tag(digest)})
			if err != nil && !errors.Is(err, fault.ErrNotFound) {
				return nil, fmt.Errorf("look for signatures in %s: %w", n.Repository(), err)
			}
			list = append(list, found...)
		}
	}
	if list == nil {
		return nil, nil
	}
	return list, s.keepSignatures(img.ManifestID, list)
}

// fetchSignatures reads one manifest of signatures with its payloads.
func fetchSignatures(ctx context.Context, client *registry.Client, n reference.Name) ([]signature.Signed, error) {
	repo, err := client.Repository(n)
	if err != nil {
		return nil, err
	}
	raw, _, err := repo.Manifest(ctx, n.Tag, maxManifest)
	if err != nil {
		return nil, err
	}
	return signaturesIn(&remoteSource{ctx: ctx, repo: repo}, raw)
}

// signaturesIn reads the payloads of a manifest of signatures.
func signaturesIn(src source, raw []byte) ([]signature.Signed, error) {
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("manifest of signatures: %v: %w", err, ErrInvalid)
	}
	var list []signature.Signed
	for _, l := range m.Layers {
		text, ok := l.Annotations[signature.Annotation]
		if string(l.MediaType) != signature.MediaType || !ok {
			continue
		}
		if len(list) == signature.MaxCount {
			break
		}
		payload, err := readAll(src.Blob, l, signature.MaxPayload)
		if err != nil {
			return nil, fmt.Errorf("payload of a signature: %w", err)
		}
		signed, err := signature.FromLayer(payload, text)
		if err != nil {
			return nil, fmt.Errorf("%v: %w", err, ErrInvalid)
		}
		list = append(list, signed)
	}
	return list, nil
}

// holdsSignatures reports whether an entry of a layout's index is a manifest of signatures, as "cosign save" marks them, or by
// the tag that it has in a registry.
func holdsSignatures(d v1.Descriptor) bool {
	name := d.Annotations["org.opencontainers.image.ref.name"]
	return d.Annotations["kind"] == "dev.cosignproject.cosign/sigs" || strings.HasPrefix(name, "sha256-") && strings.HasSuffix(name, ".sig")
}

// layoutSignatures are those that a layout holds for any of its images.
func layoutSignatures(src source, rawIndex []byte) ([]signature.Signed, error) {
	x, err := parseIndex(rawIndex)
	if err != nil {
		return nil, err
	}
	var list []signature.Signed
	for _, d := range x.Manifests {
		if !holdsSignatures(d) || len(list) >= signature.MaxCount {
			continue
		}
		raw, err := readAll(src.Manifest, d, maxManifest)
		if err != nil {
			return nil, fmt.Errorf("manifest of signatures: %w", err)
		}
		found, err := signaturesIn(src, raw)
		if err != nil {
			return nil, err
		}
		list = append(list, found...)
	}
	return list, nil
}

// keepLoaded keeps what a layout held with each of its images: whose a signature is, its payload says.
func (s *Store) keepLoaded(images []*Image, signed []signature.Signed) error {
	if signed == nil {
		return nil
	}
	for _, img := range images {
		if err := s.keepSignatures(img.ManifestID, signed); err != nil {
			return err
		}
	}
	return nil
}

// keepSignatures writes them down, as a whole or not at all.
func (s *Store) keepSignatures(manifest v1.Hash, list []signature.Signed) error {
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	path := s.signaturesOf(manifest)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("keep signatures: %w", fault.Disk(err))
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return fmt.Errorf("keep signatures: %w", fault.Disk(err))
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("keep signatures: %w", fault.Disk(err))
	}
	return nil
}
