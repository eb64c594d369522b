package storage

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// ParseVolume reads a -v value as docker does: [SOURCE:]DESTINATION[:OPTIONS]. A source that is an absolute
// path or begins with "." is a path of the host, relative to the working directory; any other is the name of
// a volume. Without a source the volume is anonymous.
//
// Options, separated by commas, are ro, rw, nocopy (volumes only), and those that docker knows and that mean
// nothing here: z, Z, the consistency modes, private propagation. Other propagation cannot reach into a VM and
// is refused.
func ParseVolume(value string) (Mount, error) {
	m, err := parseVolume(value)
	if err != nil {
		return Mount{}, fmt.Errorf("volume %q: %w", value, err)
	}
	return m, nil
}

func parseVolume(value string) (Mount, error) {
	parts := strings.Split(value, ":")
	for _, p := range parts {
		if p == "" {
			return Mount{}, errors.New("empty section between colons: want [SOURCE:]DESTINATION[:OPTIONS]")
		}
	}
	var source, destination, options string
	switch len(parts) {
	case 1:
		destination = parts[0]
	case 2:
		source, destination = parts[0], parts[1]
		if !filepath.IsAbs(destination) && knownOptions(destination) {
			return Mount{}, fmt.Errorf("%q is a mode, not a destination: an anonymous volume cannot have one", destination)
		}
	case 3:
		source, destination, options = parts[0], parts[1], parts[2]
	default:
		return Mount{}, errors.New("too many colons: want [SOURCE:]DESTINATION[:OPTIONS]")
	}
	m := Mount{Type: Volume}
	var err error
	if m.Destination, err = checkDestination(destination); err != nil {
		return Mount{}, err
	}
	switch {
	case source == "":
	case isHostPath(source):
		m.Type, m.CreateSource = Bind, true
		if m.Source, err = filepath.Abs(source); err != nil {
			return Mount{}, err
		}
	default:
		m.Source = source
		if err := checkVolumeName(source); err != nil {
			return Mount{}, err
		}
	}
	if options != "" {
		err = m.setVolumeOptions(options)
	}
	return m, err
}

// isHostPath tells a path of the host from the name of a volume.
func isHostPath(source string) bool {
	return filepath.IsAbs(source) || source == "." || source == ".." ||
		strings.HasPrefix(source, "./") || strings.HasPrefix(source, "../")
}

func knownOptions(s string) bool {
	return (&Mount{Type: Volume}).setVolumeOptions(s) == nil
}

func (m *Mount) setVolumeOptions(options string) error {
	seen := map[string]string{} // what was said of each thing
	for _, o := range strings.Split(options, ",") {
		about := ""
		switch o {
		case "ro", "rw":
			about, m.ReadOnly = "access", o == "ro"
		case "z", "Z":
			about = "SELinux label"
		case "nocopy":
			if m.Type != Volume {
				return errors.New("nocopy is for volumes, not for paths of the host")
			}
			about, m.NoCopy = "copy", true
		case "consistent", "cached", "delegated", "default":
			about = "consistency"
		case "private", "rprivate":
			about = "propagation"
		case "shared", "rshared", "slave", "rslave":
			return fmt.Errorf("option %q: mounts do not propagate between the host and a VM", o)
		default:
			return fmt.Errorf("unknown option %q", o)
		}
		if before, twice := seen[about]; twice {
			return fmt.Errorf("options %q and %q contradict or repeat each other", before, o)
		}
		seen[about] = o
	}
	return nil
}
