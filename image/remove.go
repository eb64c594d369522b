package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"manis/image/lockfile"
	"manis/image/reference"
	"manis/image/rootfs"
)

// patience bounds the wait for the store's lock where no context is given. It
// is only ever held for moments.
const patience = time.Minute

func (s *Store) change(fn func(*catalog) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return s.update(ctx, fn)
}

// Tag gives the image src, anything that Resolve takes, the name dst. An
// image that had the name loses it.
func (s *Store) Tag(src, dst string) error {
	n, err := reference.Parse(dst)
	if err != nil {
		return fmt.Errorf("tag %s: %w", src, err)
	}
	if n.Digest != "" {
		return fmt.Errorf("tag %s: %q: a digest is no name to give: %w", src, dst, ErrInvalid)
	}
	err = s.change(func(c *catalog) error {
		id, _, err := c.resolve(src)
		if err != nil {
			return err
		}
		c.name(n.String(), c.Images[id])
		return nil
	})
	if err != nil {
		return fmt.Errorf("tag %s: %w", src, err)
	}
	return nil
}

// AddUser notes that a container was made from an image, so that Remove says
// so. Noting it twice is no error.
func (s *Store) AddUser(imageID, container string) error {
	return s.change(func(c *catalog) error {
		r := c.Images[imageID]
		if r == nil {
			return fmt.Errorf("image %s: %w", imageID, ErrNotFound)
		}
		if !slices.Contains(r.Users, container) {
			r.Users = append(r.Users, container)
		}
		return nil
	})
}

// RemoveUser takes back what AddUser noted. It is no error if nothing was.
func (s *Store) RemoveUser(imageID, container string) error {
	return s.change(func(c *catalog) error {
		if r := c.Images[imageID]; r != nil {
			r.Users = slices.DeleteFunc(r.Users, func(u string) bool { return u == container })
		}
		return nil
	})
}

// Removed is one step of a removal: one of the two is set.
type Removed struct {
	Untagged string // a short name
	Deleted  string // an image ID, or the digest of a layer
}

// String is the step as docker prints it.
func (r Removed) String() string {
	if r.Untagged != "" {
		return "Untagged: " + r.Untagged
	}
	return "Deleted: " + r.Deleted
}

// Remove takes away a name, and with the last name the image. By ID, all
// names of the image go if they are of one repository. With force, several
// repositories' names go, and containers made from the image do not stop it;
// running VMs always do. What other images or running operations need stays.
func (s *Store) Remove(ref string, force bool) ([]Removed, error) {
	var done []Removed
	err := s.removal(func(w *sweeper) error {
		id, name, err := w.c.resolve(ref)
		if err != nil {
			return err
		}
		r := w.c.Images[id]
		if !slices.Contains(r.Names, name) && !slices.Contains(r.Digests, name) {
			name = "" // by ID, or by the digest of the manifest itself
		}
		if name != "" && r.keepsName(name) {
			done = r.untag(name)
			return nil
		}
		if name == "" && !force && len(r.repositories()) > 1 {
			return fmt.Errorf("image %s has names in several repositories (remove them one by one, or force): %w", shortID(id), ErrInUse)
		}
		if len(r.Users) > 0 && !force {
			return fmt.Errorf("image %s is in use by container %s (remove it first, or force): %w", shortID(id), shortID(r.Users[0]), ErrInUse)
		}
		done, err = w.remove(id)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("remove %s: %w", ref, err)
	}
	return done, nil
}

func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(len(id), 12)]
}

// keepsName reports whether the image still has a name when this one goes.
func (r *record) keepsName(name string) bool {
	if slices.Contains(r.Names, name) {
		return len(r.Names) > 1
	}
	return len(r.Names) > 0 || len(r.Digests) > 1
}

// untag takes one name away, and with a repository's last tag its digests.
func (r *record) untag(name string) []Removed {
	done := []Removed{{Untagged: familiar(name)}}
	r.Names = slices.DeleteFunc(r.Names, func(n string) bool { return n == name })
	r.Digests = slices.DeleteFunc(r.Digests, func(d string) bool { return d == name })
	gone, err := reference.Parse(name)
	if err != nil || gone.Tag == "" {
		return done
	}
	for _, n := range r.Names {
		if other, err := reference.Parse(n); err == nil && other.Repository() == gone.Repository() {
			return done
		}
	}
	r.Digests = slices.DeleteFunc(r.Digests, func(d string) bool {
		other, err := reference.Parse(d)
		if err != nil || other.Repository() != gone.Repository() {
			return false
		}
		done = append(done, Removed{Untagged: other.Familiar()})
		return true
	})
	return done
}

func (r *record) repositories() []string {
	var repos []string
	for _, n := range append(slices.Clone(r.Names), r.Digests...) {
		if p, err := reference.Parse(n); err == nil && !slices.Contains(repos, p.Repository()) {
			repos = append(repos, p.Repository())
		}
	}
	return repos
}

// needs is what an image needs of the store.
type needs struct {
	blobs  []v1.Hash
	rootfs string // key
}

func (s *Store) needs(r *record) (needs, error) {
	n := needs{blobs: []v1.Hash{r.Manifest}}
	raw, err := s.blobs.ReadAll(r.Manifest, maxManifest)
	if err != nil {
		return n, err
	}
	m, err := parseManifest(raw)
	if err != nil {
		return n, err
	}
	n.blobs = append(n.blobs, m.Config.Digest)
	for _, l := range m.Layers {
		n.blobs = append(n.blobs, l.Digest)
	}
	raw, err = s.blobs.ReadAll(m.Config.Digest, maxConfig)
	if err != nil {
		return n, err
	}
	cfg, err := parseConfig(raw, len(m.Layers))
	if err != nil {
		return n, err
	}
	n.rootfs = rootfs.Key(cfg.RootFS.DiffIDs)
	return n, nil
}

// sweeper removes images: first from the catalog, then their files. A crash in
// between leaves files that nothing names, for Prune, never an image without
// files. It lives under the store's lock.
type sweeper struct {
	s     *Store
	c     *catalog
	blobs map[v1.Hash]int // how many images need each
	roots map[string]int
	held  map[v1.Hash]bool // by running operations

	goneBlobs []v1.Hash
	claims    []*claim
	freed     int64 // bytes of disk
}

// removal runs fn with a sweeper, writes the catalog and removes the files.
func (s *Store) removal(fn func(*sweeper) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return s.locked(ctx, func() error {
		c, err := s.catalog()
		if err != nil {
			return err
		}
		w, err := s.sweeper(c)
		if err != nil {
			return err
		}
		defer func() {
			for _, cl := range w.claims {
				cl.release()
			}
		}()
		if err := fn(w); err != nil {
			return err
		}
		if err := s.writeCatalog(c); err != nil {
			return err
		}
		return w.sweep()
	})
}

// claim is the exclusive hold on a root file system that is to be removed.
type claim struct {
	key   string
	build *lockfile.Lock // nobody builds it
	image *lockfile.Lock // nobody uses it; nil when it was never built
}

func (c *claim) release() {
	c.image.Release()
	c.build.Release()
}

func (s *Store) sweeper(c *catalog) (*sweeper, error) {
	w := &sweeper{s: s, c: c, blobs: map[v1.Hash]int{}, roots: map[string]int{}}
	for _, id := range c.ids() {
		n, err := s.needs(c.Images[id])
		if err != nil && !isDamage(err) { // else it stops no other removal, nor its own
			return nil, err
		}
		for _, b := range n.blobs {
			w.blobs[b]++
		}
		if n.rootfs != "" {
			w.roots[n.rootfs]++
		}
	}
	var err error
	w.held, err = s.leased()
	return w, err
}

// remove takes an image out of the catalog and claims what only it needed.
func (w *sweeper) remove(id string) ([]Removed, error) {
	r := w.c.Images[id]
	n, _ := w.s.needs(r)
	if n.rootfs != "" && w.roots[n.rootfs] == 1 {
		cl, err := w.s.claim(n.rootfs)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", shortID(id), err)
		}
		w.claims = append(w.claims, cl)
	}
	if n.rootfs != "" {
		w.roots[n.rootfs]--
	}
	var done []Removed
	for _, name := range append(slices.Clone(r.Names), r.Digests...) {
		done = append(done, Removed{Untagged: familiar(name)})
	}
	done = append(done, Removed{Deleted: id})
	delete(w.c.Images, id)
	os.Remove(w.s.signaturesOf(r.Manifest)) // it can be fetched again
	for i, b := range n.blobs {
		w.blobs[b]--
		if w.blobs[b] == 0 && !w.held[b] {
			w.goneBlobs = append(w.goneBlobs, b)
			if i >= 2 { // after manifest and config come the layers
				done = append(done, Removed{Deleted: b.String()})
			}
		}
	}
	return done, nil
}

// claim takes a root file system out of use.
func (s *Store) claim(key string) (*claim, error) {
	build, err := lockfile.Try(s.path("rootfs", key+".lock"), lockfile.Exclusive, true)
	if err != nil {
		return nil, err
	}
	if build == nil {
		return nil, fmt.Errorf("is being converted right now: %w", ErrInUse)
	}
	image, err := lockfile.Try(s.path("rootfs", key, "image.erofs"), lockfile.Exclusive, false)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		build.Release()
		return nil, err
	case image == nil:
		build.Release()
		return nil, fmt.Errorf("is in use by a running container (stop it first; this cannot be forced): %w", ErrInUse)
	}
	return &claim{key: key, build: build, image: image}, nil
}

// sweep removes the files of what was taken out of the catalog.
func (w *sweeper) sweep() error {
	for _, b := range w.goneBlobs {
		n, err := w.s.blobs.Remove(b)
		if err != nil {
			return err
		}
		w.freed += n
	}
	for _, cl := range w.claims {
		n, err := w.s.removeRootfs(cl.key)
		if err != nil {
			return err
		}
		w.freed += n
	}
	return nil
}

// removeRootfs deletes a claimed root file system. It is moved out of the way
// as a whole first: a half-removed one must not be found.
func (s *Store) removeRootfs(key string) (int64, error) {
	freed := diskUsage(s.path("rootfs", key))
	work, err := s.workspace()
	if err != nil {
		return 0, err
	}
	defer work.close()
	err = os.Rename(s.path("rootfs", key), filepath.Join(work.dir, "rootfs"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	if err := os.Remove(s.path("rootfs", key+".lock")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	return freed, nil
}
