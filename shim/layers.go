package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"manis/host/background"
	"manis/image/lower"
	"manis/place"
	"manis/pod"
)

// overlay is a mount of overlayfs as a snapshotter describes it.
type overlay struct {
	lower       []string // lowest first
	upper, work string
}

// overlayOf reads the mount of a root filesystem. It is false for everything that the machine's kernel would
// not show exactly as the host's.
func overlayOf(mounts []mount.Mount) (o overlay, ok bool) {
	if len(mounts) != 1 || mounts[0].Type != "overlay" || mounts[0].Target != "" {
		return o, false
	}
	for _, option := range mounts[0].Options {
		key, value, _ := strings.Cut(option, "=")
		switch key {
		case "lowerdir":
			if strings.Contains(value, `\`) || strings.Contains(value, "::") {
				return o, false // escaped colons, layers of data only
			}
			o.lower = strings.Split(value, ":")
			slices.Reverse(o.lower)
		case "upperdir":
			o.upper = value
		case "workdir":
			o.work = value
		case "index":
			if value != "off" {
				return o, false
			}
		case "rw":
		default:
			return o, false
		}
	}
	return o, len(o.lower) > 0 && o.upper != "" && o.work != ""
}

// layers finds an image of what lies below a root filesystem. Without one, the root is mounted on the host, and an image
// is made for later.
func layers(store *lower.Store, mounts []mount.Mount) *pod.Layers {
	o, ok := overlayOf(mounts)
	// The writable layer is shown as one directory, which must hold no more than it, and is new: what the host's
	// overlayfs has noted in it is not understood by the machine's.
	if !ok || filepath.Dir(o.upper) != filepath.Dir(o.work) || filepath.Base(o.upper) != "fs" || filepath.Base(o.work) != "work" || !empty(o.upper) {
		return nil
	}
	stack, err := lower.Identify(o.lower)
	if err != nil {
		return nil // mounting it says it better
	}
	if image, ok := store.Find(stack); ok {
		return &pod.Layers{Image: image, Layer: filepath.Dir(o.upper)}
	}
	if store.Wants(stack) {
		imageLater(o.lower)
	}
	return nil
}

func empty(dir string) bool {
	f, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer f.Close()
	_, err = f.Readdirnames(1)
	return err == io.EOF
}

// imageLater has an image of directories made in the background.
func imageLater(dirs []string) {
	if b, err := json.Marshal(dirs); err == nil {
		background.Start(ImageAction, string(b))
	}
}

// ImageAction is the argument with which the program makes an image of directories that are named in a further one.
const ImageAction = "image-of-layers"

// imageTime bounds the making of an image, for which nobody waits.
const imageTime = time.Hour

// ImageMain is the body of the program with ImageAction.
func ImageMain(ctx context.Context, argument string) error {
	ctx, cancel := context.WithTimeout(ctx, imageTime)
	defer cancel()
	if err := background.Settle(); err != nil {
		return err
	}
	var dirs []string
	if err := json.Unmarshal([]byte(argument), &dirs); err != nil {
		return fmt.Errorf("directories of layers: %w", err)
	}
	stack, err := lower.Identify(dirs)
	if err != nil {
		return err
	}
	places, err := place.Find("", "")
	if err != nil {
		return err
	}
	return lowerStore(places).Build(ctx, stack)
}

func lowerStore(places *place.Places) *lower.Store { return lower.NewStore(places.Lower()) }

const (
	guestOpaque = "user.overlay.opaque"
	hostOpaque  = "trusted.overlay.opaque"
	// maxDepth and maxDirectories bound what is looked at of a writable layer, which the guest has filled.
	maxDepth       = 1024
	maxDirectories = 1 << 20
)

// translate makes a writable layer that a machine has written one of the host's overlayfs, as commits and comparisons mount it:
// the marks of directories that hide what is below them are in another space of names.
func translate(upper string) error {
	fd, err := unix.Open(upper, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("writable layer %s: %w", upper, err)
	}
	left := maxDirectories
	return translateBelow(os.NewFile(uintptr(fd), upper), 0, &left)
}

// translateBelow owns dir.
func translateBelow(dir *os.File, depth int, left *int) error {
	defer dir.Close()
	if *left--; depth > maxDepth || *left < 0 {
		return errors.New("writable layer: too many directories")
	}
	value := make([]byte, 2)
	if n, err := unix.Fgetxattr(int(dir.Fd()), guestOpaque, value); err == nil && string(value[:n]) == "y" {
		if err := unix.Fsetxattr(int(dir.Fd()), hostOpaque, value[:n], 0); err != nil {
			return fmt.Errorf("writable layer: mark %s: %w", dir.Name(), err)
		}
		unix.Fremovexattr(int(dir.Fd()), guestOpaque)
	}
	for {
		entries, err := dir.ReadDir(1024)
		for _, e := range entries {
			if !e.IsDir() {
				continue
			}
			fd, err := unix.Openat(int(dir.Fd()), e.Name(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err != nil {
				continue // it is something else by now
			}
			if err := translateBelow(os.NewFile(uintptr(fd), e.Name()), depth+1, left); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("writable layer: read %s: %w", dir.Name(), err)
		}
	}
}
