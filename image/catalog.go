package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// catalog is the part of the store that has names in it. Everything else is
// found by digest from here.
type catalog struct {
	Version int                `json:"version"`
	Images  map[string]*record `json:"images"` // by image ID: the config's digest
}

// record is what the store remembers of one image.
type record struct {
	Manifest v1.Hash   `json:"manifest"`
	Names    []string  `json:"names,omitempty"`   // in full, with tags
	Digests  []string  `json:"digests,omitempty"` // in full, as pulled: repository@digest
	Added    time.Time `json:"added"`
	Users    []string  `json:"users,omitempty"` // containers made from it
}

// catalog reads the catalog as it is now. It is replaced by rename, so this
// needs no lock.
func (s *Store) catalog() (*catalog, error) {
	c := &catalog{Version: layoutVersion, Images: map[string]*record{}}
	b, err := os.ReadFile(s.path("catalog.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the image catalog: %w", err)
	}
	if err := json.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("read the image catalog %s: %w", s.path("catalog.json"), err)
	}
	if c.Images == nil {
		c.Images = map[string]*record{}
	}
	return c, nil
}

// update changes the catalog: fn works on a fresh copy, under the lock, and
// what it left is written if it returns no error.
func (s *Store) update(ctx context.Context, fn func(*catalog) error) error {
	return s.locked(ctx, func() error {
		c, err := s.catalog()
		if err != nil {
			return err
		}
		if err := fn(c); err != nil {
			return err
		}
		return s.writeCatalog(c)
	})
}

func (s *Store) writeCatalog(c *catalog) error {
	for _, r := range c.Images {
		slices.Sort(r.Names)
		slices.Sort(r.Digests)
		slices.Sort(r.Users)
	}
	b, err := json.MarshalIndent(c, "", "\t")
	if err != nil {
		return err
	}
	if err := writeFile(s.path("catalog.json"), b); err != nil {
		return fmt.Errorf("write the image catalog: %w", err)
	}
	return nil
}

// add records an image, keeping what is known of it already. Names move here
// from whatever image had them.
func (c *catalog) add(id string, manifest v1.Hash, names, digests []string) {
	r := c.Images[id]
	if r == nil {
		r = &record{Manifest: manifest, Added: time.Now().UTC()}
		c.Images[id] = r
	}
	for _, n := range names {
		c.name(n, r)
	}
	for _, d := range digests {
		if !slices.Contains(r.Digests, d) {
			r.Digests = append(r.Digests, d)
		}
	}
}

func (c *catalog) name(name string, to *record) {
	for _, r := range c.Images {
		if i := slices.Index(r.Names, name); i >= 0 {
			r.Names = slices.Delete(r.Names, i, i+1)
		}
	}
	to.Names = append(to.Names, name)
}

// ids returns the image IDs in a stable order.
func (c *catalog) ids() []string {
	ids := make([]string, 0, len(c.Images))
	for id := range c.Images {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}
