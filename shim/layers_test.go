package shim

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

func TestOverlayOf(t *testing.T) {
	plain := []string{"workdir=/s/9/work", "upperdir=/s/9/fs", "lowerdir=/s/3/fs:/s/2/fs:/s/1/fs"}
	want := overlay{lower: []string{"/s/1/fs", "/s/2/fs", "/s/3/fs"}, upper: "/s/9/fs", work: "/s/9/work"}
	for _, options := range [][]string{plain, append([]string{"index=off"}, plain...)} {
		if got, ok := overlayOf([]mount.Mount{{Type: "overlay", Source: "overlay", Options: options}}); !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("%v: %v, %v", options, got, ok)
		}
	}
	with := func(option string) []mount.Mount {
		return []mount.Mount{{Type: "overlay", Options: append([]string{option}, plain...)}}
	}
	for name, mounts := range map[string][]mount.Mount{
		"none":         nil,
		"two":          append(with("index=off"), with("index=off")...),
		"a bind":       {{Type: "bind", Source: "/s/1/fs", Options: []string{"rbind", "rw"}}},
		"another root": {{Type: "overlay", Target: "/sub", Options: plain}},
		"read-only":    {{Type: "overlay", Options: plain[2:]}},
		"an index":     with("index=on"),
		"metacopy":     with("metacopy=on"),
		"volatile":     with("volatile"),
		"ids":          with("uidmap=0:1000:1"),
		"colon":        {{Type: "overlay", Options: []string{plain[0], plain[1], `lowerdir=/s/a\:b/fs`}}},
		"data":         {{Type: "overlay", Options: []string{plain[0], plain[1], "lowerdir=/s/1/fs::/s/0/fs"}}},
	} {
		if got, ok := overlayOf(mounts); ok {
			t.Errorf("%s: is taken for %v", name, got)
		}
	}
}

// Marks of the guest's overlayfs become those of the host's, and nothing outside of the layer is touched.
func TestTranslate(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("attributes of the space trusted need root")
	}
	upper, outside := t.TempDir(), t.TempDir()
	hidden := filepath.Join(upper, "a", "hidden")
	if err := os.MkdirAll(hidden, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{hidden, outside} {
		if err := unix.Setxattr(dir, guestOpaque, []byte("y"), 0); err != nil {
			t.Skipf("the folder for temporary files takes no extended attributes: %v", err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(upper, "way")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := translate(upper); err != nil {
			t.Fatal(err)
		}
		value := make([]byte, 8)
		if n, err := unix.Getxattr(hidden, hostOpaque, value); err != nil || string(value[:n]) != "y" {
			t.Errorf("the host's mark is %q: %v", value[:max(n, 0)], err)
		}
		if _, err := unix.Getxattr(hidden, guestOpaque, value); err != unix.ENODATA {
			t.Errorf("the guest's mark: %v", err)
		}
	}
	if _, err := unix.Getxattr(outside, hostOpaque, make([]byte, 8)); err != unix.ENODATA {
		t.Errorf("a directory outside was marked: %v", err)
	}
}

// A guest that has made a tree deeper than is looked at does not keep its container from being removed.
func TestTranslateDeep(t *testing.T) {
	layer := t.TempDir()
	if err := os.Mkdir(filepath.Join(layer, "fs"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := unix.Open(filepath.Join(layer, "fs"), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for range maxDepth + 2 {
		if err == nil {
			err = unix.Mkdirat(dir, "d", 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		var next int
		next, err = unix.Openat(dir, "d", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		unix.Close(dir)
		dir = next
	}
	unix.Close(dir)
	if err := translate(filepath.Join(layer, "fs")); err == nil {
		t.Error("the whole tree was looked at")
	}
	if err := (&container{id: "deep", layer: layer}).unmountRoot(); err != nil {
		t.Error(err)
	}
}
