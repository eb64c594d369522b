package image

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"manis/image/reference"
)

var hexID = regexp.MustCompile(`^[0-9a-f]{3,64}$`)

// Resolve finds an image of the store by name, name@digest, full or short (3
// digits or more) ID. A name wins over an ID that looks the same. The error is
// ErrNotFound, ErrAmbiguous or ErrInvalid.
func (s *Store) Resolve(ref string) (*Image, error) {
	c, err := s.catalog()
	if err != nil {
		return nil, err
	}
	id, _, err := c.resolve(ref)
	if err != nil {
		return nil, err
	}
	return s.image(id, c.Images[id])
}

// resolve returns the image ID and, when ref is a name, that name in full.
func (c *catalog) resolve(ref string) (id, name string, err error) {
	bare := strings.TrimPrefix(ref, "sha256:")
	isID := hexID.MatchString(bare)
	if isID && len(bare) == 64 {
		if _, ok := c.Images["sha256:"+bare]; ok {
			return "sha256:" + bare, "", nil
		}
		return "", "", fmt.Errorf("image %s: %w", ref, ErrNotFound)
	}
	if !strings.HasPrefix(ref, "sha256:") {
		n, err := reference.Parse(ref)
		if err != nil {
			return "", "", err
		}
		for _, id := range c.ids() {
			r := c.Images[id]
			if slices.Contains(r.Names, n.String()) || slices.Contains(r.Digests, n.String()) {
				return id, n.String(), nil
			}
			// The platform's own manifest is a digest of the image as good as
			// the index it was pulled by.
			if n.Digest != "" && n.Digest == r.Manifest.String() && r.inRepository(n.Repository()) {
				return id, n.String(), nil
			}
		}
	}
	if !isID {
		return "", "", fmt.Errorf("image %s: %w", ref, ErrNotFound)
	}
	var found []string
	for _, id := range c.ids() {
		if strings.HasPrefix(id, "sha256:"+bare) {
			found = append(found, id)
		}
	}
	switch len(found) {
	case 0:
		return "", "", fmt.Errorf("image %s: %w", ref, ErrNotFound)
	case 1:
		return found[0], "", nil
	}
	return "", "", fmt.Errorf("image ID %s fits %d images (give more digits): %w", ref, len(found), ErrAmbiguous)
}

func (r *record) inRepository(repo string) bool {
	for _, d := range append(slices.Clone(r.Digests), r.Names...) {
		if n, err := reference.Parse(d); err == nil && n.Repository() == repo {
			return true
		}
	}
	return false
}

func (s *Store) gone(id string) bool {
	c, err := s.catalog()
	return err == nil && c.Images[id] == nil
}

// List returns all images, newest first as docker does.
func (s *Store) List() ([]*Image, error) {
	c, err := s.catalog()
	if err != nil {
		return nil, err
	}
	var images []*Image
	for _, id := range c.ids() {
		img, err := s.image(id, c.Images[id])
		if errors.Is(err, ErrNotFound) && s.gone(id) {
			continue // removed since the catalog was read
		}
		if err != nil {
			return nil, err
		}
		images = append(images, img)
	}
	slices.SortStableFunc(images, func(a, b *Image) int { return b.Created.Compare(a.Created) })
	return images, nil
}
