package image

import (
	"errors"
	"os"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Pruned tells what Prune did.
type Pruned struct {
	Removed   []Removed
	Reclaimed int64 // bytes of disk
}

// Prune removes the images that no container was made from and that have no
// name, or with all also the named ones. It also clears away what nothing
// names: interrupted downloads, left-overs of crashes, root file systems of an
// older format.
func (s *Store) Prune(all bool) (Pruned, error) {
	var p Pruned
	var w *sweeper
	err := s.removal(func(sw *sweeper) error {
		w = sw
		for _, id := range w.c.ids() {
			r := w.c.Images[id]
			if len(r.Users) > 0 || (len(r.Names) > 0 && !all) {
				continue
			}
			done, err := w.remove(id)
			if errors.Is(err, ErrInUse) {
				continue
			}
			if err != nil {
				return err
			}
			p.Removed = append(p.Removed, done...)
		}
		return w.unnamed()
	})
	if err != nil {
		return Pruned{}, err
	}
	p.Reclaimed = w.freed + s.sweepTemp()
	n, err := s.blobs.SweepPartials()
	p.Reclaimed += n
	return p, err
}

// unnamed marks for removal what no image and no running operation needs.
func (w *sweeper) unnamed() error {
	marked := map[v1.Hash]bool{}
	for _, b := range w.goneBlobs {
		marked[b] = true
	}
	err := w.s.blobs.All(func(d v1.Hash) error {
		if w.blobs[d] == 0 && !w.held[d] && !marked[d] {
			w.goneBlobs = append(w.goneBlobs, d)
		}
		return nil
	})
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(w.s.path("rootfs"))
	if err != nil {
		return err
	}
	claimed := map[string]bool{}
	for _, cl := range w.claims {
		claimed[cl.key] = true
	}
	for _, e := range entries {
		key := strings.TrimSuffix(e.Name(), ".lock")
		if w.roots[key] > 0 || claimed[key] {
			continue
		}
		claimed[key] = true
		cl, err := w.s.claim(key)
		if errors.Is(err, ErrInUse) {
			continue
		}
		if err != nil {
			return err
		}
		w.claims = append(w.claims, cl)
	}
	return nil
}
