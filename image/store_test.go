package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"manis/image/rootfs"
)

// stock puts an image into a store, by way of an OCI layout.
func stock(t testing.TB, s *Store, img v1.Image, names ...string) *Image {
	t.Helper()
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	list, err := s.Load(t.Context(), dir, LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if err := s.Tag(list[0].ID, n); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Resolve(list[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestResolve(t *testing.T) {
	s := openStore(t)
	a := stock(t, s, smallImage(t, "a"), "alpine", "localhost:5000/x/y:v2", "alpine:3")
	b := stock(t, s, smallImage(t, "b"), "example.com/b", "beef")
	digits := strings.TrimPrefix(a.ID, "sha256:")
	tests := []struct {
		ref  string
		want *Image
		kind error
	}{
		{"alpine", a, nil},
		{"alpine:latest", a, nil},
		{"library/alpine", a, nil},
		{"docker.io/alpine:3", a, nil},
		{"docker.io/library/alpine:3", a, nil},
		{"index.docker.io/library/alpine", a, nil},
		{"localhost:5000/x/y:v2", a, nil},
		{"localhost:5000/x/y", nil, ErrNotFound},
		{"example.com/b", b, nil},
		{"beef", b, nil}, // a name wins over what looks like an ID
		{a.ID, a, nil},
		{digits, a, nil},
		{digits[:12], a, nil},
		{digits[:3], a, nil},
		{"sha256:" + digits[:10], a, nil},
		{"sha256:" + strings.Repeat("0", 64), nil, ErrNotFound},
		{strings.Repeat("0", 64), nil, ErrNotFound},
		{"000", nil, ErrNotFound},
		{"alpine@" + a.ManifestID.String(), a, nil},
		{"alpine@sha256:" + strings.Repeat("0", 64), nil, ErrNotFound},
		{"other@" + a.ManifestID.String(), nil, ErrNotFound},
		{"alpine:4", nil, ErrNotFound},
		{"Alpine", nil, ErrInvalid},
		{"", nil, ErrInvalid},
		{"a b", nil, ErrInvalid},
	}
	for _, tt := range tests {
		t.Run(tt.ref, func(t *testing.T) {
			got, err := s.Resolve(tt.ref)
			if tt.kind != nil {
				if !errors.Is(err, tt.kind) {
					t.Errorf("got %v, want %v", err, tt.kind)
				}
				return
			}
			if err != nil || got.ID != tt.want.ID {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
	t.Run("ambiguous", func(t *testing.T) {
		// As many images as it takes for two IDs to begin alike.
		byStart := map[string]string{}
		for i := range 5000 {
			img := smallImage(t, fmt.Sprint(i))
			id, err := img.ConfigName()
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := byStart[id.Hex[:3]]; !ok {
				byStart[id.Hex[:3]] = fmt.Sprint(i)
				continue
			}
			stock(t, s, smallImage(t, byStart[id.Hex[:3]]))
			stock(t, s, img)
			_, err = s.Resolve(id.Hex[:3])
			if !errors.Is(err, ErrAmbiguous) || err.Error() != fmt.Sprintf("image ID %s fits 2 images (give more digits): ambiguous", id.Hex[:3]) {
				t.Errorf("got %v", err)
			}
			if _, err := s.Resolve(id.Hex[:2]); !errors.Is(err, ErrNotFound) {
				t.Errorf("two digits: %v", err)
			}
			return
		}
		t.Fatal("no two IDs alike")
	})
}

func TestTag(t *testing.T) {
	s := openStore(t)
	a := stock(t, s, smallImage(t, "a"), "one")
	b := stock(t, s, smallImage(t, "b"))
	if err := s.Tag(b.ID, "one"); err != nil { // moves
		t.Fatal(err)
	}
	if got, err := s.Resolve("one"); err != nil || got.ID != b.ID {
		t.Errorf("one is %v, %v", got, err)
	}
	if got, _ := s.Resolve(a.ID); len(got.Names) != 0 {
		t.Errorf("names left: %q", got.Names)
	}
	for _, tt := range []struct {
		src, dst string
		kind     error
		text     string
	}{
		{"none", "x", ErrNotFound, "tag none: image none: not found"},
		{b.ID, "x@sha256:" + strings.Repeat("0", 64), ErrInvalid, "a digest is no name to give: invalid"},
		{b.ID, "X", ErrInvalid, `image name "X": repository name (library/X) must be lowercase: invalid`},
	} {
		if err := s.Tag(tt.src, tt.dst); !errors.Is(err, tt.kind) || !strings.HasSuffix(err.Error(), tt.text) {
			t.Errorf("tag %s %s: %v", tt.src, tt.dst, err)
		}
	}
}

func steps(list []Removed) string {
	var s []string
	for _, r := range list {
		line := r.String()
		if strings.HasPrefix(line, "Deleted: sha256:") {
			line = "Deleted"
		}
		s = append(s, line)
	}
	return strings.Join(s, "; ")
}

func TestRemove(t *testing.T) {
	base := layerOf(t, tarOf(t, testFile{name: "base", body: noise(5000, 1)}))
	image := func(s string) v1.Image {
		return imageOf(t, base, layerOf(t, tarOf(t, testFile{name: "own", body: s})))
	}
	tests := []struct {
		name  string
		setup func(s *Store) string // returns what to remove
		force bool
		want  string // the steps, or the end of the error
		kind  error
		left  int // images
	}{
		{"last name", func(s *Store) string { stock(t, s, image("1"), "a"); return "a" }, false, "Untagged: a:latest; Deleted; Deleted; Deleted", nil, 0},
		{"one of two names", func(s *Store) string { stock(t, s, image("1"), "a", "b"); return "a" }, false, "Untagged: a:latest", nil, 1},
		{"by ID, one repository", func(s *Store) string { return stock(t, s, image("1"), "a:1", "a:2").ID }, false, "Untagged: a:1; Untagged: a:2; Deleted; Deleted; Deleted", nil, 0},
		{"by ID, two repositories", func(s *Store) string { return stock(t, s, image("1"), "a", "b").ID }, false, "has names in several repositories (remove them one by one, or force): in use", ErrInUse, 1},
		{"by ID, two repositories, forced", func(s *Store) string { return stock(t, s, image("1"), "a", "b").ID }, true, "Untagged: a:latest; Untagged: b:latest; Deleted; Deleted; Deleted", nil, 0},
		{"dangling", func(s *Store) string { return stock(t, s, image("1")).ID }, false, "Deleted; Deleted; Deleted", nil, 0},
		{"shared layer stays", func(s *Store) string { stock(t, s, image("1"), "a"); stock(t, s, image("2"), "b"); return "a" }, false, "Untagged: a:latest; Deleted; Deleted", nil, 1},
		{"unknown", func(s *Store) string { return "a" }, false, "remove a: image a: not found", ErrNotFound, 0},
		{"in use by a container", func(s *Store) string {
			if err := s.AddUser(stock(t, s, image("1"), "a").ID, "0123456789abcdef"); err != nil {
				t.Fatal(err)
			}
			return "a"
		}, false, "is in use by container 0123456789ab (remove it first, or force): in use", ErrInUse, 1},
		{"one of two names of one in use", func(s *Store) string {
			s.AddUser(stock(t, s, image("1"), "a", "b").ID, "c")
			return "a"
		}, false, "Untagged: a:latest", nil, 1},
		{"in use, forced", func(s *Store) string { s.AddUser(stock(t, s, image("1"), "a").ID, "c"); return "a" }, true, "Untagged: a:latest; Deleted; Deleted; Deleted", nil, 0},
		{"no longer in use", func(s *Store) string {
			img := stock(t, s, image("1"), "a")
			s.AddUser(img.ID, "c")
			s.AddUser(img.ID, "c")
			s.RemoveUser(img.ID, "c")
			return "a"
		}, false, "Untagged: a:latest; Deleted; Deleted; Deleted", nil, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := openStore(t)
			done, err := s.Remove(tt.setup(s), tt.force)
			if tt.kind != nil {
				if !errors.Is(err, tt.kind) || !strings.HasSuffix(err.Error(), tt.want) {
					t.Errorf("\ngot  %v\nwant ...%s", err, tt.want)
				}
			} else if got := steps(done); err != nil || got != tt.want {
				t.Errorf("\ngot  %s, %v\nwant %s", got, err, tt.want)
			}
			list, err := s.List()
			if err != nil || len(list) != tt.left {
				t.Errorf("%d images left, want %d (%v)", len(list), tt.left, err)
			}
			for _, img := range list {
				whole(t, s, img)
			}
			if tt.left == 0 {
				if entries, _ := os.ReadDir(filepath.Join(s.root, "blobs", "sha256")); len(entries) != 0 {
					t.Errorf("blobs left: %v", entries)
				}
			}
		})
	}
	t.Run("digest of a pulled image", func(t *testing.T) {
		host := registryServer(t, nil)
		push(t, host+"/a:1", image("1"))
		s := openStore(t)
		if _, err := s.Pull(t.Context(), host+"/a:1", quick); err != nil {
			t.Fatal(err)
		}
		done, err := s.Remove(host+"/a:1", false)
		if err != nil || !strings.HasPrefix(steps(done), "Untagged: "+host+"/a:1; Untagged: "+host+"/a@sha256:") {
			t.Errorf("%s, %v", steps(done), err)
		}
		untouched(t, s, false)
	})
	t.Run("the same user of an unknown image", func(t *testing.T) {
		s := openStore(t)
		if err := s.AddUser("sha256:0", "c"); !errors.Is(err, ErrNotFound) {
			t.Errorf("got %v", err)
		}
		if err := s.RemoveUser("sha256:0", "c"); err != nil {
			t.Errorf("got %v", err)
		}
	})
}

// A damaged image is told apart from the others, which it does not take with it.
func TestDamagedImage(t *testing.T) {
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, s *Store, img *Image)
		kind   error
	}{
		{"no manifest", func(t *testing.T, s *Store, img *Image) { os.Remove(s.blobs.Path(img.ManifestID)) }, ErrNotFound},
		{"empty manifest", func(t *testing.T, s *Store, img *Image) { overwrite(t, s.blobs.Path(img.ManifestID), "") }, ErrDigest},
		{"other manifest", func(t *testing.T, s *Store, img *Image) { overwrite(t, s.blobs.Path(img.ManifestID), "{}") }, ErrDigest},
		{"huge manifest", func(t *testing.T, s *Store, img *Image) {
			overwrite(t, s.blobs.Path(img.ManifestID), strings.Repeat(" ", maxManifest+1))
		}, ErrLimit},
		{"no config", func(t *testing.T, s *Store, img *Image) { os.Remove(s.blobs.Path(img.Manifest.Config.Digest)) }, ErrNotFound},
		{"other config", func(t *testing.T, s *Store, img *Image) { overwrite(t, s.blobs.Path(img.Manifest.Config.Digest), "{}") }, ErrDigest},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := openStore(t)
			bad := stock(t, s, smallImage(t, "bad"), "bad:1")
			good := stock(t, s, smallImage(t, "good"), "good:1")
			s.AddUser(bad.ID, "c")
			tt.damage(t, s, bad)
			list, err := s.List()
			var damaged *DamagedError
			if !errors.As(err, &damaged) || !errors.Is(err, tt.kind) {
				t.Fatalf("list: %v", err)
			}
			if len(list) != 1 || list[0].ID != good.ID {
				t.Errorf("the others: %v", list)
			}
			if len(damaged.Images) != 1 || damaged.Images[0].ID != bad.ID || !slices.Equal(damaged.Images[0].Names, []string{"bad:1"}) || !slices.Equal(damaged.Images[0].Users, []string{"c"}) {
				t.Errorf("the damaged: %+v", damaged.Images)
			}
			if _, err := s.Usage(); err != nil {
				t.Error(err)
			}
			s.RemoveUser(bad.ID, "c")
			if _, err := s.Remove("bad:1", false); err != nil {
				t.Error(err)
			}
			if list, err := s.List(); err != nil || len(list) != 1 {
				t.Errorf("after the removal: %d images, %v", len(list), err)
			}
			whole(t, s, good)
			// What is left of it is in nobody's way.
			if _, err := s.Prune(false); err != nil {
				t.Error(err)
			}
			if again := stock(t, s, smallImage(t, "bad"), "bad:1"); again.ID != bad.ID {
				t.Errorf("again: %s, want %s", again.ID, bad.ID)
			}
			if list, err := s.List(); err != nil || len(list) != 2 {
				t.Errorf("again: %d images, %v", len(list), err)
			}
		})
	}
}

func overwrite(t *testing.T, path, content string) {
	t.Helper()
	if err := os.Remove(path); err != nil { // blobs are read-only
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o400); err != nil {
		t.Fatal(err)
	}
}

func TestRemoveWhileRunning(t *testing.T) {
	s := openStore(t)
	img := stock(t, s, smallImage(t, "x"), "a")
	fs, release, err := s.Rootfs(t.Context(), img, nil)
	if err != nil {
		t.Fatal(err)
	}
	// The VM holds a duplicate of the file, as QEMU does.
	cmd := exec.Command("sleep", "1000")
	cmd.ExtraFiles = []*os.File{fs.File}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	release()
	other, err := Open(s.root) // as another process sees it
	if err != nil {
		t.Fatal(err)
	}
	for _, force := range []bool{false, true} {
		_, err = other.Remove("a", force)
		if !errors.Is(err, ErrInUse) || !strings.HasSuffix(err.Error(), "is in use by a running container (stop it first; this cannot be forced): in use") {
			t.Errorf("force=%v: %v", force, err)
		}
	}
	if p, err := other.Prune(true); err != nil || len(p.Removed) != 0 {
		t.Errorf("prune: %v, %v", p, err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if _, err := other.Remove("a", false); err != nil {
		t.Errorf("after the VM ended: %v", err)
	}
	untouched(t, s, false)
}

func TestPrune(t *testing.T) {
	s := openStore(t)
	named := stock(t, s, smallImage(t, "named"), "a")
	dangling := stock(t, s, smallImage(t, "dangling"))
	used := stock(t, s, smallImage(t, "used"))
	if err := s.AddUser(used.ID, "c"); err != nil {
		t.Fatal(err)
	}
	for _, img := range []*Image{named, dangling, used} {
		whole(t, s, img)
	}
	// What crashes and interruptions leave.
	junk := noise(100_000, 1)
	for _, p := range []string{"partial/" + strings.Repeat("a", 64), "blobs/sha256/" + strings.Repeat("b", 64)} {
		if err := os.WriteFile(s.path(p), []byte(junk), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []string{"rootfs/" + strings.Repeat("c", 64), "tmp/work-1"} {
		if err := os.Mkdir(s.path(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.path(p, "image.erofs"), []byte(junk), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(s.path("lease", "lease-1"), []byte(`["sha256:`+strings.Repeat("b", 64)+`"]`), 0o600); err != nil {
		t.Fatal(err)
	}
	ids := func() string {
		list, err := s.List()
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, i := range list {
			ids = append(ids, i.ID)
		}
		slices.Sort(ids)
		return strings.Join(ids, " ")
	}
	before := du(t, s.root)
	p, err := s.Prune(false)
	if err != nil {
		t.Fatal(err)
	}
	if got := steps(p.Removed); !strings.HasPrefix(got, "Deleted; Deleted") || p.Removed[0].Deleted != dangling.ID {
		t.Errorf("removed %s", got)
	}
	want := []string{named.ID, used.ID}
	slices.Sort(want)
	if got := ids(); got != strings.Join(want, " ") {
		t.Errorf("left %s", got)
	}
	if after := du(t, s.root); before-after < 4*100_000 || abs(before-after-p.Reclaimed) > 64<<10 {
		t.Errorf("du went from %d to %d, reclaimed %d", before, after, p.Reclaimed)
	}
	u, err := s.Usage()
	if err != nil || u.Unnamed != 0 {
		t.Errorf("unnamed %d, %v", u.Unnamed, err)
	}
	if p, err = s.Prune(true); err != nil || p.Removed[0].Untagged != "a:latest" {
		t.Errorf("%v, %v", p, err)
	}
	if got := ids(); got != used.ID {
		t.Errorf("left %s", got)
	}
	whole(t, s, used)
}

func abs(n int64) int64 { return max(n, -n) }

// du asks the command of that name.
func du(t testing.TB, path string) int64 {
	t.Helper()
	bin, err := exec.LookPath("du")
	if err != nil {
		t.Skip("du is not installed")
	}
	out, err := exec.Command(bin, "-s", "-B1", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.Fields(string(out))[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestUsage(t *testing.T) {
	s := openStore(t)
	base := layerOf(t, tarOf(t, testFile{name: "base", body: noise(1<<20, 1)}))
	a := stock(t, s, imageOf(t, base, layerOf(t, tarOf(t, testFile{name: "a", body: noise(200_000, 2)}))), "a")
	b := stock(t, s, imageOf(t, base, layerOf(t, tarOf(t, testFile{name: "b", body: noise(300_000, 3)}))), "b")
	whole(t, s, a)
	if err := s.AddUser(a.ID, "c"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.path("partial", strings.Repeat("a", 64)), make([]byte, 50_000), 0o600); err != nil {
		t.Fatal(err)
	}
	u, err := s.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if want := du(t, s.root); u.Total != want {
		t.Errorf("total %d, du says %d", u.Total, want)
	}
	sum := u.Shared + u.Unnamed + u.Overhead
	part := map[string]ImageUsage{}
	for _, i := range u.Images {
		sum += i.Unique
		part[i.ID] = i
	}
	if sum != u.Total {
		t.Errorf("parts are %d, total %d", sum, u.Total)
	}
	pa, pb := part[a.ID], part[b.ID]
	if u.Shared < 1<<20 || pa.Shared != u.Shared || pb.Shared != u.Shared {
		t.Errorf("shared: %d, by image %d and %d", u.Shared, pa.Shared, pb.Shared)
	}
	if pa.Unique < 200_000+1<<20 || pb.Unique < 300_000 || pb.Unique > 400_000 {
		t.Errorf("unique: %d with its root file system, and %d", pa.Unique, pb.Unique)
	}
	if pa.Users != 1 || u.Unnamed < 50_000 || u.Reclaimable != u.Unnamed+pb.Unique {
		t.Errorf("users %d, unnamed %d, reclaimable %d", pa.Users, u.Unnamed, u.Reclaimable)
	}
}

func TestRootfsIsBuiltOnce(t *testing.T) {
	s := openStore(t)
	img := stock(t, s, imageOf(t, layerOf(t, tarOf(t, testFile{name: "f", body: noise(2<<20, 1)}))))
	var wg sync.WaitGroup
	var mu sync.Mutex
	built := 0
	paths := map[string]bool{}
	for range 100 {
		wg.Go(func() {
			other, err := Open(s.root) // each its own, as separate processes have
			if err != nil {
				t.Error(err)
				return
			}
			fs, release, err := other.Rootfs(t.Context(), img, func(e Event) {
				if e.Phase == Done {
					mu.Lock()
					built++
					mu.Unlock()
				}
			})
			if err != nil {
				t.Error(err)
				return
			}
			defer release()
			if fi, err := fs.File.Stat(); err != nil || fi.Size() != fs.Size {
				t.Errorf("size %v, %v", fi, err)
			}
			mu.Lock()
			paths[fs.Path+fs.RootHash] = true
			mu.Unlock()
		})
	}
	wg.Wait()
	if built != 1 || len(paths) != 1 {
		t.Errorf("built %d times, %d results", built, len(paths))
	}
	if got, err := s.Resolve(img.ID); err != nil || got.Size < 2<<20 {
		t.Errorf("size %v, %v", got, err)
	}
}

func TestRootfsFailsCleanly(t *testing.T) {
	t.Run("damaged layer", func(t *testing.T) {
		s := openStore(t)
		img := stock(t, s, smallImage(t, "x"))
		path := s.blobs.Path(img.Manifest.Layers[0].Digest)
		if err := os.WriteFile(path, []byte("bit rot"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, err := s.Rootfs(t.Context(), img, nil)
		if !errors.Is(err, ErrTruncated) || !strings.HasPrefix(err.Error(), "root file system of image "+img.ShortID()+": layer 1 of 1 (sha256:") {
			t.Errorf("got %v", err)
		}
		tidy(t, s)
	})
	t.Run("missing layer", func(t *testing.T) {
		s := openStore(t)
		img := stock(t, s, smallImage(t, "x"))
		os.Remove(s.blobs.Path(img.Manifest.Layers[0].Digest))
		if _, _, err := s.Rootfs(t.Context(), img, nil); !errors.Is(err, ErrNotFound) {
			t.Errorf("got %v", err)
		}
		tidy(t, s)
	})
	t.Run("over a limit", func(t *testing.T) {
		s := openStore(t)
		s.Limits = rootfs.Limits{Entries: 1}
		img := stock(t, s, smallImage(t, "x"))
		if _, _, err := s.Rootfs(t.Context(), img, nil); !errors.Is(err, ErrLimit) {
			t.Errorf("got %v", err)
		}
		tidy(t, s)
	})
	t.Run("cancelled", func(t *testing.T) {
		s := openStore(t)
		img := stock(t, s, imageOf(t, layerOf(t, tarOf(t, testFile{name: "f", body: noise(4<<20, 1)}))))
		ctx, cancel := context.WithCancel(t.Context())
		_, _, err := s.Rootfs(ctx, img, func(Event) { cancel() })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		tidy(t, s)
		whole(t, s, img) // and then it works
	})
	t.Run("damaged result", func(t *testing.T) {
		s := openStore(t)
		img := stock(t, s, smallImage(t, "x"), "a")
		fs, release, err := s.Rootfs(t.Context(), img, nil)
		if err != nil {
			t.Fatal(err)
		}
		release()
		os.Chmod(fs.Path, 0o600)
		if err := os.Truncate(fs.Path, 100); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.Rootfs(t.Context(), img, nil); !errors.Is(err, ErrDigest) {
			t.Errorf("got %v", err)
		}
	})
}

// tidy checks that nothing is left of a conversion that failed.
func tidy(t testing.TB, s *Store) {
	t.Helper()
	for _, d := range []string{"tmp", "lease"} {
		if entries, err := os.ReadDir(s.path(d)); err != nil || len(entries) != 0 {
			t.Errorf("%s holds %v (%v)", d, entries, err)
		}
	}
	entries, err := os.ReadDir(s.path("rootfs"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".lock") {
			t.Errorf("rootfs holds %v", e)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(dir); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "catalog.json")
	for _, tt := range []struct {
		content string
		kind    error
	}{{`{"version":99}`, ErrUnsupported}, {`{"version"`, nil}} {
		if err := os.WriteFile(path, []byte(tt.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); err == nil || tt.kind != nil && !errors.Is(err, tt.kind) || !strings.HasPrefix(err.Error(), "open the image store") {
			t.Errorf("%s: %v", tt.content, err)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	os.WriteFile(file, nil, 0o600)
	if _, err := Open(file); err == nil {
		t.Error("opened a file")
	}
}

func TestConcurrentUse(t *testing.T) {
	c := &traffic{}
	host := registryServer(t, c.wrap)
	base := layerOf(t, tarOf(t, testFile{name: "base", body: noise(500_000, 1)}))
	for i := range 4 {
		push(t, fmt.Sprintf("%s/img:%d", host, i), imageOf(t, base, layerOf(t, tarOf(t, testFile{name: "own", body: noise(100_000, uint64(i)+2)}))))
	}
	root := t.TempDir()
	if _, err := Open(root); err != nil {
		t.Fatal(err)
	}
	// Pulls, conversions, removals and prunes in any order: an operation may
	// find nothing to do, but never a broken store.
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			s, err := Open(root)
			if err != nil {
				t.Error(err)
				return
			}
			for round := range 4 {
				ref := fmt.Sprintf("%s/img:%d", host, (i+round)%4)
				img, err := s.Pull(t.Context(), ref, quick)
				if err != nil {
					t.Errorf("pull: %v", err)
					continue
				}
				_, release, err := s.Rootfs(t.Context(), img, nil)
				if err == nil {
					release()
				} else if !errors.Is(err, ErrNotFound) {
					t.Errorf("rootfs: %v", err)
				}
				switch i % 3 {
				case 0:
					if _, err := s.Remove(ref, true); err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrInUse) {
						t.Errorf("remove: %v", err)
					}
				case 1:
					if _, err := s.Prune(i == 1); err != nil {
						t.Errorf("prune: %v", err)
					}
				}
				if _, err := s.List(); err != nil {
					t.Errorf("list: %v", err)
				}
			}
		})
	}
	wg.Wait()
	s, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	tidyLeases(t, s)
	for i := range 4 {
		img, err := s.Pull(t.Context(), fmt.Sprintf("%s/img:%d", host, i), quick)
		if err != nil {
			t.Fatal(err)
		}
		whole(t, s, img)
	}
	if _, err := s.Prune(true); err != nil {
		t.Fatal(err)
	}
	untouched(t, s, false)
}

func tidyLeases(t testing.TB, s *Store) {
	t.Helper()
	if entries, err := os.ReadDir(s.path("lease")); err != nil || len(entries) != 0 {
		t.Errorf("leases left: %v (%v)", entries, err)
	}
}

func TestPullOnce(t *testing.T) {
	c := &traffic{}
	host := registryServer(t, c.wrap)
	img := imageOf(t, layerOf(t, tarOf(t, testFile{name: "f", body: noise(2<<20, 1)})))
	push(t, host+"/a:1", img)
	root := t.TempDir()
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			s, err := Open(root)
			if err != nil {
				t.Error(err)
				return
			}
			got, err := s.Pull(t.Context(), host+"/a:1", quick)
			if err != nil {
				t.Error(err)
				return
			}
			whole(t, s, got)
		})
	}
	wg.Wait()
	if asked := c.asked(layersOf(t, img)[0].Digest); len(asked) != 1 {
		t.Errorf("the layer was fetched %d times: %q", len(asked), asked)
	}
}

func TestRemoveWhilePulling(t *testing.T) {
	c := &traffic{}
	host := registryServer(t, c.wrap)
	base := layerOf(t, tarOf(t, testFile{name: "base", body: noise(100_000, 1)}))
	push(t, host+"/old:1", imageOf(t, base))
	slow := layerOf(t, tarOf(t, testFile{name: "slow", body: noise(100_000, 2)}))
	push(t, host+"/new:1", imageOf(t, base, slow))
	s := openStore(t)
	if _, err := s.Pull(t.Context(), host+"/old:1", quick); err != nil {
		t.Fatal(err)
	}
	d, _ := slow.Digest()
	c.before = func(_ int, w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, d.Hex) {
			// The pull has counted on the shared layer by now.
			if _, err := s.Remove(host+"/old:1", false); err != nil {
				t.Errorf("remove: %v", err)
			}
			if _, err := s.Prune(true); err != nil {
				t.Errorf("prune: %v", err)
			}
		}
		return false
	}
	img, err := s.Pull(t.Context(), host+"/new:1", quick)
	if err != nil {
		t.Fatal(err)
	}
	whole(t, s, img)
}
