package storage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// MountType says what is mounted.
type MountType string

const (
	Bind   MountType = "bind"   // a directory or file of the host
	Volume MountType = "volume" // a named or anonymous volume
	Tmpfs  MountType = "tmpfs"  // memory of the guest
)

// Mount is one mount of a container, as the user asked for it. ResolveMounts makes it one that can be carried
// out.
type Mount struct {
	Type MountType
	// Source is the absolute host path of a bind, the name of a volume (empty for an anonymous one), and
	// empty for a tmpfs.
	Source string
	// Destination is the absolute, clean path in the container, never "/".
	Destination string
	ReadOnly    bool
	// File is set by ResolveMounts for a bind of something that is not a directory.
	File bool
	// CreateSource makes ResolveMounts create a missing source directory, as docker does for -v only.
	CreateSource bool
	// NoCopy keeps an empty volume from being filled with the image's content at the destination.
	NoCopy bool
	// Options of a tmpfs are mount options of the guest's kernel: "size=67108864", "mode=1777", "noexec".
	Options []string
}

// String is the -v way to write a mount.
func (m Mount) String() string {
	s := m.Source + ":" + m.Destination
	if m.Source == "" {
		s = m.Destination
	}
	if m.ReadOnly {
		s += ":ro"
	}
	return s
}

// ErrDuplicateMount is wrapped by ResolveMounts when two mounts have one destination.
var ErrDuplicateMount = errors.New("duplicate mount point")

// ResolveMounts checks a container's mounts against each other and against the host, and returns them in the
// order in which they have to be mounted, outer before inner. Sources of binds are freed of symbolic links.
// It creates the missing sources of those that have CreateSource, and nothing when it returns an error that is
// in the mounts themselves.
func ResolveMounts(mounts []Mount) ([]Mount, error) {
	mounts = slices.Clone(mounts)
	seen := map[string]bool{}
	for _, m := range mounts {
		if seen[m.Destination] {
			return nil, fmt.Errorf("%w: %s", ErrDuplicateMount, m.Destination)
		}
		seen[m.Destination] = true
	}
	for i := range mounts {
		if mounts[i].Type == Bind {
			if err := mounts[i].resolveSource(); err != nil {
				return nil, err
			}
		}
	}
	slices.SortStableFunc(mounts, func(a, b Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	return mounts, nil
}

func (m *Mount) resolveSource() error {
	path, err := filepath.EvalSymlinks(m.Source)
	if errors.Is(err, os.ErrNotExist) && m.CreateSource {
		if err := os.MkdirAll(m.Source, 0o755); err != nil {
			return fmt.Errorf("create bind source %s: %w", m.Source, err)
		}
		path, err = filepath.EvalSymlinks(m.Source)
	}
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("bind source path does not exist: %s", m.Source)
	}
	if err != nil {
		return fmt.Errorf("bind source: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("bind source: %w", err)
	}
	switch {
	case info.IsDir():
	case info.Mode().IsRegular():
		m.File = true
	default:
		return fmt.Errorf("bind source %s is a %s: only directories and regular files of the host can be seen in a VM",
			m.Source, kind(info.Mode()))
	}
	m.Source = path
	return nil
}

func kind(mode os.FileMode) string {
	switch {
	case mode&os.ModeSocket != 0:
		return "socket"
	case mode&os.ModeNamedPipe != 0:
		return "named pipe"
	case mode&os.ModeDevice != 0:
		return "device"
	}
	return "special file"
}

// checkDestination cleans a path in the container.
func checkDestination(path string) (string, error) {
	switch {
	case path == "":
		return "", errors.New("no destination given")
	case strings.ContainsAny(path, "\x00\n"):
		return "", fmt.Errorf("destination %q: not a path", path)
	case !filepath.IsAbs(path):
		return "", fmt.Errorf("invalid mount path: %q: mount path must be absolute", path)
	}
	path = filepath.Clean(path)
	if path == "/" {
		return "", errors.New("invalid specification: destination can't be '/'")
	}
	return path, nil
}
