package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"
)

// entry is what test/probe tells of a file.
type entry struct {
	Path         string `json:"path"`
	Mode         uint32 `json:"mode"`
	UID          uint32 `json:"uid"`
	GID          uint32 `json:"gid"`
	Links        uint64 `json:"links"`
	Inode        uint64 `json:"inode"`
	Major, Minor uint32
	Size         int64             `json:"size"`
	Blocks       int64             `json:"blocks"`
	MTime        int64             `json:"mtime"`
	Target       string            `json:"target"`
	Attrs        map[string][]byte `json:"attrs"`
}

// tree asks the probe in a running container for all files at and below paths.
func (w *world) tree(container string, paths ...string) map[string]entry {
	w.t.Helper()
	var list []entry
	out := w.ok(append([]string{"exec", "-u", "0", container, "probe", "tree"}, paths...)...)
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		w.t.Fatalf("%v: %s", err, clip(out))
	}
	files := make(map[string]entry)
	for _, e := range list {
		files[e.Path] = e
	}
	return files
}

// netBindService is the value of security.capability for cap_net_bind_service=ep.
func netBindService() []byte {
	b := binary.LittleEndian.AppendUint32(nil, 0x02000001) // revision 2, effective
	b = binary.LittleEndian.AppendUint32(b, 1<<10)         // permitted
	b = binary.LittleEndian.AppendUint32(b, 0)             // inheritable
	b = binary.LittleEndian.AppendUint32(b, 0)             // permitted, high half
	return binary.LittleEndian.AppendUint32(b, 0)          // inheritable
}

// Owners, modes, attributes, capabilities, hard links, nodes and sparse files of an image
// arrive in the container as they were, and what a layer removes is gone.
func TestImageFidelity(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	stamp := time.Unix(1234567890, 0)
	img := boxWith(t, nil,
		file{name: "f/", mode: 0o755},
		file{name: "f/plain", mode: 0o640, uid: 1000, gid: 2000, body: "plain", mtime: stamp},
		file{name: "f/large-ids", uid: 4000000000, gid: 3000000000, body: "x"},
		file{name: "f/setuid", mode: 0o4755, body: readProbe(t)},
		file{name: "f/setgid", mode: 0o2755, gid: 50, body: "#!/bin/sh\n"},
		file{name: "f/sticky/", mode: 0o1777},
		file{name: "f/setgid-dir/", mode: 0o2775, gid: 50},
		file{name: "f/hard-1", mode: 0o600, body: "linked"},
		file{name: "f/hard-2", kind: '1', link: "f/hard-1"},
		file{name: "f/sticky/hard-3", kind: '1', link: "f/hard-1"},
		file{name: "f/soft", kind: '2', link: "/etc/../etc/passwd"},
		file{name: "f/dangling", kind: '2', link: "no where"},
		file{name: "f/attrs", body: "x", pax: map[string]string{
			"SCHILY.xattr.user.colour":         "blue",
			"SCHILY.xattr.user.binary":         "a\x00b\xff",
			"SCHILY.xattr.security.capability": string(netBindService()),
		}},
		file{name: "f/attrs-dir/", pax: map[string]string{"SCHILY.xattr.user.on": "a directory"}},
		file{name: "f/pipe", kind: '6', mode: 0o600},
		file{name: "f/null", kind: '3', mode: 0o666, major: 1, minor: 3},
		file{name: "f/disk", kind: '4', mode: 0o660, gid: 6, major: 254, minor: 16},
		file{name: "f/empty"},
		file{name: "f/nämé with spaces\nand a line", body: "odd"},
		file{name: "f/" + strings.Repeat("long", 60), body: "long"},
		file{name: "f/gone", body: "removed by the next layer"},
		file{name: "f/gone-dir/inside", body: "hidden by the next layer"},
		file{name: "f/replaced/", mode: 0o755},
		file{name: "f/replaced/old", body: "old"},
	)
	second, err := layerOf(
		file{name: "f/.wh.gone"},
		file{name: "f/gone-dir/", mode: 0o711},
		file{name: "f/gone-dir/.wh..wh..opq"},
		file{name: "f/gone-dir/new", body: "new"},
		file{name: "f/replaced", body: "a file now"},
	)
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.AppendLayers(img, second, sparseLayer(t)); err != nil {
		t.Fatal(err)
	}
	w.loadImage(img, "files:1")
	w.up("--name", "c", "files:1", "sleep", "1000")
	files := w.tree("c", "/f")

	const reg, dir, lnk, fifo, chr, blk = unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK, unix.S_IFIFO, unix.S_IFCHR, unix.S_IFBLK
	for _, want := range []entry{
		{Path: "/f", Mode: dir | 0o755},
		{Path: "/f/plain", Mode: reg | 0o640, UID: 1000, GID: 2000, Size: 5, MTime: stamp.Unix()},
		{Path: "/f/large-ids", Mode: reg | 0o644, UID: 4000000000, GID: 3000000000, Size: 1},
		{Path: "/f/setuid", Mode: reg | 0o4755, Size: int64(len(readProbe(t)))},
		{Path: "/f/setgid", Mode: reg | 0o2755, GID: 50, Size: 10},
		{Path: "/f/sticky", Mode: dir | 0o1777},
		{Path: "/f/setgid-dir", Mode: dir | 0o2775, GID: 50},
		{Path: "/f/hard-1", Mode: reg | 0o600, Links: 3, Size: 6},
		{Path: "/f/hard-2", Mode: reg | 0o600, Links: 3, Size: 6},
		{Path: "/f/sticky/hard-3", Mode: reg | 0o600, Links: 3, Size: 6},
		{Path: "/f/soft", Mode: lnk | 0o777, Size: 18, Target: "/etc/../etc/passwd"},
		{Path: "/f/dangling", Mode: lnk | 0o777, Size: 8, Target: "no where"},
		{Path: "/f/attrs", Mode: reg | 0o644, Size: 1, Attrs: map[string][]byte{
			"user.colour": []byte("blue"), "user.binary": []byte("a\x00b\xff"), "security.capability": netBindService(),
		}},
		{Path: "/f/attrs-dir", Mode: dir | 0o755, Attrs: map[string][]byte{"user.on": []byte("a directory")}},
		{Path: "/f/pipe", Mode: fifo | 0o600},
		{Path: "/f/null", Mode: chr | 0o666, Major: 1, Minor: 3},
		{Path: "/f/disk", Mode: blk | 0o660, GID: 6, Major: 254, Minor: 16},
		{Path: "/f/empty", Mode: reg | 0o644},
		{Path: "/f/nämé with spaces\nand a line", Mode: reg | 0o644, Size: 3},
		{Path: "/f/" + strings.Repeat("long", 60), Mode: reg | 0o644, Size: 4},
		{Path: "/f/gone-dir", Mode: dir | 0o711},
		{Path: "/f/gone-dir/new", Mode: reg | 0o644, Size: 3},
		{Path: "/f/replaced", Mode: reg | 0o644, Size: 10},
		{Path: "/f/sparse", Mode: reg | 0o644, Size: sparseSize},
	} {
		t.Run(filepath.Base(want.Path), func(t *testing.T) {
			got, ok := files[want.Path]
			if !ok {
				t.Fatal("not there")
			}
			if got.Mode != want.Mode || got.UID != want.UID || got.GID != want.GID || got.Target != want.Target ||
				got.Major != want.Major || got.Minor != want.Minor ||
				want.Mode&unix.S_IFMT != dir && got.Size != want.Size ||
				want.Links != 0 && got.Links != want.Links || want.MTime != 0 && got.MTime != want.MTime {
				t.Errorf("is   %+v\nwant %+v", got, want)
			}
			for name, value := range want.Attrs {
				if !bytes.Equal(got.Attrs[name], value) {
					t.Errorf("attribute %s is %q, want %q", name, got.Attrs[name], value)
				}
			}
		})
	}
	if files["/f/hard-1"].Inode != files["/f/hard-2"].Inode || files["/f/hard-1"].Inode != files["/f/sticky/hard-3"].Inode {
		t.Error("names of one file lead to different ones")
	}
	for _, gone := range []string{"/f/gone", "/f/gone-dir/inside", "/f/replaced/old", "/f/.wh.gone", "/f/gone-dir/.wh..wh..opq"} {
		if _, ok := files[gone]; ok {
			t.Errorf("%s is there", gone)
		}
	}
	t.Run("setuid works", func(t *testing.T) {
		w := w.in(t)
		if got := w.ok("exec", "-u", "1000", "c", "/f/setuid", "ids"); got != "1000 0" {
			t.Errorf("a setuid program of the image runs as %s", got)
		}
		w.sh("c", "cp /bin/probe /tmp/new && chmod 4755 /tmp/new")
		if got := w.ok("exec", "-u", "1000", "c", "/tmp/new", "ids"); got != "1000 0" {
			t.Errorf("a setuid program that was made in the container runs as %s", got)
		}
	})
	t.Run("a file larger than 4 GiB has its content", func(t *testing.T) {
		got := w.in(t).sh("c", fmt.Sprintf("dd if=/f/sparse bs=1 skip=%d count=%d 2>/dev/null; echo; stat -c %%b /f/sparse", sparseAt, len(sparseText)))
		text, blocks, _ := strings.Cut(got, "\n")
		if text != sparseText {
			t.Errorf("behind 4 GiB stands %q, want %q", text, sparseText)
		}
		t.Logf("%s blocks in the guest", blocks)
	})
	t.Run("changes survive as they should", func(t *testing.T) {
		w := w.in(t)
		w.sh("c", "chown 7:8 /f/plain && chmod 604 /f/plain && echo more >>/f/hard-2 && ln /f/hard-2 /f/hard-4 && rm /f/empty && mkdir /f/empty && mv /f/gone-dir /f/moved")
		after := w.tree("c", "/f")
		if e := after["/f/plain"]; e.Mode != reg|0o604 || e.UID != 7 || e.GID != 8 || e.MTime != stamp.Unix() {
			t.Errorf("chown and chmod: %+v", e)
		}
		// As with docker, a write separates a name from the image's other names of the file.
		if a, b := after["/f/hard-2"], after["/f/hard-4"]; a.Size != 11 || b.Size != 11 || a.Inode != b.Inode {
			t.Errorf("a hard link to a changed file: %+v and %+v", a, b)
		}
		if e := after["/f/empty"]; e.Mode&unix.S_IFMT != dir {
			t.Errorf("a directory in the place of a file: %+v", e)
		}
		if _, ok := after["/f/moved/new"]; !ok {
			t.Error("a directory of the image cannot be renamed")
		}
	})
	// The sparse file must not be expanded on the host.
	if _, bytes := w.files("images"); bytes > 200<<20 {
		t.Errorf("the store takes %d MiB", bytes>>20)
	}
}

func readProbe(t testing.TB) string {
	t.Helper()
	path, err := probeBinary()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The sparse file: larger than 4 GiB, with a few words behind that.
const (
	sparseSize = 5 << 30
	sparseAt   = 4<<30 + 12345
	sparseText = "behind four gigabytes"
)

// sparseLayer holds f/sparse as GNU tar writes it.
func sparseLayer(t testing.TB) v1.Layer {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "f"), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "f", "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(sparseText), sparseAt); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(sparseSize); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "layer.tar")
	cmd := exec.Command("tar", "--format=posix", "--sparse", "--owner=0", "--group=0", "--mode=0644", "-C", dir, "-cf", archive, "f/sparse")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("no GNU tar: %v: %s", err, out)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return os.Open(archive) })
	if err != nil {
		t.Fatal(err)
	}
	return layer
}
