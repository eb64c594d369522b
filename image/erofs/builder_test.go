package erofs

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	reader "github.com/erofs/go-erofs"

	"manis/image/fault"
)

// node is what a test expects of one file.
type node struct {
	mode     uint16
	uid, gid uint32
	mtime    int64
	nsec     uint32
	rdev     uint32
	nlink    int
	data     []byte // of regular files; target of symlinks
	xattrs   map[string]string
}

// work is an image under construction in a test.
type work struct {
	t    testing.TB
	b    *Builder
	path string
	want map[string]node // by path, without a leading slash; "." is the root
}

func newWork(t testing.TB, opts Options) *work {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.erofs")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if opts.TempDir == "" {
		opts.TempDir = t.TempDir()
	}
	b, err := NewBuilder(f, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return &work{t: t, b: b, path: path, want: map[string]node{".": {mode: TypeDir | 0o755, nlink: 2}}}
}

// dir finds the directory of a path.
func (w *work) dir(p string) Ino {
	w.t.Helper()
	at := Root
	if d := path.Dir(p); d != "." {
		for part := range strings.SplitSeq(d, "/") {
			e, ok := w.b.Lookup(at, []byte(part))
			if !ok {
				w.t.Fatalf("no directory %s", d)
			}
			at = e.Ino
		}
	}
	return at
}

func xattrsOf(m map[string]string) []Xattr {
	var list []Xattr
	for k, v := range m {
		list = append(list, Xattr{k, []byte(v)})
	}
	return list
}

// add creates what n says, at p.
func (w *work) add(p string, n node) Ino {
	w.t.Helper()
	attr := Attr{Mode: n.mode, UID: n.uid, GID: n.gid, Mtime: n.mtime, Nsec: n.nsec, Rdev: n.rdev}
	var ino Ino
	var err error
	switch n.mode & TypeMask {
	case TypeRegular:
		var f *File
		if f, err = w.b.Create(attr, xattrsOf(n.xattrs), int64(len(n.data))); err == nil {
			for data := n.data; err == nil && len(data) > 0; { // in odd pieces
				k := min(len(data), 1+len(data)*2/3)
				_, err = f.Write(data[:k])
				data = data[k:]
			}
			if err == nil {
				ino, err = f.Close()
			}
		}
	case TypeSymlink:
		ino, err = w.b.Symlink(attr, xattrsOf(n.xattrs), n.data)
	default:
		ino, err = w.b.Node(attr, xattrsOf(n.xattrs))
	}
	if err == nil {
		err = w.b.Link(w.dir(p), []byte(path.Base(p)), ino, 0)
	}
	if err != nil {
		w.t.Fatalf("add %s: %v", p, err)
	}
	n.nlink = 1
	if n.mode&TypeMask == TypeDir {
		n.nlink = 2
		up := w.want[path.Dir(p)]
		up.nlink++
		w.want[path.Dir(p)] = up
	}
	w.want[p] = n
	return ino
}

// finish completes the image and checks it every way this machine can.
func (w *work) finish() Summary {
	w.t.Helper()
	sum, err := w.b.Finish(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	if fi, err := os.Stat(w.path); err != nil || fi.Size() != sum.Size || sum.Size%BlockSize != 0 {
		w.t.Fatalf("size %d, file %v, %v", sum.Size, fi.Size(), err)
	}
	w.check()
	return sum
}

func (w *work) check() {
	w.t.Helper()
	f, err := os.Open(w.path)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	img, err := reader.Open(f)
	if err != nil {
		w.t.Fatal(err)
	}
	got := map[string]bool{}
	err = fs.WalkDir(img, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		got[p] = true
		n, ok := w.want[p]
		if !ok {
			return fmt.Errorf("%s should not be there", p)
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		return w.compare(img, p, n, fi.Sys().(*reader.Stat))
	})
	if err != nil {
		w.t.Error(err)
	}
	for _, p := range slices.Sorted(maps.Keys(w.want)) {
		if !got[p] {
			w.t.Errorf("%s is missing", p)
		}
	}
	fsck(w.t, w.path)
}

// goMode is how fs.FileMode spells a mode.
func goMode(m uint16) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	for bit, f := range map[uint16]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if m&bit != 0 {
			mode |= f
		}
	}
	switch m & TypeMask {
	case TypeDir:
		mode |= fs.ModeDir
	case TypeSymlink:
		mode |= fs.ModeSymlink
	case TypeChar:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	case TypeBlock:
		mode |= fs.ModeDevice
	case TypeFIFO:
		mode |= fs.ModeNamedPipe
	case TypeSocket:
		mode |= fs.ModeSocket
	}
	return mode
}

func (w *work) compare(img fs.FS, p string, n node, st *reader.Stat) error {
	got := fmt.Sprint(st.Mode, st.UID, st.GID, int64(st.Mtime), st.MtimeNs, st.Nlink)
	want := fmt.Sprint(goMode(n.mode), n.uid, n.gid, n.mtime, n.nsec, n.nlink)
	if got != want {
		return fmt.Errorf("%.80s: got %s, want %s", p, got, want)
	}
	if t := n.mode & TypeMask; (t == TypeChar || t == TypeBlock) && st.Rdev != n.rdev {
		return fmt.Errorf("%s: device %#x, want %#x", p, st.Rdev, n.rdev)
	}
	have := map[string]string{}
	for k, v := range st.Xattrs {
		have[strings.TrimSuffix(k, ".")] = v // go-erofs v0.3.1 puts a dot behind the names of ACLs
	}
	if len(n.xattrs)+len(have) > 0 && !maps.Equal(n.xattrs, have) {
		return fmt.Errorf("%s: xattrs %.200q, want %.200q", p, st.Xattrs, n.xattrs)
	}
	switch n.mode & TypeMask {
	case TypeRegular:
		if st.Size != int64(len(n.data)) {
			return fmt.Errorf("%s: size %d, want %d", p, st.Size, len(n.data))
		}
		data, err := fs.ReadFile(img, p)
		if err != nil || !bytes.Equal(data, n.data) {
			return fmt.Errorf("%s: content differs (%v)", p, err)
		}
	case TypeSymlink:
		target, err := fs.ReadLink(img, p)
		if err != nil || target != string(n.data) {
			return fmt.Errorf("%s: target %.80q, want %.80q (%v)", p, target, n.data, err)
		}
	}
	return nil
}

// fsck runs erofs-utils' checker, where it is installed.
func fsck(t testing.TB, path string) {
	t.Helper()
	bin, err := exec.LookPath("fsck.erofs")
	if err != nil {
		t.Log("fsck.erofs is not installed: checked with go-erofs only")
		return
	}
	if out, err := exec.Command(bin, path).CombinedOutput(); err != nil {
		t.Errorf("fsck.erofs: %v\n%s", err, out)
	}
}

func fill(n int, seed uint64) []byte {
	p := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range p {
		p[i] = byte(r.Uint32()) | 1 // never zero
	}
	return p
}

func regular(size int) node {
	return node{mode: TypeRegular | 0o644, mtime: 1700000000, data: fill(size, uint64(size))}
}

var directory = node{mode: TypeDir | 0o755, mtime: 1700000000}

// contents are trees that between them have everything an image can hold.
func contents() []content {
	dev, _ := Device(4095, 1<<20-1)
	acl := "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x04\x00\x04\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff"
	return []content{
		{"empty root", func(w *work) {}},
		{"file sizes around every boundary", func(w *work) {
			for _, n := range []int{0, 1, 31, 32, 33, 2047, 2048, 2049, 3968, 4000, 4031, 4032, 4033, 4095, 4096, 4097, 6143, 6144, 6145, 8191, 8192, 8193, 1 << 17, 1<<17 - 1, 1<<17 + 1, 1<<20 + 17} {
				w.add(fmt.Sprintf("f%d", n), regular(n))
			}
		}},
		{"owners, modes and times", func(w *work) {
			w.add("suid", node{mode: TypeRegular | 0o4755, uid: 0, gid: 65536, mtime: 1, nsec: 999999999})
			w.add("sgid", node{mode: TypeRegular | 0o2711, uid: 1<<32 - 2, gid: 70000, mtime: -1, nsec: 5})
			w.add("sticky", node{mode: TypeDir | 0o1777, mtime: 1 << 40})
			w.add("none", node{mode: TypeRegular})
			w.add("all", node{mode: TypeRegular | 0o7777, mtime: -1 << 40})
		}},
		{"nodes", func(w *work) {
			w.add("null", node{mode: TypeChar | 0o666, rdev: 1<<8 | 3})
			w.add("disk", node{mode: TypeBlock | 0o660, rdev: dev})
			w.add("zero", node{mode: TypeChar | 0o600})
			w.add("fifo", node{mode: TypeFIFO | 0o600})
			w.add("sock", node{mode: TypeSocket | 0o755})
		}},
		{"symlinks", func(w *work) {
			for _, n := range []int{1, 59, 60, 61, 1000, 2048, 2049, 4031, 4032, 4033, 4095} {
				w.add(fmt.Sprintf("l%d", n), node{mode: TypeSymlink | 0o777, data: bytes.Repeat([]byte("x"), n)})
			}
		}},
		{"extended attributes", func(w *work) {
			w.add("caps", node{mode: TypeRegular | 0o755, data: []byte("elf"), xattrs: map[string]string{
				"security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}})
			w.add("user", node{mode: TypeRegular | 0o644, data: fill(5000, 1), xattrs: map[string]string{
				"user.a": "", "user.b": "1", "user.long": strings.Repeat("v", 3000), "trusted.x": "\x00\x00",
				"user." + strings.Repeat("n", 250): "long name", "security.selinux": "system_u:object_r:bin_t:s0\x00"}})
			w.add("dir", node{mode: TypeDir | 0o755, xattrs: map[string]string{
				"system.posix_acl_access": acl, "system.posix_acl_default": acl}})
			w.add("huge", node{mode: TypeRegular | 0o644, data: fill(100, 2), xattrs: map[string]string{
				"user.1": strings.Repeat("a", 65535), "user.2": strings.Repeat("b", 65535), "user.3": strings.Repeat("c", 65535)}})
			w.add("link", node{mode: TypeSymlink | 0o777, data: []byte("t"), xattrs: map[string]string{"trusted.l": "1"}})
			for i := range 60 { // bodies that cross blocks at many offsets
				w.add(fmt.Sprintf("x%d", i), node{mode: TypeRegular | 0o644, data: fill(i*31, uint64(i)), xattrs: map[string]string{
					"user.i": strings.Repeat("i", i*67)}})
			}
		}},
		{"hard links", func(w *work) {
			w.add("d", directory)
			ino := w.add("a", regular(3000))
			for _, p := range []string{"b", "d/c"} {
				if err := w.b.Link(w.dir(p), []byte(path.Base(p)), ino, 0); err != nil {
					w.t.Fatal(err)
				}
			}
			for _, p := range []string{"a", "b", "d/c"} {
				n := w.want["a"]
				n.nlink = 3
				w.want[p] = n
			}
		}},
		{"names", func(w *work) {
			for _, n := range []string{"!", "-", "+x", "...", "..a", ".a", ".", "..", "/"} {
				if n == "." || n == ".." || n == "/" {
					continue
				}
				w.add(n, regular(1))
			}
			w.add(strings.Repeat("n", 255), regular(1))
			w.add("\x01\xff\n\t", regular(2))
			w.add("日本語", directory)
			w.add("日本語/ü", regular(3))
		}},
		{"directories of every size", func(w *work) {
			for _, n := range []int{1, 2, 10, 100, 127, 128, 129, 200, 500} {
				d := fmt.Sprintf("d%d", n)
				w.add(d, directory)
				for i := range n {
					w.add(fmt.Sprintf("%s/%032d", d, i*7919%n), node{mode: TypeRegular | 0o644})
				}
			}
		}},
		{"deep", func(w *work) {
			p := "d"
			for range 200 {
				w.add(p, directory)
				p += "/d"
			}
		}},
		{"holes", func(w *work) {
			for i, runs := range [][]int{{1, -1}, {-1, 1}, {-1, 1, -1}, {1, -1, 1}, {-4}, {2, -3, 1, -1, 1}} {
				var data []byte
				for j, r := range runs {
					if r > 0 {
						data = append(data, fill(r*minChunk, uint64(j))...)
					} else {
						data = append(data, make([]byte, -r*minChunk)...)
					}
				}
				for _, extra := range []int{0, 1, 100, 2000, 3000, 4096, 5000} {
					n := regular(0)
					n.data = append(slices.Clone(data), fill(extra, 9)...)
					w.add(fmt.Sprintf("h%d-%d", i, extra), n)
					n.data = append(slices.Clone(data), make([]byte, extra)...)
					w.add(fmt.Sprintf("z%d-%d", i, extra), n)
				}
			}
		}},
	}
}

type content struct {
	name  string
	build func(w *work)
}

func TestContents(t *testing.T) {
	for _, tt := range contents() {
		t.Run(tt.name, func(t *testing.T) {
			w := newWork(t, Options{})
			tt.build(w)
			w.finish()
		})
	}
}

func TestManyEntries(t *testing.T) {
	// A cache that the tables do not fit into.
	w := newWork(t, Options{CacheBytes: 6 << 20})
	w.add("big", directory)
	const n = 100_000
	for i := range n {
		w.add(fmt.Sprintf("big/file-%d", (i*7919)%n), node{mode: TypeRegular | 0o644, uid: uint32(i), mtime: int64(i)})
	}
	sum := w.finish()
	if sum.Inodes != n+2 {
		t.Errorf("%d inodes, want %d", sum.Inodes, n+2)
	}
}

func TestUnlinkAndReplace(t *testing.T) {
	w := newWork(t, Options{})
	w.add("keep", regular(10000))
	big := w.add("gone", regular(4<<20))
	holes := regular(0)
	holes.data = append(append(fill(4*minChunk, 1), make([]byte, 8*minChunk)...), fill(4*minChunk, 2)...)
	w.add("chunks", holes)
	w.add("tail", regular(5000))
	w.add("dir", directory)
	w.add("twice", regular(3<<20))
	entry := func(p string) Entry {
		e, ok := w.b.Lookup(Root, []byte(p))
		if !ok {
			t.Fatalf("no %s", p)
		}
		return e
	}
	if e := entry("gone"); e.Ino != big {
		t.Fatalf("found inode %d, want %d", e.Ino, big)
	}
	for _, p := range []string{"gone", "chunks", "tail", "dir"} {
		if err := w.b.Unlink(entry(p)); err != nil {
			t.Fatal(err)
		}
		if _, ok := w.b.Lookup(Root, []byte(p)); ok {
			t.Errorf("%s is still there", p)
		}
		delete(w.want, p)
	}
	root := w.want["."]
	root.nlink--
	w.want["."] = root

	// A name that is free again, and one that changes hands.
	w.add("gone", directory)
	f, err := w.b.Create(Attr{Mode: 0o600}, nil, 3)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("new")); err != nil {
		t.Fatal(err)
	}
	ino, err := f.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.b.Replace(entry("twice"), ino, 0); err != nil {
		t.Fatal(err)
	}
	w.want["twice"] = node{mode: TypeRegular | 0o600, nlink: 1, data: []byte("new")}
	sum := w.finish()
	if sum.Inodes != 4 {
		t.Errorf("%d inodes, want 4", sum.Inodes)
	}
	if used := blocksOf(t, w.path) * 512; used > 300_000 {
		t.Errorf("image takes %d bytes of disk: replaced data was not given back", used)
	}
}

func TestHugeSparseFile(t *testing.T) {
	for _, size := range []int64{5 << 30, 100 << 30, MaxFileSize} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			w := newWork(t, Options{})
			f, err := w.b.Create(Attr{Mode: 0o644}, nil, size)
			if err != nil {
				t.Fatal(err)
			}
			head, mid, tail := fill(5000, 1), fill(70000, 2), fill(777, 3)
			for _, err := range []error{
				second(f.Write(head)), f.Zero(size/2 - 5000), second(f.Write(mid)),
				f.Zero(size - size/2 - 70000 - 777), second(f.Write(tail)),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			ino, err := f.Close()
			if err != nil {
				t.Fatal(err)
			}
			if err := w.b.Link(Root, []byte("sparse"), ino, 0); err != nil {
				t.Fatal(err)
			}
			if _, err := w.b.Finish(t.Context()); err != nil {
				t.Fatal(err)
			}
			if used := blocksOf(t, w.path) * 512; used > 1<<20 {
				t.Errorf("image takes %d bytes of disk", used)
			}
			if fi, err := os.Stat(w.path); err != nil || (size <= 100<<30 && fi.Size() > 32<<20) {
				t.Errorf("image is %d bytes long (%v): holes are stored", fi.Size(), err)
			}
			fsck(t, w.path)
			file, err := os.Open(filepath.Join(mount(t, w.path), "sparse"))
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			if fi, _ := file.Stat(); fi.Size() != size {
				t.Errorf("size %d, want %d", fi.Size(), size)
			}
			for _, p := range []struct {
				off  int64
				want []byte
			}{{0, head}, {5000, make([]byte, 1000)}, {size / 2, mid}, {size/2 - 100, make([]byte, 100)}, {size - 777, tail}, {size - 1777, make([]byte, 1000)}} {
				got := make([]byte, len(p.want))
				if _, err := file.ReadAt(got, p.off); err != nil || !bytes.Equal(got, p.want) {
					t.Errorf("wrong data at %d (%v)", p.off, err)
				}
			}
		})
	}
}

func second[A any](_ A, err error) error { return err }

func TestReproducible(t *testing.T) {
	build := func(cache, piece int) string {
		w := newWork(t, Options{CacheBytes: cache, UUID: [16]byte{1, 2, 3}})
		for i := range 2000 {
			if i%100 == 0 {
				w.add(fmt.Sprintf("d%d", i/100), directory)
			}
			n := regular(i * 13 % 9000)
			if i%7 == 0 {
				n.xattrs = map[string]string{"user.a": "1", "user.b": "2", "trusted.c": "3", "security.d": "4"}
			}
			w.add(fmt.Sprintf("d%d/%d", i/100, i), n)
		}
		data := append(append(fill(minChunk+5, 1), make([]byte, 3*minChunk)...), fill(minChunk, 2)...)
		f, err := w.b.Create(Attr{Mode: 0o644}, nil, int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		for p := data; len(p) > 0; {
			k := min(piece, len(p))
			if isZero(p[:k]) {
				err = f.Zero(int64(k))
			} else {
				_, err = f.Write(p[:k])
			}
			if err != nil {
				t.Fatal(err)
			}
			p = p[k:]
		}
		ino, err := f.Close()
		if err != nil {
			t.Fatal(err)
		}
		if err := w.b.Link(Root, []byte("z"), ino, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := w.b.Finish(t.Context()); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(w.path)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(b)
		return hex.EncodeToString(sum[:])
	}
	first := build(0, 1<<20)
	for _, o := range [][2]int{{0, 1 << 20}, {1 << 20, 1000}, {1 << 18, 4096}, {0, 65537}} {
		if got := build(o[0], o[1]); got != first {
			t.Errorf("cache %d, pieces of %d: digest %s, want %s", o[0], o[1], got, first)
		}
	}
}

func TestRefusals(t *testing.T) {
	w := newWork(t, Options{})
	ino := w.add("f", regular(1))
	dir := w.add("d", directory)
	tests := []struct {
		name string
		do   func() error
		kind error
		text string
	}{
		{"empty name", func() error { return w.b.Link(Root, nil, ino, 0) }, fault.ErrInvalid, "file name of 0 bytes (1 to 255 fit): invalid"},
		{"long name", func() error { return w.b.Link(Root, make([]byte, 256), ino, 0) }, fault.ErrInvalid, "file name of 256 bytes (1 to 255 fit): invalid"},
		{"taken name", func() error { return w.b.Link(Root, []byte("f"), ino, 0) }, fault.ErrInvalid, `link "f": exists already: invalid`},
		{"second name for a directory", func() error { return w.b.Link(Root, []byte("e"), dir, 0) }, fault.ErrInvalid, "a directory cannot have two names: invalid"},
		{"negative size", func() error { return second(w.b.Create(Attr{}, nil, -1)) }, fault.ErrLimit, "file of -1 bytes (at most 17592186044416 fit): over the limit"},
		{"huge size", func() error { return second(w.b.Create(Attr{}, nil, MaxFileSize+1)) }, fault.ErrLimit, "file of 17592186044417 bytes (at most 17592186044416 fit): over the limit"},
		{"empty target", func() error { return second(w.b.Symlink(Attr{}, nil, nil)) }, fault.ErrInvalid, "symlink target of 0 bytes (1 to 4095 fit): invalid"},
		{"long target", func() error { return second(w.b.Symlink(Attr{}, nil, make([]byte, 4096))) }, fault.ErrInvalid, "symlink target of 4096 bytes (1 to 4095 fit): invalid"},
		{"bad time", func() error { return second(w.b.Node(Attr{Mode: TypeDir, Nsec: 1e9}, nil)) }, fault.ErrInvalid, "1000000000 nanoseconds in a time: invalid"},
		{"foreign xattr", func() error { return second(w.b.Node(Attr{Mode: TypeDir}, []Xattr{{Name: "com.apple.x"}})) }, fault.ErrUnsupported, `extended attribute "com.apple.x": not supported`},
		{"huge xattr", func() error {
			return second(w.b.Node(Attr{Mode: TypeDir}, []Xattr{{"user.x", make([]byte, 65536)}}))
		}, fault.ErrLimit, `extended attribute "user.x" of 65536 bytes (at most 65535 fit): over the limit`},
		{"xattr twice", func() error {
			return second(w.b.Node(Attr{Mode: TypeDir}, []Xattr{{Name: "user.x"}, {Name: "user.x"}}))
		}, fault.ErrInvalid, "extended attribute given twice: invalid"},
		{"device", func() error { return second(Device(4096, 0)) }, fault.ErrInvalid, "device number 4096:0: invalid"},
		{"negative device", func() error { return second(Device(0, -1)) }, fault.ErrInvalid, "device number 0:-1: invalid"},
		{"short file", func() error {
			f, err := w.b.Create(Attr{}, nil, 2)
			if err != nil {
				return err
			}
			f.Write([]byte("x"))
			return second(f.Close())
		}, fault.ErrTruncated, "file ends after 1 of 2 bytes: content is truncated"},
		{"long file", func() error {
			f, err := w.b.Create(Attr{}, nil, 2)
			if err != nil {
				return err
			}
			defer f.Abandon()
			return second(f.Write([]byte("xyz")))
		}, fault.ErrInvalid, "file is longer than its 2 bytes: invalid"},
		{"too deep", func() error {
			at := dir
			for {
				d, err := w.b.Node(Attr{Mode: TypeDir}, nil)
				if err != nil {
					return err
				}
				if err := w.b.Link(at, []byte("d"), d, 0); err != nil {
					return err
				}
				at = d
			}
		}, fault.ErrLimit, "directories nested more than 2048 deep: over the limit"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.do()
			if !errors.Is(err, tt.kind) || err.Error() != tt.text {
				t.Errorf("got %v, want %s", err, tt.text)
			}
		})
	}
}

// TestRandom builds random trees with a cache that always spills and compares
// them with a map.
func TestRandom(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 7))
			w := newWork(t, Options{CacheBytes: 1 << 18})
			dirs := []string{"."}
			for i := range 3000 {
				d := dirs[r.IntN(len(dirs))]
				p := path.Join(d, fmt.Sprintf("%x", r.Uint32()%5000))
				if _, ok := w.want[p]; ok {
					if n := w.want[p]; n.mode&TypeMask == TypeDir || n.nlink != 1 {
						continue
					}
					e, _ := w.b.Lookup(w.dir(p), []byte(path.Base(p)))
					if err := w.b.Unlink(e); err != nil {
						t.Fatal(err)
					}
					delete(w.want, p)
					continue
				}
				switch r.IntN(6) {
				case 0:
					w.add(p, node{mode: TypeDir | uint16(r.IntN(512)), uid: r.Uint32()})
					dirs = append(dirs, p)
				case 1:
					w.add(p, node{mode: TypeSymlink | 0o777, data: fill(1+r.IntN(300), uint64(i))})
				default:
					n := regular(r.IntN(20000))
					if r.IntN(3) == 0 {
						n.xattrs = map[string]string{"user.r": string(fill(r.IntN(5000), uint64(i)))}
					}
					w.add(p, n)
				}
			}
			w.finish()
		})
	}
}
