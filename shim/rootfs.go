package shim

import (
	"fmt"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"manis/bundle"
)

// rootOf is the directory of a bundle's root filesystem.
func rootOf(b *bundle.Bundle) string {
	switch r := b.Spec.Root; {
	case r == nil || r.Path == "":
		return ""
	case filepath.IsAbs(r.Path):
		return filepath.Clean(r.Path)
	default:
		return filepath.Join(b.Dir, r.Path)
	}
}

// unmount takes away what is mounted there. What still uses it does not hinder it: it is the machine's, which ends.
func unmount(dir string) error {
	if err := mount.UnmountRecursive(dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the container's root: %w", err)
	}
	return nil
}
