package declare

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"manis/container"
	"manis/storage"
)

func (f *Flags) setMounts(c *container.Config, img *Image, _ []string, h Host) error {
	var own []storage.Mount
	for _, kind := range []struct {
		values []string
		parse  func(string) (storage.Mount, error)
	}{{f.volumes, storage.ParseVolume}, {f.mounts, storage.ParseMount}, {f.tmpfs, storage.ParseTmpfs}} {
		for _, s := range kind.values {
			m, err := kind.parse(s)
			if err != nil {
				return err
			}
			own = append(own, m)
		}
	}
	if h.ResolveMounts != nil {
		var err error
		if own, err = h.ResolveMounts(own); err != nil {
			return err
		}
	}
	var mounts []container.Mount
	for _, m := range own {
		if at(mounts, m.Destination) {
			return fmt.Errorf("duplicate mount point: %s", m.Destination)
		}
		mounts = append(mounts, container.Mount{
			Type: string(m.Type), Source: m.Source, Destination: m.Destination,
			ReadOnly: m.ReadOnly, File: m.File, NoCopy: m.NoCopy, Options: m.Options,
		})
	}
	inherited, err := f.inherited(h)
	if err != nil {
		return err
	}
	for _, m := range inherited {
		if !at(mounts, m.Destination) {
			mounts = append(mounts, m)
		}
	}
	for dest := range img.Config.Volumes {
		dest = path.Clean("/" + dest)
		if dest == "/" {
			return errors.New("the image declares its root directory as a volume")
		}
		if !at(mounts, dest) {
			mounts = append(mounts, container.Mount{Type: "volume", Destination: dest})
		}
	}
	for i := range mounts {
		if m := &mounts[i]; m.Type == "volume" && m.Source == "" {
			m.Source, m.Anonymous = container.NewID(), true
		}
	}
	// The image's come in no order; mounts above others come first.
	slices.SortStableFunc(mounts, func(a, b container.Mount) int {
		return cmp.Or(
			cmp.Compare(strings.Count(a.Destination, "/"), strings.Count(b.Destination, "/")),
			cmp.Compare(a.Destination, b.Destination))
	})
	c.Mounts = mounts
	return nil
}

func at(mounts []container.Mount, dest string) bool {
	return slices.ContainsFunc(mounts, func(m container.Mount) bool { return m.Destination == dest })
}

// inherited are the mounts of --volumes-from NAME[:ro|rw].
func (f *Flags) inherited(h Host) ([]container.Mount, error) {
	var all []container.Mount
	for _, s := range f.volumesFrom {
		name, mode, _ := strings.Cut(s, ":")
		if name == "" || mode != "" && mode != "ro" && mode != "rw" {
			return nil, fmt.Errorf("invalid --volumes-from %q: expected container[:ro|rw]", s)
		}
		if h.VolumesFrom == nil {
			continue
		}
		mounts, err := h.VolumesFrom(name)
		if err != nil {
			return nil, err
		}
		for _, m := range mounts {
			if m.Type == "tmpfs" {
				continue
			}
			// The volume goes with the container it was made for.
			m.Anonymous = false
			m.ReadOnly = m.ReadOnly || mode == "ro"
			if !at(all, m.Destination) {
				all = append(all, m)
			}
		}
	}
	return all, nil
}
