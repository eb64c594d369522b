package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"manis/image/fault"
)

// The words of a fuzzed layer: few, so that its entries meet one another.
var (
	fuzzNames = []string{
		"a", "b", "c", "d", ".", "..", "", ".wh.a", ".wh.b", ".wh.c", ".wh..wh..opq", ".wh..wh.plnk", ".wh.", ".wh..", ".wh...",
		"\xff\n\x1b[31m", strings.Repeat("n", 255), strings.Repeat("n", 256), "...", "proc", "self", "root", "etc", ".wh", "wh.a",
	}
	fuzzXattrs = []string{"user.x", "trusted.overlay.opaque", "security.capability", "user.overlay.redirect", "nonsense", "system.posix_acl_access"}
	fuzzKinds  = []byte{tar.TypeReg, tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo}
)

// fuzzLayers reads a script of five bytes per entry: what it is, two or three names of its
// path, and an argument. It returns the archives of the layers.
func fuzzLayers(script []byte) [][]byte {
	var layers [][]byte
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	next := func() {
		w.Close()
		layers = append(layers, bytes.Clone(b.Bytes()))
		b.Reset()
		w = tar.NewWriter(&b)
	}
	path := func(codes ...byte) string {
		var parts []string
		for _, c := range codes {
			if c != 0xff {
				parts = append(parts, fuzzNames[int(c)%len(fuzzNames)])
			}
		}
		return strings.Join(parts, "/")
	}
	for ; len(script) >= 5 && len(layers) < 8; script = script[5:] {
		op, arg := script[0], script[4]
		if op == 0xff {
			next()
			continue
		}
		h := &tar.Header{
			Typeflag: fuzzKinds[op%8], Name: path(script[1], script[2], script[3]),
			Mode: int64(arg) << 4 & 0o7777, Uid: int(arg) << 12, ModTime: time.Unix(int64(arg)<<20, 0),
		}
		if h.Name == "" {
			h.Name = "/"
		}
		if op&0x08 != 0 {
			h.Name = "/" + h.Name
		}
		var body []byte
		switch h.Typeflag {
		case tar.TypeReg:
			// Go's writer makes a directory of a name that ends like one's.
			h.Name = strings.TrimRight(h.Name, "/") + strings.Repeat("/.", len(h.Name)-len(strings.TrimRight(h.Name, "/")))
			body = bytes.Repeat([]byte{arg & 1}, int(arg)*97)
			h.Size = int64(len(body))
		case tar.TypeSymlink, tar.TypeLink:
			h.Linkname = path(arg, arg/3, arg/7)
			if op&0x10 != 0 {
				h.Linkname = path(arg)
			}
			if op&0x20 != 0 {
				h.Linkname = "/" + h.Linkname
			}
		case tar.TypeChar, tar.TypeBlock:
			h.Devmajor, h.Devminor = int64(arg), int64(arg)<<3
		}
		if op&0x40 != 0 {
			h.PAXRecords = map[string]string{"SCHILY.xattr." + fuzzXattrs[int(arg)%len(fuzzXattrs)]: strings.Repeat("v", int(arg))}
		}
		if w.WriteHeader(h) != nil {
			continue // nothing that Go would write
		}
		w.Write(body)
	}
	next()
	return layers
}

// FuzzMerge checks that whatever layers ask for, merging them ends, in an error of a known
// kind or in a file system that others' checkers and readers accept, that holds no whiteouts,
// and that comes out the same again; and that nothing else on the host changes.
func FuzzMerge(f *testing.F) {
	const (
		reg, dir, symlink, hard, device = 0, 2, 3, 4, 5
		a, b, up, whA, opq, none        = 0, 1, 5, 7, 10, 0xff
	)
	for _, seed := range [][]byte{
		{},
		{dir, a, none, none, 0x1e, reg, a, b, none, 5, hard | 0x10, b, none, none, 0},
		{dir, a, b, none, 0x1e, reg, a, b, a, 1, 0xff, 0, 0, 0, 0, reg, whA, none, none, 0, reg, a, b, b, 2},
		{reg, a, a, none, 9, 0xff, 0, 0, 0, 0, reg, a, opq, none, 0, reg, a, b, none, 1, 0xff, 0, 0, 0, 0, reg, opq, none, none, 0},
		{symlink | 0x10, a, none, none, up, reg, a, b, none, 1},
		{symlink | 0x30, a, none, none, 19, reg, a, 20, 21, 1, hard, b, none, none, 0},
		{symlink | 0x10, a, none, none, b, symlink | 0x10, b, none, none, a, reg, a, b, none, 1},
		{reg, up, up, a, 1},
		{reg | 0x40, a, none, none, 2, dir | 0x40, b, none, none, 3, device, b, a, none, 77},
		{dir, a, none, none, 1, 0xff, 0, 0, 0, 0, symlink | 0x10, a, none, none, b, 0xff, 0, 0, 0, 0, reg, a, a, none, 1},
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 5000 {
			return
		}
		var layers []Layer
		for _, archive := range fuzzLayers(script) {
			layers = append(layers, layerOf(archive))
		}
		home := t.TempDir()
		merge := func(name string, jobs int) (*Image, error) {
			file, err := os.Create(filepath.Join(home, name))
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			return Build(ctx, file, layers, Options{TempDir: home, Jobs: jobs, Limits: Limits{Entries: 2000, LayerBytes: 64 << 20, ImageBytes: 64 << 20}})
		}
		img, err := merge("image", 1)
		left, _ := filepath.Glob(filepath.Join(home, "*"))
		if len(left) != 1 {
			t.Fatalf("files left: %v", left)
		}
		if err != nil {
			if !errors.Is(err, fault.ErrInvalid) && !errors.Is(err, fault.ErrNotFound) && !errors.Is(err, fault.ErrLimit) && !errors.Is(err, fault.ErrUnsupported) {
				t.Fatalf("an error of no kind: %v", err)
			}
			for _, c := range err.Error() {
				if c < ' ' {
					t.Fatalf("the error would steer a terminal: %q", err)
				}
			}
			return
		}
		if img.Inodes > 2001 {
			t.Fatalf("%d inodes", img.Inodes)
		}
		check(t, img)
		for path := range list(t, img) {
			for part := range strings.SplitSeq(path, "/") {
				if part == "" || part == "." || part == ".." || strings.HasPrefix(part, ".wh.") || len(part) > maxName {
					t.Errorf("the image holds %q", path)
				}
			}
		}
		again, err := merge("again", 2)
		if err != nil {
			t.Fatal(err)
		}
		if again.RootHash != img.RootHash {
			t.Error("built again it is another image")
		}
	})
}

// What takes few bytes to ask for, and ever longer to do, ends at a limit.
func TestRefusesEndlessWork(t *testing.T) {
	const n = 5000
	again := func(first []ent, more func(i int) ent) (ents []ent) {
		ents = first
		for i := range n {
			ents = append(ents, more(i))
		}
		return ents
	}
	files := again(nil, func(i int) ent { return fmt.Sprintf("f %d x", i) })
	links := []ent{"d a", "l l0 -> ."}
	for i := range 30 {
		links = append(links, fmt.Sprintf("l l%d -> %sl%d", i+1, strings.Repeat("a/../", 800), i))
	}
	for name, ents := range map[string][]ent{
		"opaque again and again":           again(files, func(int) ent { return "f .wh..wh..opq" }),
		"whiteout of a large directory":    append(again([]ent{"d d"}, func(i int) ent { return fmt.Sprintf("f d/%d x", i) }), again(nil, func(int) ent { return "f .wh.d" })...),
		"links of long targets in a chain": again(links, func(i int) ent { return fmt.Sprintf("f l30/%d/x y", i) }),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := build(t, []Layer{layerOf(tarball(t, ents...))}, Options{Limits: Limits{Entries: 2*n + 100}})
			if !errors.Is(err, fault.ErrLimit) || !strings.Contains(fmt.Sprint(err), "more names to be looked at") {
				t.Errorf("got %v", err)
			}
		})
	}
}
