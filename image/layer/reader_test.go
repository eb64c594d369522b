package layer

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"manis/image/fault"
)

// raw makes a header block by hand, for what no writer would write.
type raw struct {
	name, link string
	kind       byte
	size       string // of the field as it stands; empty: octal of len(data)
	mode       string
	uid        string
	mtime      string
	magic      string // default ustar
	prefix     string
	extra      map[int]string // offset -> bytes
	badSum     bool
	data       string // padded
}

func octal(n, width int) string { return fmt.Sprintf("%0*o\x00", width-1, n) }

func (r raw) bytes() []byte {
	var b [blockSize]byte
	put := func(at int, s string) { copy(b[at:], s) }
	def := func(s, to string) string {
		if s == "" {
			return to
		}
		return s
	}
	put(0, r.name)
	put(100, def(r.mode, octal(0o644, 8)))
	put(108, def(r.uid, octal(0, 8)))
	put(116, octal(0, 8))
	put(124, def(r.size, octal(len(r.data), 12)))
	put(136, def(r.mtime, octal(0, 12)))
	b[156] = r.kind
	put(157, r.link)
	put(257, def(r.magic, "ustar\x0000"))
	put(345, r.prefix)
	for at, s := range r.extra {
		put(at, s)
	}
	sum := 0
	for i, c := range b {
		if i >= 148 && i < 156 {
			c = ' '
		}
		sum += int(c)
	}
	if r.badSum {
		sum++
	}
	put(148, fmt.Sprintf("%06o\x00 ", sum))
	out := append(b[:], r.data...)
	return append(out, make([]byte, -len(r.data)&(blockSize-1))...)
}

// archive strings headers together and ends them.
func archiveOf(parts ...raw) []byte {
	var b []byte
	for _, p := range parts {
		b = append(b, p.bytes()...)
	}
	return append(b, make([]byte, 2*blockSize)...)
}

// record makes a PAX record.
func record(key, value string) string {
	for n := len(key) + len(value) + 3; ; n++ {
		s := fmt.Sprintf("%d %s=%s\n", n, key, value)
		if len(s) == n {
			return s
		}
	}
}

// memory takes the content of one file.
type memory struct {
	bytes.Buffer
	limit int64
}

func (m *memory) Zero(n int64) error {
	if int64(m.Len())+n > m.limit {
		return errors.New("test file too large")
	}
	m.Write(make([]byte, n))
	return nil
}

// item is what was read of one entry.
type item struct {
	Entry
	data string
}

func readAll(archive []byte) ([]item, error) {
	var items []item
	r := NewReader(bytes.NewReader(archive))
	for {
		e, err := r.Next()
		if err == io.EOF {
			return items, nil
		}
		if err != nil {
			return items, err
		}
		i := item{Entry: *e}
		if e.Type == Regular {
			m := memory{limit: 16 << 20}
			if err := r.Copy(&m); err != nil {
				return items, err
			}
			i.data = m.String()
		}
		items = append(items, i)
	}
}

func TestReadsOddities(t *testing.T) {
	pax := func(records ...string) raw { return raw{kind: 'x', name: "pax", data: strings.Join(records, "")} }
	file := raw{kind: '0', name: "f", data: "hello"}
	tests := []struct {
		name    string
		archive []byte
		want    string // of the last entry
	}{
		{"plain", archiveOf(file), `f '0' 644 0:0 5 0.0 "hello"`},
		{"no end mark", file.bytes(), `f '0' 644 0:0 5 0.0 "hello"`},
		{"no padding either", file.bytes()[:517], `f '0' 644 0:0 5 0.0 "hello"`},
		{"old type of files", archiveOf(raw{name: "f", data: "x"}), `f '0' 644 0:0 1 0.0 "x"`},
		{"contiguous file", archiveOf(raw{kind: '7', name: "f", data: "x"}), `f '0' 644 0:0 1 0.0 "x"`},
		{"directory by its slash", archiveOf(raw{name: "d/", magic: strings.Repeat("\x00", 8)}), `d/ '5' 644 0:0 0 0.0 ""`},
		{"prefix", archiveOf(raw{kind: '0', name: "f", prefix: "a/b"}), `a/b/f '0' 644 0:0 0 0.0 ""`},
		{"GNU has no prefix", archiveOf(raw{kind: '0', name: "f", magic: "ustar  \x00", prefix: "12345"}), `f '0' 644 0:0 0 0.0 ""`},
		{"name of 100 bytes", archiveOf(raw{kind: '0', name: strings.Repeat("n", 100)}), strings.Repeat("n", 100) + ` '0' 644 0:0 0 0.0 ""`},
		{"GNU long name and link", archiveOf(raw{kind: 'L', name: "././@LongLink", data: strings.Repeat("n", 300) + "\x00"},
			raw{kind: 'K', name: "././@LongLink", data: strings.Repeat("l", 200) + "\x00"}, raw{kind: '2', name: "cut", link: "cut"}),
			strings.Repeat("n", 300) + ` '2' 644 0:0 0 0.0 -> ` + strings.Repeat("l", 200)},
		{"PAX overrides", archiveOf(pax(record("path", "long"), record("size", "3"), record("uid", "70000"), record("gid", "4294967294"), record("mtime", "12.5")),
			raw{kind: '0', name: "f", size: octal(0, 12), data: "abc"}), `long '0' 644 70000:4294967294 3 12.500000000 "abc"`},
		{"PAX time before 1970", archiveOf(pax(record("mtime", "-1.25")), file), `f '0' 644 0:0 5 -2.750000000 "hello"`},
		{"PAX record taken back", archiveOf(pax(record("uid", "5"), record("uid", "")), file), `f '0' 644 0:0 5 0.0 "hello"`},
		{"base 256", archiveOf(raw{kind: '0', name: "f", uid: "\x80\x00\x00\x00\x00\x01\x11\x70", data: "x", size: "\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01",
			mtime: "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe"}), `f '0' 644 70000:0 1 -2.0 "x"`},
		{"spaces around numbers", archiveOf(raw{kind: '0', name: "f", mode: "   755 \x00", data: "x", size: "          1 "}), `f '0' 755 0:0 1 0.0 "x"`},
		{"size on a link", archiveOf(raw{kind: '1', name: "l", link: "f", size: octal(100, 12)}), `l '1' 644 0:0 0 0.0 -> f`},
		{"size on a directory", archiveOf(raw{kind: '5', name: "d", size: octal(100, 12)}), `d '5' 644 0:0 0 0.0 ""`},
		{"global header", archiveOf(raw{kind: 'g', name: "pax_global_header", data: record("comment", "x")}, file), `f '0' 644 0:0 5 0.0 "hello"`},
		{"device", archiveOf(raw{kind: '3', name: "c", extra: map[int]string{329: octal(5, 8), 337: octal(70000, 8)}}), `c '3' 644 0:0 0 0.0 5,70000`},
		{"unknown type", archiveOf(raw{kind: 'V', name: "volume"}), `volume 'V' 644 0:0 0 0.0 ""`},
		{"attributes", archiveOf(pax(record("SCHILY.xattr.user.a", "1\x00=\n2"), record("SCHILY.xattr.user.b", ""), record("SCHILY.xattr.user.a", "3")), file),
			`f '0' 644 0:0 5 0.0 "hello" user.a="3" user.b=""`},
		{"sparse, version 0.0", archiveOf(pax(record("GNU.sparse.size", "20"), record("GNU.sparse.numblocks", "2"), record("GNU.sparse.offset", "2"), record("GNU.sparse.numbytes", "3"), record("GNU.sparse.offset", "10"), record("GNU.sparse.numbytes", "2")),
			raw{kind: '0', name: "f", data: "abcde"}), `f '0' 644 0:0 20 0.0 "\x00\x00abc\x00\x00\x00\x00\x00de\x00\x00\x00\x00\x00\x00\x00\x00"`},
		{"sparse, version 0.1", archiveOf(pax(record("GNU.sparse.size", "8"), record("GNU.sparse.numblocks", "1"), record("GNU.sparse.map", "2,3"), record("GNU.sparse.name", "true")),
			raw{kind: '0', name: "GNUSparseFile.0/f", data: "abc"}), `true '0' 644 0:0 8 0.0 "\x00\x00abc\x00\x00\x00"`},
		{"sparse, version 1.0", archiveOf(pax(record("GNU.sparse.major", "1"), record("GNU.sparse.minor", "0"), record("GNU.sparse.realsize", "8"), record("GNU.sparse.name", "true")),
			raw{kind: '0', name: "GNUSparseFile.0/f", data: "2\n2\n3\n8\n0\n" + strings.Repeat("\x00", 502) + "abc"}), `true '0' 644 0:0 8 0.0 "\x00\x00abc\x00\x00\x00"`},
		{"sparse, old", archiveOf(raw{kind: 'S', name: "f", magic: "ustar  \x00", data: "abc", extra: map[int]string{386: octal(2, 12) + octal(3, 12) + octal(8, 12) + octal(0, 12), 483: octal(8, 12)}}),
			`f '0' 644 0:0 8 0.0 "\x00\x00abc\x00\x00\x00"`},
		{"sparse, all hole", archiveOf(pax(record("GNU.sparse.size", "4"), record("GNU.sparse.map", "")), raw{kind: '0', name: "f"}), `f '0' 644 0:0 4 0.0 "\x00\x00\x00\x00"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			items, err := readAll(tt.archive)
			if err != nil || len(items) == 0 {
				t.Fatalf("%d entries, %v", len(items), err)
			}
			if got := items[len(items)-1].String(); got != tt.want {
				t.Errorf("\ngot  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func (i item) String() string {
	s := fmt.Sprintf("%s %q %o %d:%d %d %d.", i.Name, i.Type, i.Mode, i.UID, i.GID, i.Size, i.Mtime)
	if i.Nsec == 0 {
		s += "0 "
	} else {
		s += fmt.Sprintf("%09d ", i.Nsec)
	}
	switch i.Type {
	case Symlink, HardLink:
		s += "-> " + i.Link
	case Char, Block:
		s += fmt.Sprintf("%d,%d", i.Major, i.Minor)
	default:
		s += fmt.Sprintf("%q", i.data)
	}
	for _, x := range i.Xattrs {
		s += fmt.Sprintf(" %s=%q", x.Name, x.Value)
	}
	return s
}

func TestRefuses(t *testing.T) {
	file := raw{kind: '0', name: "f", data: "hello"}
	pax := func(data string) []byte { return archiveOf(raw{kind: 'x', name: "pax", data: data}, file) }
	sparse := func(stored string, records ...string) []byte {
		return archiveOf(raw{kind: 'x', name: "pax", data: strings.Join(records, "")}, raw{kind: '0', name: "f", data: stored})
	}
	version := []string{record("GNU.sparse.major", "1"), record("GNU.sparse.minor", "0"), record("GNU.sparse.realsize", "8")}
	tests := []struct {
		name    string
		archive []byte
		kind    error
		text    string
	}{
		{"garbage", bytes.Repeat([]byte("no tar "), 200), fault.ErrInvalid, "not a tar archive: invalid"},
		{"bad checksum later", archiveOf(file, raw{kind: '0', name: "g", badSum: true}), fault.ErrInvalid, "tar header with a wrong checksum: invalid"},
		{"cut in a header", file.bytes()[:300], fault.ErrTruncated, "tar archive ends within a header: content is truncated"},
		{"cut in data", file.bytes()[:514], fault.ErrTruncated, "tar archive ends within the data of an entry: content is truncated"},
		{"goes on behind one zero block", append(make([]byte, blockSize), file.bytes()...), fault.ErrInvalid, "tar archive goes on behind its end mark: invalid"},
		{"negative size", archiveOf(raw{kind: '0', name: "f", size: "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"}), fault.ErrInvalid, `entry "f": size -1: invalid`},
		{"size past 64 bits", archiveOf(raw{kind: '0', name: "f", size: "\x80\x7f\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"}), fault.ErrInvalid, `entry "f": size: number does not fit 64 bits: invalid`},
		{"size of the largest number", archiveOf(raw{kind: '0', name: "f", size: "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff"}), fault.ErrInvalid, `entry "f": size 9223372036854775807: invalid`},
		{"size in letters", archiveOf(raw{kind: '0', name: "f", size: "twelve bytes"}), fault.ErrInvalid, `entry "f": size: bad octal number "twelve bytes": invalid`},
		{"size with a sign", archiveOf(raw{kind: '0', name: "f", size: "-1\x00"}), fault.ErrInvalid, `entry "f": size: bad octal number "-1": invalid`},
		{"negative owner", archiveOf(raw{kind: '0', name: "f", uid: "\xff\xff\xff\xff\xff\xff\xff\xff"}), fault.ErrInvalid, `entry "f": owner -1:0: invalid`},
		{"owner of 64 bits", pax(record("uid", "4294967296")), fault.ErrInvalid, `entry "f": owner 4294967296:0: invalid`},
		{"PAX negative size", pax(record("size", "-5")), fault.ErrInvalid, `extended header: size is "-5": invalid`},
		{"PAX size overflow", pax(record("size", "9223372036854775808")), fault.ErrInvalid, `extended header: size is "9223372036854775808": invalid`},
		{"PAX without length", pax("hello\n"), fault.ErrInvalid, "extended header: record without a length: invalid"},
		{"PAX length too long", pax("99 path=x\n"), fault.ErrInvalid, "extended header: record of a wrong length: invalid"},
		{"PAX length too short", pax("3 path=x\n"), fault.ErrInvalid, "extended header: record of a wrong length: invalid"},
		{"PAX length of zero", pax("0 path=x\n"), fault.ErrInvalid, "extended header: record of a wrong length: invalid"},
		{"PAX huge length", pax("99999999999999999999 path=x\n"), fault.ErrInvalid, "extended header: record of a wrong length: invalid"},
		{"PAX without key", pax("5 =x\n"), fault.ErrInvalid, "extended header: record without a key: invalid"},
		{"PAX path with a zero byte", pax(record("path", "a\x00b")), fault.ErrInvalid, "extended header: zero byte in path: invalid"},
		{"PAX bad time", pax(record("mtime", "1.2.3")), fault.ErrInvalid, `bad time "1.2.3": invalid`},
		{"PAX bomb", archiveOf(raw{kind: 'x', name: "pax", size: octal(1<<30, 12)}), fault.ErrLimit, "extended header of 1073741824 bytes (at most 1048576 allowed): over the limit"},
		{"long name bomb", archiveOf(raw{kind: 'L', name: "l", size: octal(1<<30, 12)}), fault.ErrLimit, "extended header of 1073741824 bytes (at most 1048576 allowed): over the limit"},
		{"extended header of negative size", archiveOf(raw{kind: 'x', name: "x", size: "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"}), fault.ErrInvalid, "extended header of -1 bytes: invalid"},
		{"endless extended headers", bytes.Repeat(raw{kind: 'x', name: "pax", data: record("path", "x")}.bytes(), 100), fault.ErrInvalid, "tar archive with more than 16 extended headers in a row: invalid"},
		{"header behind a header missing", raw{kind: 'x', name: "pax", data: record("path", "x")}.bytes(), nil, "EOF"},
		{"too many attributes", pax(manyXattrs(1025)), fault.ErrLimit, "more than 1024 extended attributes on one entry: over the limit"},
		{"attribute without a name", pax(record("SCHILY.xattr.", "x")), fault.ErrInvalid, "extended header: extended attribute without a name: invalid"},
		{"sparse map overlaps", sparse("abcdef", record("GNU.sparse.size", "20"), record("GNU.sparse.map", "0,3,2,3")), fault.ErrInvalid, `entry "f": sparse file: its map is out of order or out of the file: invalid`},
		{"sparse map past the end", sparse("abc", record("GNU.sparse.size", "4"), record("GNU.sparse.map", "2,3")), fault.ErrInvalid, `entry "f": sparse file: its map is out of order or out of the file: invalid`},
		{"sparse map overflows", sparse("abc", record("GNU.sparse.size", "9223372036854775807"), record("GNU.sparse.map", "9223372036854775807,9223372036854775807")), fault.ErrInvalid, `entry "f": sparse file: its map is out of order or out of the file: invalid`},
		{"sparse map of half a fragment", sparse("abc", record("GNU.sparse.size", "4"), record("GNU.sparse.map", "0,3,3")), fault.ErrInvalid, `entry "f": sparse file: half a fragment in its map: invalid`},
		{"sparse map of more than is stored", sparse("abc", record("GNU.sparse.size", "100"), record("GNU.sparse.map", "0,50")), fault.ErrInvalid, `entry "f": sparse file: its map names 50 bytes, 3 are stored: invalid`},
		{"sparse map of less than is stored", sparse("abc", record("GNU.sparse.size", "100"), record("GNU.sparse.map", "0,1")), fault.ErrInvalid, `entry "f": sparse file: its map names 1 bytes, 3 are stored: invalid`},
		{"sparse map out of order", sparse("", record("GNU.sparse.numbytes", "1")), fault.ErrInvalid, "extended header: sparse map out of order: invalid"},
		{"sparse without a size", sparse("", record("GNU.sparse.map", "")), fault.ErrInvalid, `entry "f": sparse file: its size is not given: invalid`},
		{"sparse of the future", sparse("", record("GNU.sparse.major", "2"), record("GNU.sparse.minor", "0")), fault.ErrUnsupported, `entry "f": sparse file of version "2"."0": not supported`},
		{"sparse map in letters", sparse("", record("GNU.sparse.map", "a,b")), fault.ErrInvalid, `extended header: number "a" in the sparse map: invalid`},
		{"stored map without end", sparse(strings.Repeat("1", 512), version...), fault.ErrInvalid, `entry "f": sparse file: its map has no end: invalid`},
		{"stored map bomb", sparse("99999999999\n"+strings.Repeat("\x00", 500), version...), fault.ErrLimit, `entry "f": sparse map of 99999999999 fragments (at most 1048576 allowed): over the limit`},
		{"stored map of letters", sparse("x\n"+strings.Repeat("\x00", 510), version...), fault.ErrInvalid, `entry "f": sparse file: number "x" in its map: invalid`},
		{"stored map cut short", sparse("4\n0\n"+strings.Repeat("\x00", 508), version...), fault.ErrInvalid, `entry "f": sparse file: its map has no end: invalid`},
		{"sparse directory", archiveOf(raw{kind: 'x', name: "pax", data: record("GNU.sparse.map", "")}, raw{kind: '5', name: "d"}), fault.ErrInvalid, `entry "d": sparse, but not a file: invalid`},
		{"old sparse map cut", raw{kind: 'S', name: "f", extra: map[int]string{482: "\x01", 483: octal(8, 12)}}.bytes(), fault.ErrTruncated, `entry "f": tar archive ends within the data of an entry: content is truncated`},
		{"old sparse of negative size", archiveOf(raw{kind: 'S', name: "f", extra: map[int]string{483: "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"}}), fault.ErrInvalid, `entry "f": sparse file: size -1: invalid`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := readAll(tt.archive)
			if tt.kind == nil {
				if err != nil {
					t.Errorf("got %v", err)
				}
				return
			}
			if err == nil || !errors.Is(err, tt.kind) || err.Error() != tt.text {
				t.Errorf("\ngot  %v\nwant %s", err, tt.text)
			}
		})
	}
}

func manyXattrs(n int) string {
	var s strings.Builder
	for i := range n {
		s.WriteString(record(fmt.Sprintf("SCHILY.xattr.user.%d", i), "x"))
	}
	return s.String()
}

// TestReadsGNUTar reads what the tar command of this machine writes.
func TestReadsGNUTar(t *testing.T) {
	bin, err := exec.LookPath("tar")
	if err != nil {
		t.Skip("tar is not installed")
	}
	dir := t.TempDir()
	long := strings.Repeat("d", 120) + "/" + strings.Repeat("f", 140)
	if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(long)), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", long} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("content of "+name), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(strings.Repeat("t", 200), filepath.Join(dir, "s")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 40 { // more fragments than one header of any kind holds
		if _, err := sparse.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 4096), int64(i)*100_000/4096*4096); err != nil {
			t.Fatal(err)
		}
	}
	if err := sparse.Truncate(5 << 20); err != nil {
		t.Fatal(err)
	}
	sparse.Close()
	whole, err := os.ReadFile(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	want := sha256.Sum256(whole)
	for _, args := range [][]string{
		{"--format=gnu"}, {"--format=gnu", "--sparse"}, {"--format=pax"}, {"--format=pax", "--sparse", "--sparse-version=0.0"},
		{"--format=pax", "--sparse", "--sparse-version=0.1"}, {"--format=pax", "--sparse", "--sparse-version=1.0"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			cmd := exec.Command(bin, append(args, "-C", dir, "-cf", "-", ".")...)
			out, err := cmd.Output()
			if err != nil {
				t.Skipf("tar: %v", err)
			}
			if len(args) > 1 && len(out) > 1<<20 {
				t.Logf("archive of %d bytes: this file system keeps no holes", len(out))
			}
			items, err := readAll(out)
			if err != nil {
				t.Fatal(err)
			}
			seen := map[string]item{}
			for _, i := range items {
				seen[strings.TrimPrefix(i.Name, "./")] = i
			}
			if got := seen[long].data; got != "content of "+long {
				t.Errorf("long name: %q", got)
			}
			if got := seen["s"].Link; got != strings.Repeat("t", 200) {
				t.Errorf("symbolic link to %q", got)
			}
			if seen["a"].Type == seen["b"].Type {
				t.Errorf("hard link is missing: %v, %v", seen["a"], seen["b"])
			}
			if got := sha256.Sum256([]byte(seen["sparse"].data)); got != want || seen["sparse"].Size != 5<<20 {
				t.Errorf("sparse file of %d bytes differs", seen["sparse"].Size)
			}
		})
	}
}

// FuzzReader checks that no archive makes the reader crash or hang, and that
// what both it and Go's own reader accept means the same to both.
func FuzzReader(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "d/" + strings.Repeat("n", 150), Typeflag: tar.TypeReg, Size: 5, Mode: 0o644, ModTime: time.Unix(1, 5), Format: tar.FormatPAX,
			PAXRecords: map[string]string{"SCHILY.xattr.user.x": "1"}},
		{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "d"},
		{Name: "c", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3},
	} {
		w.WriteHeader(&h)
		if h.Size > 0 {
			io.WriteString(w, "hello")
		}
	}
	w.Close()
	f.Add(b.Bytes())
	f.Add(archiveOf(raw{kind: 'x', name: "pax", data: record("GNU.sparse.size", "8") + record("GNU.sparse.map", "2,3")}, raw{kind: '0', name: "f", data: "abc"}))
	f.Add(archiveOf(raw{kind: 'S', name: "f", magic: "ustar  \x00", data: "abc", extra: map[int]string{386: octal(2, 12) + octal(3, 12), 483: octal(8, 12)}}))
	f.Fuzz(func(t *testing.T, archive []byte) {
		if len(archive) > 1<<20 {
			return
		}
		fixSums(archive)
		ours, err := readAll(archive)
		if err != nil {
			return
		}
		theirs, err := goReads(archive)
		if err != nil {
			return
		}
		if len(ours) != len(theirs) {
			t.Fatalf("%d entries, Go reads %d", len(ours), len(theirs))
		}
		for i := range ours {
			if ours[i].Name != theirs[i].Name || ours[i].Type != theirs[i].Type || ours[i].data != theirs[i].data || ours[i].Mtime != theirs[i].Mtime {
				t.Fatalf("entry %d:\nours %v\nGo's %v", i, ours[i], theirs[i])
			}
		}
	})
}

// fixSums gives every header the checksum it needs, or hardly any mutation
// would come past it.
func fixSums(archive []byte) {
	for at := 0; at+blockSize <= len(archive); {
		b := archive[at : at+blockSize]
		at += blockSize
		if bytes.Equal(b, make([]byte, blockSize)) {
			continue
		}
		sum := 8 * int(' ')
		for i, c := range b {
			if i < 148 || i >= 156 {
				sum += int(c)
			}
		}
		copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
		if n, err := number(b[124:136]); err == nil && n > 0 && n < 1<<20 && (b[156] < '1' || b[156] > '6') {
			at += int(n+blockSize-1) / blockSize * blockSize
		}
	}
}

func goReads(archive []byte) ([]item, error) {
	var items []item
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return items, nil
		}
		if err != nil {
			return items, err
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		i := item{Entry: Entry{Name: h.Name, Type: h.Typeflag, Mtime: h.ModTime.Unix(), Size: h.Size}}
		if i.Type == tar.TypeCont || i.Type == tar.TypeGNUSparse {
			i.Type = Regular
		}
		if h.Size > 16<<20 {
			return items, errors.New("too large")
		}
		if i.Type == Regular {
			b, err := io.ReadAll(r)
			if err != nil {
				return items, err
			}
			i.data = string(b)
		}
		items = append(items, i)
	}
}
