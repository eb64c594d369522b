package shim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/mount"

	"manis/image/erofs"
	"manis/pod"
	"manis/vmm"
)

// mountsHere are the mounts, and what is done to their options before, that are left to this program: those of containerd's erofs
// snapshotter. The machine makes them of the layers' files, so that the host need not be able to.
func mountsHere() *types.MountCapabilities {
	return &types.MountCapabilities{Types: []string{"erofs"}, Transforms: []string{"format", "mkdir"}}
}

// Words of containerd's in types and options of mounts.
const (
	formatWord   = "format"                  // the rest refers to earlier mounts, in double braces
	mkdirWord    = "mkdir"                   // directories are made before, as options say
	mkdirOption  = "X-containerd.mkdir.path" // PATH:MODE
	verityOption = "X-containerd.dmverity"   // the file that describes a layer's dm-verity
)

// kindOf is the type of a mount without what is to be done before it.
func kindOf(m mount.Mount) string {
	for {
		word, rest, ok := strings.Cut(m.Type, "/")
		if !ok || word != formatWord && word != mkdirWord {
			return m.Type
		}
		m.Type = rest
	}
}

// isStack reports whether mounts are of a kind that containerd has left to this program.
func isStack(mounts []mount.Mount) bool {
	return slices.ContainsFunc(mounts, func(m mount.Mount) bool { return m.Type == "erofs" || kindOf(m) != m.Type })
}

// stack is a root filesystem of files with an EROFS for each layer, and one writable layer, as containerd's erofs snapshotter
// describes it.
type stack struct {
	layers      []string // lowest first
	upper, work string   // directories
	disk        string   // in their place: a file with an ext4 for the directories upper and work
}

// stackOf reads such a description. The error says what in it only the host's kernel does.
func stackOf(mounts []mount.Mount) (*stack, error) {
	last := len(mounts) - 1
	if last < 1 || kindOf(mounts[last]) != "overlay" || mounts[last].Target != "" {
		return nil, errors.New("the snapshot has no writable layer")
	}
	s, first := new(stack), 0
	if m := mounts[0]; m.Type == "ext4" {
		if !plainOptions(m.Options, "rw", "loop") {
			return nil, fmt.Errorf("its writable layer has the options %q", m.Options)
		}
		s.disk, first = m.Source, 1
	}
	for _, m := range mounts[first:last] {
		if m.Type != "erofs" || !plainOptions(m.Options, "ro", "loop") {
			return nil, fmt.Errorf("a layer is of the type %q with the options %q", m.Type, m.Options)
		}
		s.layers = append(s.layers, m.Source)
	}
	slices.Reverse(s.layers)
	lower := fmt.Sprintf("{{ overlay %d %d }}", first, last-1)
	if first == last-1 {
		lower = fmt.Sprintf("{{ mount %d }}", first)
	}
	for _, option := range mounts[last].Options {
		key, value, _ := strings.Cut(option, "=")
		switch {
		case key == "lowerdir" && value == lower, option == "index=off", option == "rw":
		case s.disk == "" && key == "upperdir" && filepath.IsAbs(value):
			s.upper = value
		case s.disk == "" && key == "workdir" && filepath.IsAbs(value):
			s.work = value
		case s.disk != "" && slices.Contains([]string{
			"upperdir={{ mount 0 }}/upper", "workdir={{ mount 0 }}/work",
			mkdirOption + "={{ mount 0 }}/upper:0755", mkdirOption + "={{ mount 0 }}/work:0755",
		}, option):
		default:
			return nil, fmt.Errorf("its overlay has the option %q", option)
		}
	}
	if len(s.layers) == 0 || s.disk == "" && (filepath.Dir(s.upper) != filepath.Dir(s.work) || filepath.Base(s.upper) != "fs" || filepath.Base(s.work) != "work") {
		return nil, errors.New("the snapshot has no writable layer")
	}
	return s, nil
}

func plainOptions(options []string, known ...string) bool {
	return !slices.ContainsFunc(options, func(o string) bool { return !slices.Contains(known, o) })
}

// straight finds what the machine is to have of such a root filesystem: the layers as they are. The error says why it has to
// be mounted on the host instead; attach asks whether the machine has room for some disks.
func straight(mounts []mount.Mount, attach func(disks int) bool) (*pod.Layers, error) {
	s, err := stackOf(mounts)
	if err != nil {
		return nil, err
	}
	disks := 1
	if s.disk != "" {
		disks++
	}
	switch {
	case len(s.layers) > vmm.MaxParts:
		return nil, fmt.Errorf("it has %d layers, and a machine takes %d", len(s.layers), vmm.MaxParts)
	case !attach(disks):
		return nil, errors.New("the machine has as many disks as it can have")
	case s.disk == "" && !empty(s.upper):
		return nil, errors.New("the snapshot has been written to before")
	}
	seen := make(map[[16]byte]bool)
	for _, layer := range s.layers {
		id, err := mountable(layer)
		if err == nil && seen[id] {
			// The guest's overlayfs tells layers apart by it.
			err = errors.New("another layer has the same UUID")
		}
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", layer, err)
		}
		seen[id] = true
	}
	l := &pod.Layers{Parts: s.layers, Scratch: s.disk}
	if s.disk == "" {
		l.Layer = filepath.Dir(s.upper)
	}
	return l, nil
}

// mountable is the UUID of the image in a file, or why a machine cannot mount it.
func mountable(path string) (id [16]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return id, err
	}
	defer f.Close()
	return erofs.Mountable(f)
}
