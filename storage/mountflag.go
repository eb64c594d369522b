package storage

import (
	"encoding/csv"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// ParseMount reads a --mount value as docker does: comma-separated key=value fields, such as
// "type=bind,source=/src,target=/dst,readonly". The type is volume when not given.
func ParseMount(value string) (Mount, error) {
	m, err := parseMount(value)
	if err != nil {
		return Mount{}, fmt.Errorf("mount %q: %w", value, err)
	}
	return m, nil
}

func parseMount(value string) (Mount, error) {
	fields, err := csv.NewReader(strings.NewReader(value)).Read()
	if err != nil {
		return Mount{}, fmt.Errorf("not comma-separated fields: %w", err)
	}
	m := Mount{Type: Volume}
	only := map[string]MountType{} // fields that belong to one type
	for _, field := range fields {
		key, v, hasValue := strings.Cut(strings.TrimSpace(field), "=")
		key = strings.ToLower(key)
		flag := func() (bool, error) { return parseFlag(key, v, hasValue) }
		switch key {
		case "readonly", "ro", "volume-nocopy":
		default:
			if !hasValue || v == "" {
				return Mount{}, fmt.Errorf("invalid field %q: want key=value", field)
			}
		}
		var err error
		switch key {
		case "type":
			m.Type = MountType(strings.ToLower(v))
			if m.Type != Bind && m.Type != Volume && m.Type != Tmpfs {
				return Mount{}, fmt.Errorf("type %q: want bind, volume or tmpfs", v)
			}
		case "source", "src":
			m.Source = v
		case "target", "dst", "destination":
			m.Destination, err = checkDestination(v)
		case "readonly", "ro":
			m.ReadOnly, err = flag()
		case "volume-nocopy":
			only[key] = Volume
			m.NoCopy, err = flag()
		case "tmpfs-size":
			only[key] = Tmpfs
			err = m.addTmpfsOption("size=" + v)
		case "tmpfs-mode":
			only[key] = Tmpfs
			err = m.addTmpfsOption("mode=" + v)
		case "bind-propagation":
			only[key] = Bind
			if v != "private" && v != "rprivate" {
				err = fmt.Errorf("%s=%s: mounts do not propagate between the host and a VM", key, v)
			}
		case "consistency":
		case "volume-driver":
			only[key] = Volume
			if v != "local" {
				err = fmt.Errorf("volume driver %q: the only one is local", v)
			}
		default:
			err = fmt.Errorf("unexpected key %q in %q", key, field)
		}
		if err != nil {
			return Mount{}, err
		}
	}
	for key, t := range only {
		if m.Type != t {
			return Mount{}, fmt.Errorf("%s is for type=%s, not type=%s", key, t, m.Type)
		}
	}
	return m, m.checkMount()
}

// checkMount looks at the fields together.
func (m *Mount) checkMount() error {
	if m.Destination == "" {
		return errors.New("target is required")
	}
	switch m.Type {
	case Tmpfs:
		if m.Source != "" {
			return errors.New("a tmpfs has no source")
		}
	case Bind:
		if m.Source == "" {
			return errors.New("source is required for type=bind")
		}
		if strings.ContainsRune(m.Source, 0) {
			return fmt.Errorf("source %q: not a path", m.Source)
		}
		abs, err := filepath.Abs(m.Source)
		if err != nil {
			return err
		}
		m.Source = abs
	case Volume:
		if m.Source != "" {
			return checkVolumeName(m.Source)
		}
	}
	return nil
}

// parseFlag reads "readonly", "readonly=true" and the like.
func parseFlag(key, v string, hasValue bool) (bool, error) {
	if !hasValue {
		return true, nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, fmt.Errorf("%s=%s: want true or false", key, v)
	}
	return b, nil
}

// ParseTmpfs reads a --tmpfs value: PATH[:OPTIONS], with the options of mount(8) for tmpfs.
func ParseTmpfs(value string) (Mount, error) {
	path, options, _ := strings.Cut(value, ":")
	m := Mount{Type: Tmpfs}
	var err error
	if m.Destination, err = checkDestination(path); err != nil {
		return Mount{}, fmt.Errorf("tmpfs %q: %w", value, err)
	}
	if options == "" {
		return m, nil
	}
	for _, o := range strings.Split(options, ",") {
		if err := m.addTmpfsOption(o); err != nil {
			return Mount{}, fmt.Errorf("tmpfs %q: %w", value, err)
		}
	}
	return m, nil
}

// addTmpfsOption checks one option here, where it can be explained, and not only in the guest.
func (m *Mount) addTmpfsOption(option string) error {
	key, v, hasValue := strings.Cut(option, "=")
	switch key {
	case "ro", "rw":
		m.ReadOnly = key == "ro"
		return noValue(option, hasValue)
	case "exec", "noexec", "suid", "nosuid", "dev", "nodev", "sync", "async", "dirsync", "mand", "nomand",
		"atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime":
		if err := noValue(option, hasValue); err != nil {
			return err
		}
	case "size":
		if percent, ok := strings.CutSuffix(v, "%"); ok {
			if n, err := strconv.ParseUint(percent, 10, 8); err != nil || n == 0 || n > 100 {
				return fmt.Errorf("size=%s: want 1%% to 100%% of the VM's memory", v)
			}
			break
		}
		n, err := ParseSize(v)
		if err != nil {
			return err
		}
		option = fmt.Sprintf("size=%d", n)
	case "mode":
		n, err := strconv.ParseUint(v, 8, 32)
		if err != nil || n > 0o7777 {
			return fmt.Errorf("mode=%s: want an octal mode such as 1777", v)
		}
		option = fmt.Sprintf("mode=%04o", n)
	case "uid", "gid", "nr_inodes", "nr_blocks":
		if _, err := strconv.ParseUint(v, 10, 32); err != nil {
			return fmt.Errorf("%s: want a number", option)
		}
	default:
		return fmt.Errorf("unknown option %q", option)
	}
	m.Options = append(m.Options, option)
	return nil
}

func noValue(option string, hasValue bool) error {
	if hasValue {
		return fmt.Errorf("unknown option %q", option)
	}
	return nil
}
