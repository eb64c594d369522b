package image

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"manis/image/fault"
	"manis/image/lockfile"
)

// lease keeps blobs from being removed while an operation counts on them. It
// is a locked file that lists digests; when its owner dies the lock goes with
// it, and the next removal sweeps the file away.
type lease struct{ lock *lockfile.Lock }

// lease must be taken under the store's lock, so that no removal that has
// looked at the leases already can miss it.
func (s *Store) lease(digests []v1.Hash) (*lease, error) {
	b, err := json.Marshal(digests)
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(s.path("lease"), "lease-*")
	if err != nil {
		return nil, fmt.Errorf("lease blobs: %w", fault.Disk(err))
	}
	path := f.Name()
	_, err = f.Write(b)
	f.Close()
	if err != nil {
		os.Remove(path)
		return nil, fmt.Errorf("lease blobs: %w", fault.Disk(err))
	}
	l, err := lockfile.Try(path, lockfile.Exclusive, false)
	if err != nil {
		return nil, err
	}
	return &lease{l}, nil
}

func (l *lease) release() {
	if l.lock.File != nil {
		os.Remove(l.lock.File.Name())
	}
	l.lock.Release()
}

// leased returns what running operations count on. It is called under the
// store's lock.
func (s *Store) leased() (map[v1.Hash]bool, error) {
	entries, err := os.ReadDir(s.path("lease"))
	if err != nil {
		return nil, err
	}
	held := map[v1.Hash]bool{}
	for _, e := range entries {
		path := filepath.Join(s.path("lease"), e.Name())
		l, err := lockfile.Try(path, lockfile.Exclusive, false)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if l != nil { // its owner died
			os.Remove(path)
			l.Release()
			continue
		}
		b, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var digests []v1.Hash
		if err := json.Unmarshal(b, &digests); err != nil {
			return nil, fmt.Errorf("read lease %s: %w", path, err)
		}
		for _, d := range digests {
			held[d] = true
		}
	}
	return held, nil
}
