package archive

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tree makes a directory with one of everything.
func tree(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	check(t, os.MkdirAll(filepath.Join(dir, "sub", "empty"), 0o755))
	check(t, os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o640))
	check(t, os.WriteFile(filepath.Join(dir, "sub", "script"), []byte("#!"), 0o755))
	check(t, os.Symlink("../file", filepath.Join(dir, "sub", "link")))
	check(t, os.Link(filepath.Join(dir, "file"), filepath.Join(dir, "hard")))
	check(t, os.Chmod(filepath.Join(dir, "sub"), 0o500))
	old := time.Unix(1_500_000_000, 0)
	check(t, os.Chtimes(filepath.Join(dir, "file"), old, old))
	check(t, os.Chtimes(filepath.Join(dir, "sub"), old, old))
	t.Cleanup(func() { os.Chmod(filepath.Join(dir, "sub"), 0o700) })
	return dir
}

func list(t *testing.T, dir string) string {
	t.Helper()
	var names []string
	check(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, p)
		names = append(names, rel)
		return err
	}))
	return strings.Join(names, " ")
}

func TestRoundTrip(t *testing.T) {
	src := tree(t)
	for _, tt := range []struct{ name, base, below string }{
		{"under another name", "copy", "copy"},
		{"content only", ".", "."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			packed, err := Pack(&b, src, "tree", false)
			check(t, err)
			dst := t.TempDir()
			n, err := Unpack(&b, dst, "tree", tt.base, Options{})
			check(t, err)
			if n != packed || n != int64(len("content")+len("#!")) {
				t.Errorf("packed %d bytes, unpacked %d", packed, n)
			}
			got := filepath.Join(dst, tt.below)
			t.Cleanup(func() { os.Chmod(filepath.Join(got, "sub"), 0o700) })
			if list(t, got) != list(t, src) {
				t.Errorf("got %s, want %s", list(t, got), list(t, src))
			}
			for _, name := range []string{"file", "sub", "sub/script"} {
				a, err := os.Lstat(filepath.Join(src, name))
				check(t, err)
				b, err := os.Lstat(filepath.Join(got, name))
				check(t, err)
				if a.Mode() != b.Mode() || !a.ModTime().Equal(b.ModTime()) {
					t.Errorf("%s: got %v %v, want %v %v", name, b.Mode(), b.ModTime(), a.Mode(), a.ModTime())
				}
			}
			if link, _ := os.Readlink(filepath.Join(got, "sub/link")); link != "../file" {
				t.Errorf("link to %q", link)
			}
			a, _ := os.Stat(filepath.Join(got, "file"))
			b2, _ := os.Stat(filepath.Join(got, "hard"))
			if !os.SameFile(a, b2) {
				t.Error("hard link lost")
			}
		})
	}
}

func TestPackFollows(t *testing.T) {
	dir := t.TempDir()
	check(t, os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o600))
	check(t, os.Symlink("file", filepath.Join(dir, "link")))
	for _, tt := range []struct {
		name   string
		follow bool
		want   byte
	}{{"not", false, tar.TypeSymlink}, {"followed", true, tar.TypeReg}} {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			_, err := Pack(&b, filepath.Join(dir, "link"), "n", tt.follow)
			check(t, err)
			h, err := tar.NewReader(&b).Next()
			check(t, err)
			if h.Typeflag != tt.want || h.Name != "n" {
				t.Errorf("got %c %s", h.Typeflag, h.Name)
			}
		})
	}
}

func TestUnpackOverwrites(t *testing.T) {
	dst, outside := t.TempDir(), t.TempDir()
	check(t, os.WriteFile(filepath.Join(outside, "victim"), []byte("safe"), 0o600))
	check(t, os.Symlink(filepath.Join(outside, "victim"), filepath.Join(dst, "f")))
	_, err := Unpack(archiveOf(t, entry{tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o600}, "new"}), dst, "f", "f", Options{})
	check(t, err)
	if b, _ := os.ReadFile(filepath.Join(outside, "victim")); string(b) != "safe" {
		t.Error("wrote through a link")
	}
	if b, _ := os.ReadFile(filepath.Join(dst, "f")); string(b) != "new" {
		t.Errorf("got %q", b)
	}
	check(t, os.Mkdir(filepath.Join(dst, "d"), 0o700))
	if _, err := Unpack(archiveOf(t, entry{tar.Header{Name: "f", Typeflag: tar.TypeReg}, ""}), dst, "f", "d", Options{}); err == nil {
		t.Error("a file replaced a directory")
	}
}

func TestUnpackStripsPrivilege(t *testing.T) {
	dst := t.TempDir()
	_, err := Unpack(archiveOf(t, entry{tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o6755}, ""}), dst, "f", "f", Options{})
	check(t, err)
	fi, err := os.Stat(filepath.Join(dst, "f"))
	check(t, err)
	if fi.Mode() != 0o755 {
		t.Errorf("mode %v", fi.Mode())
	}
}

func TestUnpackSkipsDevices(t *testing.T) {
	dst := t.TempDir()
	var skipped []string
	_, err := Unpack(archiveOf(t,
		entry{tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, ""},
		entry{tar.Header{Name: "d/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, ""},
		entry{tar.Header{Name: "d/pipe", Typeflag: tar.TypeFifo}, ""},
	), dst, "d", "d", Options{Skipped: func(name, _ string) { skipped = append(skipped, name) }})
	check(t, err)
	if len(skipped) != 2 || list(t, dst) != ". d" {
		t.Errorf("skipped %v, wrote %s", skipped, list(t, dst))
	}
}

type entry struct {
	h       tar.Header
	content string
}

func archiveOf(t *testing.T, entries ...entry) *bytes.Buffer {
	t.Helper()
	b := new(bytes.Buffer)
	w := tar.NewWriter(b)
	for _, e := range entries {
		e.h.Size = int64(len(e.content))
		check(t, w.WriteHeader(&e.h))
		w.Write([]byte(e.content))
	}
	check(t, w.Close())
	return b
}

// TestUnpackStaysInside tries the ways out of the directory. Each must leave the
// files around it as they were.
func TestUnpackStaysInside(t *testing.T) {
	dir := entry{tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, ""}
	link := func(name, target string) entry {
		return entry{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}, ""}
	}
	hard := func(name, target string) entry {
		return entry{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}, ""}
	}
	file := func(name string) entry {
		return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600}, "evil"}
	}
	tests := []struct {
		name    string
		entries []entry
		refused bool
	}{
		{"absolute name", []entry{dir, file("/etc/evil")}, true},
		{"dots", []entry{dir, file("d/../../victim")}, true},
		{"dots to a sibling", []entry{dir, file("d/../victim")}, true},
		{"another top", []entry{dir, file("victim")}, true},
		{"no top", []entry{file("d/x")}, true},
		{"link out, then through it", []entry{dir, link("d/l", ".."), file("d/l/victim")}, true},
		{"absolute link, then through it", []entry{dir, link("d/l", "/"), file("d/l/tmp/victim")}, true},
		{"link as top, then through it", []entry{link("d", ".."), file("d/victim")}, true},
		{"link of links", []entry{dir, link("d/a", "b"), link("d/b", ".."), file("d/a/victim")}, true},
		{"hard link out", []entry{dir, hard("d/h", "../victim")}, true},
		{"hard link to a sibling", []entry{dir, hard("d/h", "victim")}, true},
		{"link out, overwritten", []entry{dir, link("d/l", "../victim"), file("d/l")}, false},
		{"link in the way of a directory", []entry{dir, link("d/l", ".."), {tar.Header{Name: "d/l/", Typeflag: tar.TypeDir}, ""}}, true},
		{"top twice", []entry{dir, dir}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			around := t.TempDir()
			dst := filepath.Join(around, "dst")
			check(t, os.Mkdir(dst, 0o700))
			for _, v := range []string{filepath.Join(around, "victim"), filepath.Join(dst, "victim")} {
				check(t, os.WriteFile(v, []byte("safe"), 0o600))
			}
			_, err := Unpack(archiveOf(t, tt.entries...), dst, "d", "d", Options{})
			if (err != nil) != tt.refused {
				t.Errorf("got error %v", err)
			}
			for _, v := range []string{filepath.Join(around, "victim"), filepath.Join(dst, "victim")} {
				if b, _ := os.ReadFile(v); string(b) != "safe" {
					t.Errorf("%s is now %q", v, b)
				}
			}
			if got := list(t, around); strings.Contains(got, "evil") {
				t.Errorf("wrote %s", got)
			}
		})
	}
}

func FuzzUnpack(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	w.WriteHeader(&tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755})
	w.WriteHeader(&tar.Header{Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: ".."})
	w.WriteHeader(&tar.Header{Name: "d/f", Typeflag: tar.TypeReg, Size: 1})
	w.Write([]byte("x"))
	w.Close()
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, content []byte) {
		around := t.TempDir()
		dst := filepath.Join(around, "dst")
		if err := os.Mkdir(dst, 0o700); err != nil {
			t.Fatal(err)
		}
		Unpack(bytes.NewReader(content), dst, "d", "x", Options{})
		entries, _ := os.ReadDir(around)
		if len(entries) != 1 {
			t.Errorf("wrote beside its directory: %v", entries)
		}
		entries, _ = os.ReadDir(dst)
		for _, e := range entries {
			if e.Name() != "x" {
				t.Errorf("wrote %s beside x", e.Name())
			}
		}
	})
}
