package shim

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"

	"manis/vmm"
)

func layerAt(path string) mount.Mount {
	return mount.Mount{Type: "erofs", Source: path, Options: []string{"ro", "loop"}}
}

func top(options ...string) mount.Mount {
	return mount.Mount{Type: "format/mkdir/overlay", Source: "overlay", Options: options}
}

// What containerd 2.4 hands over, as it was seen.
func TestStackOf(t *testing.T) {
	dirs := []string{"workdir=/s/9/work", "upperdir=/s/9/fs"}
	lowers := func(o string) []string { return append(slices.Clone(dirs), "lowerdir="+o) }
	disk := mount.Mount{Type: "ext4", Source: "/s/9/rwlayer.img", Options: []string{"rw", "loop"}}
	onDisk := []string{"X-containerd.mkdir.path={{ mount 0 }}/upper:0755", "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
		"workdir={{ mount 0 }}/work", "upperdir={{ mount 0 }}/upper"}
	for name, x := range map[string]struct {
		mounts []mount.Mount
		want   stack
	}{
		"layers": {[]mount.Mount{layerAt("/s/3"), layerAt("/s/2"), layerAt("/s/1"), top(lowers("{{ overlay 0 2 }}")...)},
			stack{layers: []string{"/s/1", "/s/2", "/s/3"}, upper: "/s/9/fs", work: "/s/9/work"}},
		"one layer": {[]mount.Mount{layerAt("/s/1"), top(lowers("{{ mount 0 }}")...)}, stack{layers: []string{"/s/1"}, upper: "/s/9/fs", work: "/s/9/work"}},
		"a disk": {[]mount.Mount{disk, layerAt("/s/2"), layerAt("/s/1"), top(append(slices.Clone(onDisk), "lowerdir={{ overlay 1 2 }}")...)},
			stack{layers: []string{"/s/1", "/s/2"}, disk: "/s/9/rwlayer.img"}},
	} {
		if got, err := stackOf(x.mounts); err != nil || !reflect.DeepEqual(*got, x.want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		if !isStack(x.mounts) {
			t.Errorf("%s: is left to others", name)
		}
	}
	with := func(m mount.Mount) []mount.Mount {
		return []mount.Mount{m, layerAt("/s/1"), top(lowers("{{ overlay 0 1 }}")...)}
	}
	for name, mounts := range map[string][]mount.Mount{
		"none":             nil,
		"only a layer":     {layerAt("/s/1")},
		"a view":           {layerAt("/s/1"), {Type: "format/bind", Source: "{{ mount 0 }}", Options: []string{"ro", "rbind"}}},
		"without writable": {layerAt("/s/2"), layerAt("/s/1"), top("lowerdir={{ overlay 0 1 }}")},
		"another order":    {layerAt("/s/2"), layerAt("/s/1"), top(lowers("{{ overlay 1 0 }}")...)},
		"fewer":            {layerAt("/s/3"), layerAt("/s/2"), layerAt("/s/1"), top(lowers("{{ overlay 0 1 }}")...)},
		"devices":          with(mount.Mount{Type: "erofs", Source: "/s/2", Options: []string{"ro", "loop", "device=/s/0"}}),
		"a check":          with(mount.Mount{Type: "erofs", Source: "/s/2", Options: []string{"ro", "loop", "X-containerd.dmverity=/s/2.dmverity"}}),
		"another kind":     with(mount.Mount{Type: "squashfs", Source: "/s/2", Options: []string{"ro", "loop"}}),
		"ids":              {layerAt("/s/2"), layerAt("/s/1"), top(append(lowers("{{ overlay 0 1 }}"), "uidmap=0:1000:1")...)},
		"journal":          {{Type: "ext4", Source: "/s/9", Options: []string{"rw", "loop", "data=journal"}}, layerAt("/s/1"), top(append(slices.Clone(onDisk), "lowerdir={{ mount 1 }}")...)},
	} {
		if got, err := stackOf(mounts); err == nil {
			t.Errorf("%s: is taken for %v", name, got)
		}
	}
	if isStack([]mount.Mount{{Type: "overlay", Options: dirs}}) || isStack([]mount.Mount{{Type: "bind", Source: "/s/1"}}) || isStack(nil) {
		t.Error("mounts of other snapshotters are taken for stacks")
	}
}

// imageFile is a file that begins as an EROFS does; its UUID begins with id.
func imageFile(t *testing.T, id byte, features uint32) string {
	t.Helper()
	b := make([]byte, 4096)
	binary.LittleEndian.PutUint32(b[1024:], 0xE0F5E1E2)
	b[1024+12], b[1024+48] = 12, id
	binary.LittleEndian.PutUint32(b[1024+80:], features)
	path := filepath.Join(t.TempDir(), "layer.erofs")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestStraight(t *testing.T) {
	snapshot := t.TempDir()
	for _, name := range []string{"fs", "work"} {
		if err := os.Mkdir(filepath.Join(snapshot, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	over := func(layers ...string) []mount.Mount {
		var list []mount.Mount
		for _, l := range layers {
			list = append(list, layerAt(l))
		}
		lower := fmt.Sprintf("lowerdir={{ overlay 0 %d }}", len(layers)-1)
		if len(layers) == 1 {
			lower = "lowerdir={{ mount 0 }}"
		}
		return append(list, top("workdir="+snapshot+"/work", "upperdir="+snapshot+"/fs", lower))
	}
	room := func(int) bool { return true }
	a, b := imageFile(t, 1, 0), imageFile(t, 2, 4)
	l, err := straight(over(b, a), room)
	if err != nil || !slices.Equal(l.Parts, []string{a, b}) || l.Layer != snapshot || l.Scratch != "" {
		t.Fatalf("%v, %v", l, err)
	}
	if err := os.WriteFile(filepath.Join(snapshot, "none"), bytes.Repeat([]byte("x"), 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, mounts := range map[string][]mount.Mount{
		"same UUID":      over(b, imageFile(t, 2, 0)),
		"compressed":     over(imageFile(t, 3, 1), a),
		"no EROFS image": over(snapshot+"/none", a),
		"layers":         over(slices.Repeat([]string{a}, vmm.MaxParts+1)...),
	} {
		if _, err := straight(mounts, room); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if _, err := straight(over(b, a), func(int) bool { return false }); err == nil {
		t.Error("a full machine gets one more disk")
	}
	if err := os.WriteFile(filepath.Join(snapshot, "fs", "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := straight(over(b, a), room); err == nil || !strings.Contains(err.Error(), "written to") {
		t.Errorf("a snapshot with content: %v", err)
	}
}

func TestResolve(t *testing.T) {
	at := t.TempDir()
	places := []string{filepath.Join(at, "0"), filepath.Join(at, "1")}
	if err := os.Mkdir(places[0], 0o700); err != nil {
		t.Fatal(err)
	}
	m, err := resolve(top("X-containerd.mkdir.path={{ mount 0 }}/upper:0755", "upperdir={{ mount 0 }}/upper", "lowerdir={{ overlay 0 1 }}"), places)
	want := []string{"upperdir=" + places[0] + "/upper", "lowerdir=" + places[0] + ":" + places[1]}
	if err != nil || m.Type != "overlay" || !slices.Equal(m.Options, want) {
		t.Errorf("%v, %v", m, err)
	}
	if fi, err := os.Stat(places[0] + "/upper"); err != nil || !fi.IsDir() {
		t.Errorf("the directory was not made: %v", err)
	}
	for _, o := range []string{
		"lowerdir={{ mount 2 }}", "lowerdir={{ overlay 1 0 }}", "lowerdir={{ mount }}", "lowerdir={{ mount -1 }}", "lowerdir={{ source 0 }}", "lowerdir={{", "x={{}}",
		"X-containerd.mkdir.path=/etc/x:0755", "X-containerd.mkdir.path={{ mount 0 }}/../x:0755", "X-containerd.mkdir.path={{ mount 0 }}/x:9",
		"X-containerd.dmverity=/x",
	} {
		if m, err := resolve(top(o), places); err == nil {
			t.Errorf("%s: becomes %v", o, m)
		}
	}
}
