package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	dmverity "github.com/containerd/go-dmverity/pkg/verity"
	reader "github.com/erofs/go-erofs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"manis/image/fault"
)

// ent is one entry of a test layer, written short: "f name content",
// "d name", "l name -> target" (symbolic), "h name -> target" (hard), "c name",
// "p name" (FIFO).
type ent = string

// tarball makes the archive of entries.
func tarball(t testing.TB, ents ...ent) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range ents {
		kind, rest, _ := strings.Cut(e, " ")
		h := &tar.Header{Mode: 0o644, ModTime: time.Unix(1700000000, 0)}
		body := ""
		switch kind {
		case "f":
			h.Typeflag = tar.TypeReg
			h.Name, body, _ = strings.Cut(rest, " ")
			h.Size = int64(len(body))
		case "d":
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
			h.Name, body, _ = strings.Cut(rest, " ")
			if body != "" {
				fmt.Sscanf(body, "%o", &h.Mode)
				body = ""
			}
		case "l":
			h.Typeflag = tar.TypeSymlink
			h.Name, h.Linkname, _ = strings.Cut(rest, " -> ")
		case "h":
			h.Typeflag = tar.TypeLink
			h.Name, h.Linkname, _ = strings.Cut(rest, " -> ")
		case "c":
			h.Typeflag, h.Devmajor, h.Devminor, h.Name = tar.TypeChar, 1, 3, rest
		case "p":
			h.Typeflag, h.Name = tar.TypeFifo, rest
		default:
			t.Fatalf("entry %q", e)
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatalf("entry %q: %v", e, err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func layerOf(archive []byte) Layer { return stored(archive, archive) }

// stored is a layer whose archive is kept in another form.
func stored(form, archive []byte) Layer {
	sum := sha256.Sum256(archive)
	return Layer{
		Open:   func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(form)), nil },
		Size:   int64(len(form)),
		DiffID: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])},
	}
}

func build(t testing.TB, layers []Layer, opts Options) (*Image, error) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "image.erofs"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if opts.TempDir == "" {
		opts.TempDir = t.TempDir()
	}
	return Build(t.Context(), f, layers, opts)
}

// list reads an image back: path -> what it is, in the words of ent.
func list(t testing.TB, img *Image) map[string]string {
	t.Helper()
	f, err := os.Open(img.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	root, err := reader.Open(io.NewSectionReader(f, 0, img.DataSize))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	first := map[int64]string{}
	err = fs.WalkDir(root, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == "." {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*reader.Stat)
		switch m := fi.Mode(); {
		case m.IsDir():
			got[p] = "d"
			if m.Perm() != 0o755 {
				got[p] = fmt.Sprintf("d %o", m.Perm())
			}
		case m&fs.ModeSymlink != 0:
			target, err := fs.ReadLink(root, p)
			if err != nil {
				return err
			}
			got[p] = "l -> " + target
			if m.Perm() != 0o777 {
				got[p] = fmt.Sprintf("l %o -> %s", m.Perm(), target)
			}
		case m&fs.ModeCharDevice != 0:
			got[p] = "c"
		case m&fs.ModeNamedPipe != 0:
			got[p] = "p"
		default:
			data, err := fs.ReadFile(root, p)
			if err != nil {
				return err
			}
			got[p] = "f " + string(data)
		}
		if st.Nlink > 1 && !fi.IsDir() {
			if first[st.Ino] == "" {
				first[st.Ino] = p
			} else {
				got[p] = "= " + first[st.Ino]
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// check runs the checkers that others wrote over an image.
func check(t testing.TB, img *Image) {
	t.Helper()
	root, err := hex.DecodeString(img.RootHash)
	if err != nil {
		t.Fatal(err)
	}
	salt, err := hex.DecodeString(img.Salt)
	if err != nil {
		t.Fatal(err)
	}
	p := dmverity.Params{
		HashName: img.Algorithm, HashType: 1, DataBlockSize: uint32(img.BlockSize), HashBlockSize: uint32(img.BlockSize),
		DataBlocks: uint64(img.DataBlocks), Salt: salt, SaltSize: uint16(len(salt)),
		HashAreaOffset: uint64(img.HashOffset), NoSuperblock: true,
	}
	if err := dmverity.Verify(&p, img.Path, img.Path, root); err != nil {
		t.Errorf("go-dmverity: %v", err)
	}
	if bin, err := exec.LookPath("fsck.erofs"); err == nil {
		if out, err := exec.Command(bin, img.Path).CombinedOutput(); err != nil {
			t.Errorf("fsck.erofs: %v\n%s", err, out)
		}
	}
}

func TestMerge(t *testing.T) {
	tests := []struct {
		name   string
		layers [][]ent
		want   []string // "path what"; directories of mode 755 above others may be left out
	}{
		{"one layer", [][]ent{{"d a", "f a/b x", "l c -> a/b", "h d -> a/b", "c n", "p p"}},
			[]string{"a d", "a/b f x", "c l -> a/b", "d = a/b", "n c", "p p"}},
		{"no layer", nil, nil},
		{"empty layer", [][]ent{{}, {"f a x"}, {}}, []string{"a f x"}},
		{"upper file wins", [][]ent{{"f a 1", "f b 1"}, {"f a 2"}}, []string{"a f 2", "b f 1"}},
		{"last of a layer wins", [][]ent{{"f a 1", "f a 2", "d b", "f b 3", "f c 4", "d c"}}, []string{"a f 2", "b f 3", "c d"}},
		{"file replaces directory", [][]ent{{"d a", "d a/b", "f a/b/c x"}, {"f a y"}}, []string{"a f y"}},
		{"directory replaces file", [][]ent{{"f a x"}, {"d a", "f a/b y"}}, []string{"a/b f y"}},
		{"directory keeps content, takes mode", [][]ent{{"d a", "f a/b x"}, {"d a 700"}}, []string{"a d 700", "a/b f x"}},
		{"missing directories", [][]ent{{"f a/b/c x"}}, []string{"a d", "a/b d", "a/b/c f x"}},
		{"dot names", [][]ent{{"d ./", "f ./a x", "f .//b/./c y", "f b/../d z"}}, []string{"a f x", "b/c f y", "d f z"}},
		{"absolute names stay inside", [][]ent{{"d /a", "f /a/b x", "h /c -> /a/b"}}, []string{"a/b f x", "c = a/b"}},
		{"root's own attributes", [][]ent{{"d ./ 700", "f a x"}}, []string{"a f x"}},

		{"whiteout", [][]ent{{"d a", "f a/b x", "f a/c y"}, {"f a/.wh.b"}}, []string{"a/c f y"}},
		{"whiteout of a directory", [][]ent{{"d a", "d a/b", "f a/b/c x"}, {"f .wh.a"}}, nil},
		{"whiteout of nothing", [][]ent{{"f a x"}, {"f .wh.b", "f no/such/.wh.c"}}, []string{"a f x"}},
		{"whiteout spares its own layer, before", [][]ent{{"f a 1"}, {"f .wh.a", "f a 2"}}, []string{"a f 2"}},
		{"whiteout spares its own layer, behind", [][]ent{{"f a 1"}, {"f a 2", "f .wh.a"}}, []string{"a f 2"}},
		{"whiteout below a directory of its own layer", [][]ent{{"d a", "f a/old 1"}, {"d a", "f a/new 2", "f .wh.a"}}, []string{"a/new f 2"}},
		{"whiteout of a directory not listed again", [][]ent{{"d a", "f a/old 1"}, {"f a/new 2", "f .wh.a"}}, []string{"a/new f 2"}},
		{"whiteout twice", [][]ent{{"f a 1"}, {"f .wh.a", "f .wh.a"}, {"f .wh.a"}}, nil},
		{"whiteout then back", [][]ent{{"f a 1"}, {"f .wh.a"}, {"f a 3"}}, []string{"a f 3"}},
		{"whiteout of a hard link keeps the other", [][]ent{{"f a x", "h b -> a"}, {"f .wh.a"}}, []string{"b f x"}},
		{"whiteout of a symlink, not of its target", [][]ent{{"d a", "f a/f x", "l l -> a"}, {"f .wh.l"}}, []string{"a/f f x"}},
		{"whiteout through a symlink", [][]ent{{"d a", "f a/f x", "f a/g y", "l l -> a"}, {"f l/.wh.f"}}, []string{"a/g f y", "l l -> a"}},
		{"whiteout as a directory", [][]ent{{"f a x"}, {"d .wh.a"}}, nil},
		{"opaque", [][]ent{{"d a", "f a/b x", "d a/c", "f a/c/d y"}, {"d a", "f a/.wh..wh..opq", "f a/e z"}}, []string{"a/e f z"}},
		{"opaque behind its content", [][]ent{{"d a", "f a/b x"}, {"d a", "f a/e z", "f a/.wh..wh..opq"}}, []string{"a/e f z"}},
		{"opaque with content further down", [][]ent{{"d a", "d a/b", "f a/b/old x"}, {"f a/b/new y", "f a/.wh..wh..opq"}}, []string{"a/b/new f y"}},
		{"opaque root", [][]ent{{"d a", "f b x"}, {"f .wh..wh..opq", "f c y"}}, []string{"c f y"}},
		{"opaque of nothing", [][]ent{{"f a x"}, {"f b/.wh..wh..opq"}}, []string{"a f x"}},
		{"opaque in the first layer", [][]ent{{"d a", "f a/b x", "f a/.wh..wh..opq"}}, []string{"a/b f x"}},
		{"opaque through a symlink", [][]ent{{"d a", "f a/b x", "l l -> /a"}, {"f l/.wh..wh..opq"}}, []string{"a d", "l l -> /a"}},
		{"AUFS bookkeeping is no content", [][]ent{{"d .wh..wh.plnk", "f .wh..wh.plnk/1.2 x", "d .wh..wh.orph", "f .wh..wh.aufs", "f a y"}}, []string{"a f y"}},

		{"hard link into a lower layer", [][]ent{{"f a x"}, {"h b -> a"}}, []string{"a f x", "b = a"}},
		{"hard link, then its target replaced", [][]ent{{"f a x", "h b -> a"}, {"f a y"}}, []string{"a f y", "b f x"}},
		{"hard link to a symlink links the symlink", [][]ent{{"l s -> /etc/passwd", "h h -> s"}}, []string{"h l -> /etc/passwd", "s = h"}},
		{"hard link over itself", [][]ent{{"f a x", "h b -> a", "h b -> a", "h a -> b"}}, []string{"a f x", "b = a"}},
		{"hard link over a directory", [][]ent{{"f a x", "d b", "f b/c y", "h b -> a"}}, []string{"a f x", "b = a"}},
		{"hard link through a symlink", [][]ent{{"d d", "f d/a x", "l l -> d", "h b -> l/a"}}, []string{"b f x", "d/a = b", "l l -> d"}},

		{"through a symlink", [][]ent{{"d usr/lib", "l lib -> usr/lib"}, {"f lib/a x"}}, []string{"usr/lib/a f x", "lib l -> usr/lib"}},
		{"through an absolute symlink", [][]ent{{"d usr/lib", "l lib -> /usr/lib"}, {"f lib/a x"}}, []string{"usr/lib/a f x", "lib l -> /usr/lib"}},
		{"through a symlink out of the root", [][]ent{{"l up -> ../../../../..", "f up/a x"}}, []string{"a f x", "up l -> ../../../../.."}},
		{"through a symlink to a host path", [][]ent{{"l etc -> /proc/self/root/etc"}, {"f etc/a x"}}, []string{"etc l -> /proc/self/root/etc", "proc/self/root/etc/a f x"}},
		{"through a chain", [][]ent{{"l a -> b", "l b -> c", "l c -> d/../e", "d d", "f a/f x"}}, []string{"a l -> b", "b l -> c", "c l -> d/../e", "d d", "e/f f x"}},
		{"symlink replaced by a directory", [][]ent{{"d a", "l s -> a"}, {"d s", "f s/f x"}}, []string{"a d", "s/f f x"}},
		{"symlink replaced by a file, not written through", [][]ent{{"f a x", "l s -> a"}, {"f s y"}}, []string{"a f x", "s f y"}},
		{"symlink swapped under an entry", [][]ent{{"d a", "d b", "l s -> a", "f s/1 x", "l s -> b", "f s/2 y"}}, []string{"a/1 f x", "b/2 f y", "s l -> b"}},
		{"directory gone under an entry", [][]ent{{"d a", "f a/1 x"}, {"f .wh.a", "f a/2 y"}}, []string{"a/2 f y"}},
		{"strange names", [][]ent{{"f .wh a", "f wh.x b", "f a.wh.b c", "f ... d", "f ..x e"}}, []string{".wh f a", "wh.x f b", "a.wh.b f c", "... f d", "..x f e"}},
		{"device node is data", [][]ent{{"c dev/null"}}, []string{"dev/null c"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var layers []Layer
			for _, l := range tt.layers {
				layers = append(layers, layerOf(tarball(t, l...)))
			}
			img, err := build(t, layers, Options{})
			if err != nil {
				t.Fatal(err)
			}
			check(t, img)
			want := map[string]string{}
			for _, w := range tt.want {
				path, what, _ := strings.Cut(w, " ")
				want[path] = what
				for d := filepath.Dir(path); d != "."; d = filepath.Dir(d) {
					if want[d] == "" {
						want[d] = "d"
					}
				}
			}
			if got := list(t, img); !maps.Equal(got, want) {
				t.Errorf("\ngot  %v\nwant %v", got, want)
			}
			if n := uint64(len(inodes(want)) + 1); img.Inodes != n {
				t.Errorf("%d inodes, want %d", img.Inodes, n)
			}
		})
	}
}

// inodes are the entries that are no further names of others.
func inodes(m map[string]string) []string {
	return slices.DeleteFunc(slices.Collect(maps.Values(m)), func(s string) bool { return strings.HasPrefix(s, "= ") })
}

func TestRefusesHostileLayers(t *testing.T) {
	tight := Limits{}
	tests := []struct {
		name   string
		layers [][]ent
		limits Limits
		kind   error
		text   string // behind "layer N of M (sha256:...): "
	}{
		{"parent path", [][]ent{{"f ../a x"}}, tight, fault.ErrInvalid, `entry "../a": path leads out of the root: invalid`},
		{"parent path further in", [][]ent{{"f a/../../b x"}}, tight, fault.ErrInvalid, `entry "a/../../b": path leads out of the root: invalid`},
		{"absolute parent path", [][]ent{{"f /../a x"}}, tight, fault.ErrInvalid, `entry "/../a": path leads out of the root: invalid`},
		{"hard link out of the root", [][]ent{{"h a -> ../../etc/passwd"}}, tight, fault.ErrInvalid, `entry "a": hard link to "../../etc/passwd": path leads out of the root: invalid`},
		{"hard link to a host file", [][]ent{{"h a -> /etc/passwd"}}, tight, fault.ErrNotFound, `entry "a": hard link to "/etc/passwd": directory "etc": not found`},
		{"hard link through a symlink to a host file", [][]ent{{"l s -> /etc", "h a -> s/passwd"}}, tight, fault.ErrNotFound, `entry "a": hard link to "s/passwd": directory "etc": not found`},
		{"hard link to nothing", [][]ent{{"h a -> b"}}, tight, fault.ErrNotFound, `entry "a": hard link to "b": not found`},
		{"hard link to what was hidden", [][]ent{{"f b x"}, {"f .wh.b", "h a -> b"}}, tight, fault.ErrNotFound, `entry "a": hard link to "b": not found`},
		{"hard link to a directory", [][]ent{{"d d", "h a -> d"}}, tight, fault.ErrInvalid, `entry "a": hard link to "d": is a directory: invalid`},
		{"hard link to the root", [][]ent{{"h a -> /"}}, tight, fault.ErrInvalid, `entry "a": hard link to "/": is a directory: invalid`},
		{"hard link to nothing at all", [][]ent{{"h a -> "}}, tight, fault.ErrInvalid, `entry "a": hard link to "": is a directory: invalid`},
		{"symlink to nothing at all", [][]ent{{"l a -> "}}, tight, fault.ErrInvalid, `entry "a": symbolic link without a target: invalid`},
		{"symlink of great length", [][]ent{{"l a -> " + strings.Repeat("x", 4096)}}, tight, fault.ErrInvalid, `entry "a": symbolic link with a target of 4096 bytes (at most 4095 allowed): invalid`},
		{"symlink circle", [][]ent{{"l a -> b", "l b -> a", "f a/x y"}}, tight, fault.ErrInvalid, `entry "a/x": more than 40 symbolic links on the way: invalid`},
		{"symlink to itself", [][]ent{{"l a -> a/b", "f a/x y"}}, tight, fault.ErrInvalid, `entry "a/x": more than 40 symbolic links on the way: invalid`},
		{"below a file", [][]ent{{"f a x", "f a/b y"}}, tight, fault.ErrInvalid, `entry "a/b": "a" is not a directory: invalid`},
		{"below a device", [][]ent{{"c a", "f a/b y"}}, tight, fault.ErrInvalid, `entry "a/b": "a" is not a directory: invalid`},
		{"root as a file", [][]ent{{"f . x"}}, tight, fault.ErrInvalid, `entry ".": the root must be a directory: invalid`},
		{"root as a symlink", [][]ent{{"l / -> /etc"}}, tight, fault.ErrInvalid, `entry "/": the root must be a directory: invalid`},
		{"whiteout of nothing at all", [][]ent{{"f a/.wh. x"}}, tight, fault.ErrInvalid, `entry "a/.wh.": whiteout of "": invalid`},
		{"whiteout of the directory itself", [][]ent{{"f a/.wh.. x"}}, tight, fault.ErrInvalid, `entry "a/.wh..": whiteout of ".": invalid`},
		{"whiteout of the parent", [][]ent{{"f a/.wh... x"}}, tight, fault.ErrInvalid, `entry "a/.wh...": whiteout of "..": invalid`},
		{"whiteout as a directory behind a symlink", [][]ent{{"l a -> b/.wh.c", "f a/d x"}}, tight, fault.ErrInvalid, `entry "a/d": directory name with the reserved prefix ".wh.": invalid`},
		{"whiteout as a parent directory", [][]ent{{"f .wh.a/b x"}}, tight, fault.ErrInvalid, `entry ".wh.a/b": directory name with the reserved prefix ".wh.": invalid`},
		{"opaque as a parent directory", [][]ent{{"f .wh..wh..opq/b x"}}, tight, fault.ErrInvalid, `entry ".wh..wh..opq/b": directory name with the reserved prefix ".wh.": invalid`},
		{"whiteout below a file", [][]ent{{"f a x"}, {"f a/.wh.b"}}, tight, fault.ErrInvalid, `entry "a/.wh.b": "a" is not a directory: invalid`},
		{"opaque below a file", [][]ent{{"f a x"}, {"f a/.wh..wh..opq"}}, tight, fault.ErrInvalid, `entry "a/.wh..wh..opq": "a" is not a directory: invalid`},
		{"long name", [][]ent{{"f " + strings.Repeat("n", 256) + " x"}}, tight, fault.ErrInvalid, `entry "` + strings.Repeat("n", 200) + `"...: path component of 256 bytes (at most 255 allowed): invalid`},
		{"long path", [][]ent{{"f " + strings.Repeat("d/", 2048) + "f x"}}, tight, fault.ErrLimit, `entry "` + strings.Repeat("d/", 100) + `"...: path of 4097 bytes (at most 4096 allowed): over the limit`},
		{"long component by a symlink", [][]ent{{"l a -> " + strings.Repeat("n", 256) + "/x", "f a/b y"}}, tight, fault.ErrInvalid, `entry "a/b": path component of 256 bytes (at most 255 allowed): invalid`},
		{"deep by symlinks", [][]ent{deep()}, tight, fault.ErrLimit, `directories nested more than 2048 deep: over the limit`},
		{"many entries", [][]ent{{"f a x", "f b x", "f c x"}, {"f d x"}}, Limits{Entries: 3}, fault.ErrLimit, `entry "d": more entries than an image may have (limit 3): over the limit`},
		{"many missing directories", [][]ent{{"f a/b/c/d x"}}, Limits{Entries: 3}, fault.ErrLimit, `entry "a/b/c/d": more entries than an image may have (limit 3): over the limit`},
		{"many duplicates", [][]ent{{"f a 1", "f a 2", "f a 3"}}, Limits{Entries: 2}, fault.ErrLimit, `entry "a": more entries than an image may have (limit 2): over the limit`},
		{"large layer", [][]ent{{"f a " + strings.Repeat("x", 9000)}}, Limits{LayerBytes: 8192}, fault.ErrLimit, `entry "a": uncompressed layer is larger than a layer may be (limit 8192): over the limit`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var layers []Layer
			for _, l := range tt.layers {
				layers = append(layers, layerOf(tarball(t, l...)))
			}
			_, err := build(t, layers, Options{Limits: tt.limits})
			wantError(t, err, tt.kind, tt.text)
		})
	}
	t.Run("many layers", func(t *testing.T) {
		l := layerOf(tarball(t))
		_, err := build(t, []Layer{l, l, l}, Options{Limits: Limits{Layers: 2}})
		if !errors.Is(err, fault.ErrLimit) || err.Error() != "image of 3 layers (limit 2): over the limit" {
			t.Errorf("got %v", err)
		}
	})
}

// deep nests directories past any path: each symlink starts where the last ended.
func deep() []ent {
	part := strings.TrimSuffix(strings.Repeat("d/", 500), "/")
	ents := []ent{"d " + part, "l l0 -> " + part}
	for i := range 5 {
		ents = append(ents, fmt.Sprintf("d l%d/%s", i, part), fmt.Sprintf("l l%d -> l%d/%s", i+1, i, part))
	}
	return ents
}

// wantError compares an error of Build: its kind, and its text behind the
// words that name the layer.
func wantError(t testing.TB, err, kind error, text string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %s", text)
	}
	if !errors.Is(err, kind) {
		t.Errorf("error %v is not of kind %v", err, kind)
	}
	_, got, ok := strings.Cut(err.Error(), "): ")
	if !ok || !strings.HasPrefix(err.Error(), "layer ") {
		t.Errorf("error does not name the layer: %v", err)
	}
	if got != text && !(strings.HasPrefix(text, "directories nested") && strings.HasSuffix(got, text)) {
		t.Errorf("\ngot  %s\nwant %s", got, text)
	}
}

func gzipped(t testing.TB, p []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(p)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstded(t testing.TB, p []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(p, nil)
}

func TestCompressions(t *testing.T) {
	plain := tarball(t, "d a", "f a/b "+strings.Repeat("content ", 100_000), "f c x")
	half := len(plain) / 2 / 512 * 512
	skippable := []byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4}
	forms := map[string][]byte{
		"plain":             plain,
		"gzip":              gzipped(t, plain),
		"gzip members":      append(gzipped(t, plain[:half]), gzipped(t, plain[half:])...),
		"zstd":              zstded(t, plain),
		"zstd frames":       append(zstded(t, plain[:half]), zstded(t, plain[half:])...),
		"zstd, skip frames": append(skippable, zstded(t, plain)...),
	}
	var first []byte
	for _, name := range slices.Sorted(maps.Keys(forms)) {
		t.Run(name, func(t *testing.T) {
			img, err := build(t, []Layer{stored(forms[name], plain)}, Options{})
			if err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(img.Path)
			if err != nil {
				t.Fatal(err)
			}
			if first == nil {
				first = got
			}
			if !bytes.Equal(got, first) {
				t.Error("image differs by how its layer was compressed")
			}
		})
	}
}

func TestRefusesDamagedLayers(t *testing.T) {
	plain := tarball(t, "f a "+strings.Repeat("0123456789abcdef", 10_000), "f b y")
	zip, zst := gzipped(t, plain), zstded(t, plain)
	flip := func(p []byte, at int) []byte {
		q := bytes.Clone(p)
		q[at] ^= 0x40
		return q
	}
	other := layerOf(plain)
	other.DiffID.Hex = strings.Repeat("0", 64)
	failing := layerOf(plain)
	failing.Open = func() (io.ReadCloser, error) { return nil, fmt.Errorf("blob gone: %w", fault.ErrNotFound) }
	tests := []struct {
		name  string
		layer Layer
		kind  error
		text  string // its end
	}{
		{"truncated gzip", stored(zip[:len(zip)/2], plain), fault.ErrTruncated, "compressed data ends too early: content is truncated"},
		{"gzip without its trailer", stored(zip[:len(zip)-4], plain), fault.ErrTruncated, "compressed data ends too early: content is truncated"},
		{"truncated gzip header", stored(zip[:5], plain), fault.ErrTruncated, "compressed data ends too early: content is truncated"},
		{"damaged gzip checksum", stored(flip(zip, len(zip)-6), plain), fault.ErrInvalid, "gzip: invalid checksum: invalid"},
		{"garbage behind gzip", stored(append(bytes.Clone(zip), "garbage garbage"...), plain), fault.ErrInvalid, "gzip: invalid header: invalid"},
		{"truncated zstd", stored(zst[:len(zst)-3], plain), fault.ErrTruncated, "compressed data ends too early: content is truncated"},
		{"truncated archive", stored(plain[:3000], plain), fault.ErrTruncated, `entry "a": tar archive ends within the data of an entry: content is truncated`},
		{"other content", stored(flip(plain, 600), plain), fault.ErrDigest, "content does not match its digest"},
		{"wrong diff ID", other, fault.ErrDigest, fmt.Sprintf("uncompressed content has digest %s: content does not match its digest", layerOf(plain).DiffID)},
		{"more behind the archive's end", stored(append(bytes.Clone(plain), make([]byte, 1024)...), plain), fault.ErrDigest, "content does not match its digest"},
		{"xz", stored([]byte("\xfd7zXZ\x00rest"), plain), fault.ErrUnsupported, "xz compression: not supported"},
		{"bzip2", stored([]byte("BZh91AY&SY"), plain), fault.ErrUnsupported, "bzip2 compression: not supported"},
		{"no archive", stored([]byte(strings.Repeat("this is no tar archive. ", 100)), plain), fault.ErrInvalid, "not a tar archive: invalid"},
		{"huge zstd window", stored(hugeWindow(), plain), fault.ErrLimit, "zstd window larger than 32 MiB: over the limit"},
		{"blob missing", failing, fault.ErrNotFound, "blob gone: not found"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := build(t, []Layer{tt.layer}, Options{})
			if !errors.Is(err, tt.kind) || !strings.HasPrefix(err.Error(), "layer 1 of 1 (sha256:") || !strings.HasSuffix(err.Error(), tt.text) {
				t.Errorf("\ngot  %v\nwant ...%s", err, tt.text)
			}
		})
	}
}

// hugeWindow is a zstd frame that asks for 1 GiB of memory.
func hugeWindow() []byte {
	return []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 20 << 3, 1, 0, 0, 0, 0, 0}
}

func TestZipBomb(t *testing.T) {
	// 1.2 GiB of one letter: no holes to save it, and some thousand times smaller
	// when compressed. Compressed as a stream, so that the test stays small.
	const size = 1200 << 20
	var form bytes.Buffer
	zw, err := zstd.NewWriter(&form, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	w := tar.NewWriter(io.MultiWriter(zw, sum))
	if err := w.WriteHeader(&tar.Header{Name: "bomb", Typeflag: tar.TypeReg, Mode: 0o644, Size: size, Format: tar.FormatGNU}); err != nil {
		t.Fatal(err)
	}
	chunk := bytes.Repeat([]byte("a"), 1<<20)
	for range size >> 20 {
		if _, err := w.Write(chunk); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), zw.Close()); err != nil {
		t.Fatal(err)
	}
	l := stored(form.Bytes(), nil)
	l.DiffID.Hex = hex.EncodeToString(sum.Sum(nil))
	t.Run("by its ratio", func(t *testing.T) {
		_, err := build(t, []Layer{l}, Options{})
		wantError(t, err, fault.ErrLimit, fmt.Sprintf(`entry "bomb": layer of %d bytes expands more than 256 times (limit 256): over the limit`, form.Len()))
	})
	t.Run("by the image's size", func(t *testing.T) {
		_, err := build(t, []Layer{l}, Options{Limits: Limits{ImageBytes: 100 << 20}})
		wantError(t, err, fault.ErrLimit, `entry "bomb": more file data than an image may have (limit 104857600): over the limit`)
	})
	t.Run("by the disk", func(t *testing.T) {
		_, err := build(t, []Layer{l}, Options{Limits: Limits{FreeReserve: 1 << 60}})
		wantError(t, err, fault.ErrNoSpace, `entry "bomb": less than 1099511627776 MiB would stay free: no space left on the disk`)
	})
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "i"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l := layerOf(tarball(t, "f a "+strings.Repeat("x", 4<<20)))
	_, err = Build(ctx, f, []Layer{l, l, l}, Options{TempDir: t.TempDir(), Progress: func(done, total int64) {
		if done > total/2 {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestXattrs(t *testing.T) {
	pack := func(records map[string]string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o755, PAXRecords: records, Format: tar.FormatPAX}); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	img, err := build(t, []Layer{layerOf(pack(map[string]string{
		"SCHILY.xattr.security.capability":       "\x01\x00\x00\x02",
		"SCHILY.xattr.user.mime":                 "text/plain",
		"SCHILY.xattr.trusted.overlay.opaque":    "y",
		"SCHILY.xattr.user.overlay.redirect":     "/",
		"SCHILY.xattr.com.apple.quarantine":      "q",
		"SCHILY.xattr.system.nfs4_acl":           "n",
		"SCHILY.xattr.trusted.other":             "t",
		"SCHILY.xattr.system.posix_acl_access":   "\x02\x00\x00\x00",
		"SCHILY.xattr.system.posix_acl_accessed": "x",
	}))}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(img.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	root, err := reader.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := fs.Stat(root, "f")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for k, v := range fi.Sys().(*reader.Stat).Xattrs {
		got[strings.TrimSuffix(k, ".")] = v // as go-erofs v0.3.1 spells ACLs
	}
	want := map[string]string{"security.capability": "\x01\x00\x00\x02", "user.mime": "text/plain", "trusted.other": "t", "system.posix_acl_access": "\x02\x00\x00\x00"}
	if !maps.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}

	_, err = build(t, []Layer{layerOf(pack(map[string]string{"SCHILY.xattr.user.big": strings.Repeat("x", 2000)}))}, Options{Limits: Limits{XattrBytes: 1000}})
	wantError(t, err, fault.ErrLimit, `entry "f": extended attributes of more bytes than an entry may have (limit 1000): over the limit`)
	_, err = build(t, []Layer{layerOf(pack(map[string]string{"SCHILY.xattr.user.big": strings.Repeat("x", 65536)}))}, Options{})
	wantError(t, err, fault.ErrLimit, `entry "f": extended attribute "user.big" of 65536 bytes (at most 65535 fit): over the limit`)
}

func TestReproducible(t *testing.T) {
	var layers []Layer
	for i := range 3 {
		var ents []ent
		for j := range 300 {
			ents = append(ents, fmt.Sprintf("f d%d/f%d %s", j%17, j, strings.Repeat(fmt.Sprint(i, j), j*(i+1))))
		}
		layers = append(layers, layerOf(tarball(t, append(ents, "f d3/.wh.f3", "h x -> d1/f1", "l s -> d1/f1")...)))
	}
	var want *Image
	for jobs := range 5 {
		img, err := build(t, layers, Options{Jobs: jobs})
		if err != nil {
			t.Fatal(err)
		}
		if want == nil {
			want = img
			check(t, img)
		}
		a, err := os.ReadFile(img.Path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(want.Path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) || img.RootHash != want.RootHash {
			t.Fatalf("image differs with %d jobs", jobs)
		}
	}
	// These bytes are a promise: when they change, so must Format.
	if got, want := want.RootHash, goldenRoot; got != want {
		t.Errorf("root hash %s, want %s: the same layers gave other bytes under Format %d", got, want, Format)
	}
}

const goldenRoot = "2a1bea370abb9b7f4c750bd82d0845e5e7a3e3725d160888665535ad0f73cd34"
