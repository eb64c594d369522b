package shim

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// assemble mounts on the host what containerd's mount manager would have: each mount but the last in a directory of its own, to which
// later ones refer. These directories, below dir, are gone when it returns: an overlay keeps what it is made of.
func assemble(mounts []mount.Mount, target, dir string) (err error) {
	at, err := os.MkdirTemp(dir, "layers-")
	if err != nil {
		return fmt.Errorf("make directories for layers: %w", err)
	}
	var places []string
	defer func() {
		for _, p := range slices.Backward(places) {
			unix.Unmount(p, unix.MNT_DETACH)
			os.Remove(p)
		}
		os.Remove(at)
	}()
	for i, m := range mounts {
		if m, err = resolve(m, places); err != nil {
			return err
		}
		to := target
		if i < len(mounts)-1 {
			to = filepath.Join(at, strconv.Itoa(i))
			if err := os.Mkdir(to, 0o700); err != nil {
				return fmt.Errorf("make directories for layers: %w", err)
			}
			places = append(places, to)
		}
		if err := m.Mount(to); err != nil {
			return fmt.Errorf("mount %s %s: %w", m.Type, m.Source, err)
		}
	}
	return nil
}

// resolve does what has to be done before a mount, and gives the plain one.
func resolve(m mount.Mount, places []string) (mount.Mount, error) {
	formats, makes := false, false
	for {
		word, rest, ok := strings.Cut(m.Type, "/")
		if !ok {
			break
		}
		switch word {
		case formatWord:
			formats = true
		case mkdirWord:
			makes = true
		default:
			return m, fmt.Errorf("a mount of the type %q is not known: %w", m.Type, errdefs.ErrNotImplemented)
		}
		m.Type = rest
	}
	var err error
	if formats {
		if m.Source, err = fill(m.Source, places); err != nil {
			return m, err
		}
	}
	var options []string
	for _, o := range m.Options {
		if formats {
			if o, err = fill(o, places); err != nil {
				return m, err
			}
		}
		key, value, _ := strings.Cut(o, "=")
		switch {
		case key == verityOption || m.Type == "erofs" && key == "device":
			return m, fmt.Errorf("layer %s: %s is not offered with this runtime: let the differ make layers without it, and pull the image again: %w", m.Source, key, errdefs.ErrNotImplemented)
		case makes && key == mkdirOption:
			if err := makeIn(value, places); err != nil {
				return m, err
			}
		default:
			options = append(options, o)
		}
	}
	m.Options = options
	return m, nil
}

// fill replaces references to earlier mounts by their places: {{ mount N }}, {{ overlay FIRST LAST }}.
func fill(s string, places []string) (string, error) {
	var b strings.Builder
	for {
		before, rest, ok := strings.Cut(s, "{{")
		b.WriteString(before)
		if !ok {
			return b.String(), nil
		}
		reference, after, ok := strings.Cut(rest, "}}")
		words := strings.Fields(reference)
		var numbers []int
		for _, w := range words[min(1, len(words)):] {
			if n, err := strconv.Atoi(w); err == nil && n >= 0 && n < len(places) {
				numbers = append(numbers, n)
			}
		}
		switch {
		case ok && len(words) == 2 && words[0] == "mount" && len(numbers) == 1:
			b.WriteString(places[numbers[0]])
		case ok && len(words) == 3 && words[0] == "overlay" && len(numbers) == 2 && numbers[0] <= numbers[1]:
			b.WriteString(strings.Join(places[numbers[0]:numbers[1]+1], ":"))
		default:
			return "", fmt.Errorf("a mount refers to %.80q, which is not known: %w", reference, errdefs.ErrNotImplemented)
		}
		s = after
	}
}

// makeIn makes a directory, PATH:MODE, in one of the places.
func makeIn(what string, places []string) error {
	path, mode, _ := strings.Cut(what, ":")
	bits, err := strconv.ParseUint(mode, 8, 12)
	if err != nil || !slices.ContainsFunc(places, func(p string) bool { return filepath.Dir(path) == p }) {
		return fmt.Errorf("a mount needs the directory %.200q, which is not one in a layer: %w", what, errdefs.ErrNotImplemented)
	}
	if err := os.Mkdir(path, os.FileMode(bits).Perm()); err != nil && !os.IsExist(err) {
		return fmt.Errorf("make a directory in a layer: %w", err)
	}
	return nil
}
