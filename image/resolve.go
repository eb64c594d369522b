package image

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"syscall"

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

// A DamagedError comes with a list of images: these could not be read.
type DamagedError struct{ Images []Damaged }

// Damaged is an image whose manifest or config is missing or is not what it was. Remove
// takes it away like any other.
type Damaged struct {
	ID    string
	Names []string // short, with tags
	Users []string // containers made from it
	Err   error    // what is wrong
}

// ShortID is the ID as lists show it.
func (d *Damaged) ShortID() string { return shortID(d.ID) }

func (e *DamagedError) Error() string {
	if len(e.Images) == 1 {
		return e.Images[0].Err.Error()
	}
	return fmt.Sprintf("%d images are damaged, the first: %v", len(e.Images), e.Images[0].Err)
}

func (e *DamagedError) Unwrap() (errs []error) {
	for _, d := range e.Images {
		errs = append(errs, d.Err)
	}
	return errs
}

// isDamage reports whether an image that cannot be read for this reason will not be
// readable later either, unlike for want of memory or descriptors.
func isDamage(err error) bool {
	for _, kind := range []error{ErrNotFound, ErrDigest, ErrInvalid, ErrTruncated, ErrUnsupported, ErrLimit, syscall.EIO} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// List returns all images, newest first as docker does. With a *DamagedError the list
// lacks the images that it names and is good otherwise.
func (s *Store) List() ([]*Image, error) {
	c, err := s.catalog()
	if err != nil {
		return nil, err
	}
	var images []*Image
	var damaged DamagedError
	for _, id := range c.ids() {
		r := c.Images[id]
		img, err := s.image(id, r)
		switch {
		case err == nil:
			images = append(images, img)
		case errors.Is(err, ErrNotFound) && s.gone(id):
			// removed since the catalog was read
		case isDamage(err):
			d := Damaged{ID: id, Users: r.Users, Err: err}
			for _, n := range r.Names {
				d.Names = append(d.Names, familiar(n))
			}
			damaged.Images = append(damaged.Images, d)
		default:
			return nil, err
		}
	}
	slices.SortStableFunc(images, func(a, b *Image) int { return b.Created.Compare(a.Created) })
	if damaged.Images != nil {
		return images, &damaged
	}
	return images, nil
}
