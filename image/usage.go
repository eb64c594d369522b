package image

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Usage is how the store's disk space is spent, in bytes as du(1) counts them.
// Total is the sum of all images' Unique, Shared, Unnamed and Overhead.
type Usage struct {
	Total    int64
	Shared   int64 // needed by more than one image, counted once
	Unnamed  int64 // interrupted downloads and what Prune would clear away
	Overhead int64 // directories, catalog, locks, work in progress
	// Reclaimable is what Prune(true) would give back.
	Reclaimable int64
	Images      []ImageUsage
}

// ImageUsage is the part of one image.
type ImageUsage struct {
	ID     string
	Unique int64 // nothing else needs it
	Shared int64 // other images need it too
	Users  int   // containers made from it
}

// Usage measures the store.
func (s *Store) Usage() (Usage, error) {
	c, err := s.catalog()
	if err != nil {
		return Usage{}, err
	}
	users := map[string][]string{} // path -> images that need it
	ids := c.ids()
	for _, id := range ids {
		n, err := s.needs(c.Images[id])
		if err != nil {
			continue // a damaged image needs nothing that can be told
		}
		seen := map[string]bool{}
		need := func(path string) {
			if !seen[path] {
				seen[path] = true
				users[path] = append(users[path], id)
			}
		}
		for _, b := range n.blobs {
			need(s.blobs.Path(b))
		}
		need(s.path("rootfs", n.rootfs))
	}
	u := Usage{}
	part := map[string]*ImageUsage{}
	for _, id := range ids {
		part[id] = &ImageUsage{ID: id, Users: len(c.Images[id].Users)}
	}
	err = filepath.WalkDir(s.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // gone since it was listed
			}
			return err
		}
		size := allocated(path)
		u.Total += size
		owner, named := s.owner(path)
		by := users[owner]
		switch {
		case !named:
			u.Overhead += size
			return nil
		case len(by) == 0:
			u.Unnamed += size
		case len(by) == 1:
			part[by[0]].Unique += size
		default:
			u.Shared += size
			for _, id := range by {
				part[id].Shared += size
			}
		}
		for _, id := range by {
			if part[id].Users > 0 {
				return nil
			}
		}
		u.Reclaimable += size
		return nil
	})
	for _, id := range ids {
		u.Images = append(u.Images, *part[id])
	}
	return u, err
}

// owner tells what of the store a path belongs to: a blob, a partial or a root
// file system, by its path. Anything else belongs to the store itself.
func (s *Store) owner(path string) (string, bool) {
	rel, err := filepath.Rel(s.root, path)
	if err != nil {
		return "", false
	}
	parts := strings.Split(rel, string(filepath.Separator))
	switch {
	case parts[0] == "blobs" && len(parts) == 3, parts[0] == "partial" && len(parts) == 2:
		return path, true
	case parts[0] == "rootfs" && len(parts) >= 2 && !strings.HasSuffix(parts[1], ".lock"):
		return s.path("rootfs", parts[1]), true
	}
	return "", false
}

// diskUsage is what du(1) would say of path, in bytes.
func diskUsage(path string) int64 {
	var n int64
	filepath.WalkDir(path, func(p string, _ fs.DirEntry, err error) error {
		if err == nil {
			n += allocated(p)
		}
		return nil
	})
	return n
}

func allocated(path string) int64 {
	fi, err := os.Lstat(path)
	if err != nil {
		return 0
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return fi.Size()
}
