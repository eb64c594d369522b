package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"manis/image/archive"
)

// dockerArchive is one as go-containerregistry writes them: gzipped layers.
func dockerArchive(t testing.TB, images map[string]v1.Image) []byte {
	t.Helper()
	refs := map[name.Reference]v1.Image{}
	for n, img := range images {
		r, err := name.NewTag(n)
		if err != nil {
			t.Fatal(err)
		}
		refs[r] = img
	}
	var b bytes.Buffer
	if err := tarball.MultiRefWrite(refs, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// oldDocker is an archive as docker wrote them before version 25: a directory
// for each layer, uncompressed, a repeated one as a symbolic link.
func oldDocker(t testing.TB, img v1.Image, tag string) []byte {
	t.Helper()
	cfg, err := img.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	id, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	var files []testFile
	var names []string
	first := map[v1.Hash]string{}
	for i, l := range layers {
		dir := fmt.Sprintf("%064d", i)
		diff, err := l.DiffID()
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, dir+"/layer.tar")
		files = append(files, testFile{name: dir + "/"}, testFile{name: dir + "/VERSION", body: "1.0"})
		if first[diff] != "" {
			files = append(files, testFile{name: dir + "/layer.tar", kind: tar.TypeSymlink, link: "../" + first[diff]})
			continue
		}
		first[diff] = dir + "/layer.tar"
		rc, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(rc)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, testFile{name: dir + "/layer.tar", body: string(b)})
	}
	list, err := json.Marshal([]map[string]any{{"Config": id.Hex + ".json", "RepoTags": []string{tag}, "Layers": names}})
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, testFile{name: id.Hex + ".json", body: string(cfg)}, testFile{name: "manifest.json", body: string(list)}, testFile{name: "repositories", body: "{}"})
	return tarOf(t, files...)
}

// layoutDir writes an OCI layout directory.
func layoutDir(t testing.TB, add func(p layout.Path) error) string {
	t.Helper()
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := add(p); err != nil {
		t.Fatal(err)
	}
	return dir
}

// packed is a directory as a tar archive.
func packed(t testing.TB, dir string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zipped(t testing.TB, p []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(p)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestLoad(t *testing.T) {
	base := layerOf(t, tarOf(t, testFile{name: "base", body: noise(10_000, 1)}))
	one := imageOf(t, base, layerOf(t, tarOf(t, testFile{name: "one", body: "1"})), base)
	two := imageOf(t, base, layerOf(t, tarOf(t, testFile{name: "two", body: "2"})))
	id := func(img v1.Image) string {
		h, err := img.ConfigName()
		if err != nil {
			t.Fatal(err)
		}
		return h.String()
	}
	host := HostPlatform()
	riscv := v1.Platform{OS: "linux", Architecture: "riscv64"}
	named := func(n string) layout.Option {
		return layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": n})
	}
	single := layoutDir(t, func(p layout.Path) error { return p.AppendImage(one) })
	plainTag := layoutDir(t, func(p layout.Path) error { return p.AppendImage(one, named("v1")) })
	several := layoutDir(t, func(p layout.Path) error {
		return errors.Join(p.AppendImage(one, named("a:1")), p.AppendImage(two, layout.WithAnnotations(map[string]string{
			"io.containerd.image.name": "docker.io/library/b:2", "org.opencontainers.image.ref.name": "2"})))
	})
	flat := layoutDir(t, func(p layout.Path) error {
		return errors.Join(p.AppendImage(imageFor(t, riscv, base), named("a:1"), layout.WithPlatform(riscv)), p.AppendImage(one, named("a:1"), layout.WithPlatform(host)))
	})
	index := layoutDir(t, func(p layout.Path) error {
		return p.AppendIndex(mutate.AppendManifests(empty.Index,
			mutate.IndexAddendum{Add: imageFor(t, riscv, base), Descriptor: v1.Descriptor{Platform: &riscv}},
			mutate.IndexAddendum{Add: one, Descriptor: v1.Descriptor{Platform: &host}}), named("a:1"))
	})
	saved := func(format archive.Format, refs ...string) []byte {
		s := openStore(t)
		stock(t, s, one, "a:1", "other:1")
		stock(t, s, two, "b:2")
		var b bytes.Buffer
		if err := s.Save(t.Context(), refs, &b, format); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	tests := []struct {
		name string
		dir  string // or
		file []byte
		opts LoadOptions
		want map[string][]string // ID -> names
	}{
		{"layout", single, nil, LoadOptions{}, map[string][]string{id(one): nil}},
		{"layout, named by the caller", single, nil, LoadOptions{Tag: "mine"}, map[string][]string{id(one): {"mine:latest"}}},
		{"layout with a bare tag", plainTag, nil, LoadOptions{}, map[string][]string{id(one): nil}},
		{"layout of several", several, nil, LoadOptions{}, map[string][]string{id(one): {"a:1"}, id(two): {"b:2"}}},
		{"layout for several platforms, flat", flat, nil, LoadOptions{}, map[string][]string{id(one): {"a:1"}}},
		{"layout for several platforms, index", index, nil, LoadOptions{}, map[string][]string{id(one): {"a:1"}}},
		{"layout in tar", "", packed(t, several), LoadOptions{}, map[string][]string{id(one): {"a:1"}, id(two): {"b:2"}}},
		{"layout in tar, gzip", "", zipped(t, packed(t, single)), LoadOptions{Tag: "x:y"}, map[string][]string{id(one): {"x:y"}}},
		{"docker archive", "", dockerArchive(t, map[string]v1.Image{"a:1": one, "b:2": two}), LoadOptions{}, map[string][]string{id(one): {"a:1"}, id(two): {"b:2"}}},
		{"docker archive, gzip", "", zipped(t, dockerArchive(t, map[string]v1.Image{"a:1": one})), LoadOptions{}, map[string][]string{id(one): {"a:1"}}},
		{"docker archive, old", "", oldDocker(t, one, "a:1"), LoadOptions{}, map[string][]string{id(one): {"a:1"}}},
		{"docker archive, named by the caller", "", oldDocker(t, one, "a:1"), LoadOptions{Tag: "localhost:5000/m"}, map[string][]string{id(one): {"localhost:5000/m:latest"}}},
		{"our own, docker", "", saved(archive.Docker, "a:1", "b:2"), LoadOptions{}, map[string][]string{id(one): {"a:1"}, id(two): {"b:2"}}},
		{"our own, OCI", "", saved(archive.OCI, "a:1", "b:2"), LoadOptions{}, map[string][]string{id(one): {"a:1"}, id(two): {"b:2"}}},
		{"our own, by ID", "", saved(archive.Docker, id(one)), LoadOptions{}, map[string][]string{id(one): {"a:1", "other:1"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := openStore(t)
			var list []*Image
			var err error
			if tt.dir != "" {
				list, err = s.Load(t.Context(), tt.dir, tt.opts)
			} else {
				path := filepath.Join(t.TempDir(), "archive")
				if err := os.WriteFile(path, tt.file, 0o600); err != nil {
					t.Fatal(err)
				}
				list, err = s.Load(t.Context(), path, tt.opts)
				if err == nil { // again, as a stream: nothing changes
					_, err = s.LoadFrom(t.Context(), bytes.NewReader(tt.file), tt.opts)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			all, err := s.List()
			if err != nil || len(all) != len(tt.want) || len(list) < len(tt.want) {
				t.Errorf("%d images, %d loaded, want %d (%v)", len(all), len(list), len(tt.want), err)
			}
			for _, img := range all {
				if want, ok := tt.want[img.ID]; !ok || !slices.Equal(img.Names, want) {
					t.Errorf("image %s has names %q, want %q", img.ID, img.Names, want)
				}
				whole(t, s, img)
			}
			tidy2(t, s)
		})
	}
	t.Run("digests stay", func(t *testing.T) {
		s := openStore(t)
		list, err := s.LoadFrom(t.Context(), bytes.NewReader(saved(archive.Docker, "a:1")), LoadOptions{})
		want, _ := one.Digest()
		if err != nil || list[0].ManifestID != want {
			t.Errorf("manifest %v, want %s (%v)", list, want, err)
		}
	})
	t.Run("saving is reproducible", func(t *testing.T) {
		if !bytes.Equal(saved(archive.Docker, "a:1", "b:2"), saved(archive.Docker, "a:1", "b:2")) {
			t.Error("two archives differ")
		}
	})
}

// tidy2 checks that nothing is left of a load.
func tidy2(t testing.TB, s *Store) {
	t.Helper()
	for _, d := range []string{"tmp", "lease", "partial"} {
		if entries, err := os.ReadDir(s.path(d)); err != nil || len(entries) != 0 {
			t.Errorf("%s holds %v (%v)", d, entries, err)
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	img := smallImage(t, "x")
	riscv := v1.Platform{OS: "linux", Architecture: "riscv64"}
	good := oldDocker(t, img, "a:1")
	id, _ := img.ConfigName()
	cfg, err := img.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	list := func(s string) testFile { return testFile{name: "manifest.json", body: s} }
	blobOf := func(d v1.Hash) string { return "blobs/sha256/" + d.Hex }
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	damaged := func(file string, content []byte) string {
		dir := layoutDir(t, func(p layout.Path) error { return p.AppendImage(img) })
		if content == nil {
			os.Remove(filepath.Join(dir, file))
		} else if err := os.WriteFile(filepath.Join(dir, file), content, 0o644); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	digest, _ := img.Digest()
	layer := m.Layers[0]
	raw, err := mustLayer(t, img, layer.Digest).Compressed()
	if err != nil {
		t.Fatal(err)
	}
	blob, err := io.ReadAll(raw)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(blob)
	flipped[len(flipped)/2] ^= 1
	outside := func() string {
		dir := damaged(blobOf(layer.Digest), nil)
		target := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(target, blob, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(dir, blobOf(layer.Digest))); err != nil {
			t.Fatal(err)
		}
		return dir
	}()
	bothNames := dockerArchive(t, map[string]v1.Image{"a:1": img, "b:1": smallImage(t, "y")})
	tests := []struct {
		name string
		dir  string
		file []byte
		opts LoadOptions
		kind error
		text string // the end
	}{
		{"no such file", "/no/such/file", nil, LoadOptions{}, ErrNotFound, "load /no/such/file: no such file or directory: not found"},
		{"directory that is no layout", t.TempDir(), nil, LoadOptions{}, ErrUnsupported, "a directory without oci-layout and index.json: not supported"},
		{"text", "", []byte(strings.Repeat("hello ", 1000)), LoadOptions{}, ErrInvalid, "not a tar archive: invalid"},
		{"nothing", "", nil, LoadOptions{}, ErrUnsupported, "an archive without manifest.json (docker) and index.json (OCI): not supported"},
		{"tar of other things", "", tarOf(t, testFile{name: "etc/"}), LoadOptions{}, ErrUnsupported, "an archive without manifest.json (docker) and index.json (OCI): not supported"},
		{"truncated", "", good[:len(good)/2], LoadOptions{}, ErrTruncated, "content is truncated"},
		{"truncated gzip", "", zipped(t, good)[:200], LoadOptions{}, ErrTruncated, "compressed data ends too early: content is truncated"},
		{"xz", "", []byte("\xfd7zXZ\x00"), LoadOptions{}, ErrUnsupported, "xz compression: not supported"},
		{"manifest.json is no JSON", "", tarOf(t, list("hello")), LoadOptions{}, ErrInvalid, "manifest.json: invalid character 'h' looking for beginning of value: invalid"},
		{"manifest.json of nothing", "", tarOf(t, list("[]")), LoadOptions{}, ErrNotFound, "no image in manifest.json: not found"},
		{"config missing", "", tarOf(t, list(`[{"Config":"c.json"}]`)), LoadOptions{}, ErrNotFound, `image 1 of manifest.json: config: member "c.json" of the archive: not found`},
		{"layer missing", "", tarOf(t, list(`[{"Config":"c.json","Layers":["x/layer.tar"]}]`), testFile{name: "c.json", body: string(cfg)}), LoadOptions{}, ErrNotFound, `image 1 of manifest.json: layer 1: member "x/layer.tar" of the archive: not found`},
		{"layer out of the archive", "", tarOf(t, list(`[{"Config":"c.json","Layers":["../../etc/passwd"]}]`), testFile{name: "c.json", body: string(cfg)}), LoadOptions{}, ErrNotFound, `layer 1: member "../../etc/passwd" of the archive: not found`},
		{"layer by a link out of the archive", "", tarOf(t, list(`[{"Config":"c.json","Layers":["l"]}]`), testFile{name: "c.json", body: string(cfg)}, testFile{name: "l", kind: tar.TypeSymlink, link: "/etc/passwd"}), LoadOptions{}, ErrNotFound, `layer 1: member "l" of the archive: not found`},
		{"layer by links in a circle", "", tarOf(t, list(`[{"Config":"c.json","Layers":["l"]}]`), testFile{name: "c.json", body: string(cfg)}, testFile{name: "l", kind: tar.TypeSymlink, link: "k"}, testFile{name: "k", kind: tar.TypeSymlink, link: "l"}), LoadOptions{}, ErrInvalid, `layer 1: member "l" of the archive: links in a circle: invalid`},
		{"config under a wrong digest", "", tarOf(t, list(`[{"Config":"`+id.Hex+`.json"}]`), testFile{name: id.Hex + ".json", body: "{}"}), LoadOptions{}, ErrDigest, "content does not match its digest"},
		{"too few layers", "", tarOf(t, list(`[{"Config":"c.json","Layers":[]}]`), testFile{name: "c.json", body: string(cfg)}), LoadOptions{}, ErrInvalid, "image config names 1 layers, the manifest 0: invalid"},
		{"bad name", "", tarOf(t, list(`[{"Config":"c.json","RepoTags":["../x"],"Layers":["l"]}]`), testFile{name: "c.json", body: string(cfg)}, testFile{name: "l", body: "x"}), LoadOptions{}, ErrInvalid, `image name "../x": invalid reference format: invalid`},
		{"name by the caller for two", "", bothNames, LoadOptions{Tag: "x"}, ErrInvalid, "a name for the image was given, but there are 2: invalid"},
		{"bad name by the caller", "", good, LoadOptions{Tag: "X"}, ErrInvalid, `image name "X": repository name (library/X) must be lowercase: invalid`},
		{"digest for a name", "", good, LoadOptions{Tag: "x@" + digest.String()}, ErrInvalid, "a digest is no name to give: invalid"},
		{"other platform", "", oldDocker(t, imageFor(t, riscv), "a:1"), LoadOptions{}, ErrPlatform, fmt.Sprintf("want %s, the image is for linux/riscv64: no image for this platform", HostPlatform())},
		{"layout with a layer missing", damaged(blobOf(layer.Digest), nil), nil, LoadOptions{}, ErrNotFound, "not found"},
		{"layout with a layer damaged", damaged(blobOf(layer.Digest), flipped), nil, LoadOptions{}, ErrDigest, "content does not match its digest"},
		{"layout with a layer cut", damaged(blobOf(layer.Digest), blob[:50]), nil, LoadOptions{}, ErrTruncated, fmt.Sprintf("layer 1 of 1: content of %s ends after 50 of %d bytes: content is truncated", layer.Digest, layer.Size)},
		{"layout with a layer too long", damaged(blobOf(layer.Digest), append(bytes.Clone(blob), 'x')), nil, LoadOptions{}, ErrDigest, "content does not match its digest"},
		{"layout with a config damaged", damaged(blobOf(m.Config.Digest), []byte("{}")), nil, LoadOptions{}, ErrTruncated, "content is truncated"},
		{"layout with a manifest damaged", damaged(blobOf(digest), []byte(strings.Repeat("x", 1000))), nil, LoadOptions{}, ErrDigest, "content does not match its digest"},
		{"layout with a manifest missing", damaged(blobOf(digest), nil), nil, LoadOptions{}, ErrNotFound, "not found"},
		{"layout with a bad index", damaged("index.json", []byte("x")), nil, LoadOptions{}, ErrInvalid, "image index: invalid character 'x' looking for beginning of value: invalid"},
		{"layout of nothing", damaged("index.json", []byte(`{"schemaVersion":2}`)), nil, LoadOptions{}, ErrNotFound, "no image in the index: not found"},
		{"layout that links out of itself", outside, nil, LoadOptions{}, nil, "path escapes from parent"},
		{"layout in tar with a layer damaged", "", packed(t, damaged(blobOf(layer.Digest), flipped)), LoadOptions{}, ErrDigest, "content does not match its digest"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := openStore(t)
			path := tt.dir
			if path == "" {
				path = filepath.Join(t.TempDir(), "archive")
				if err := os.WriteFile(path, tt.file, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			_, err := s.Load(t.Context(), path, tt.opts)
			if err == nil || tt.kind != nil && !errors.Is(err, tt.kind) || !strings.HasSuffix(err.Error(), tt.text) || !strings.HasPrefix(err.Error(), "load "+path+": ") {
				t.Errorf("\ngot  %v\nwant ...%s", err, tt.text)
			}
			untouched(t, s, false)
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := openStore(t)
		big := oldDocker(t, imageOf(t, layerOf(t, tarOf(t, testFile{name: "f", body: noise(4<<20, 1)}))), "a:1")
		_, err := s.LoadFrom(ctx, bytes.NewReader(big), LoadOptions{Progress: func(Event) { cancel() }})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		untouched(t, s, false)
	})
	t.Run("over the limit", func(t *testing.T) {
		s := openStore(t)
		s.Limits.ImageBytes = 1000
		if _, err := s.LoadFrom(t.Context(), bytes.NewReader(good), LoadOptions{}); !errors.Is(err, ErrLimit) || !strings.HasSuffix(err.Error(), "archive of more than 1000 bytes: over the limit") {
			t.Errorf("got %v", err)
		}
		untouched(t, s, false)
	})
}

func TestSaveRefuses(t *testing.T) {
	s := openStore(t)
	stock(t, s, smallImage(t, "x"), "a")
	for _, tt := range []struct {
		refs   []string
		format archive.Format
		kind   error
		text   string
	}{
		{nil, archive.OCI, ErrInvalid, "save: no image given: invalid"},
		{[]string{"b"}, archive.OCI, ErrNotFound, "save: image b: not found"},
		{[]string{"a"}, "zip", ErrInvalid, `save: format "zip" (want "docker" or "oci"): invalid`},
	} {
		err := s.Save(t.Context(), tt.refs, io.Discard, tt.format)
		if !errors.Is(err, tt.kind) || err.Error() != tt.text {
			t.Errorf("got %v, want %s", err, tt.text)
		}
	}
	r, w := io.Pipe()
	r.CloseWithError(errors.New("disk unplugged"))
	if err := s.Save(t.Context(), []string{"a"}, w, archive.OCI); err == nil || err.Error() != "save: write the archive: disk unplugged" {
		t.Errorf("got %v", err)
	}
	tidy2(t, s)
}

// TestReadByOthers has other software read what Save writes.
func TestReadByOthers(t *testing.T) {
	s := openStore(t)
	img := smallImage(t, "x")
	stock(t, s, img, "a:1")
	path := filepath.Join(t.TempDir(), "a.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := s.Save(t.Context(), []string{"a:1"}, f, archive.Docker); err != nil {
		t.Fatal(err)
	}
	t.Run("go-containerregistry", func(t *testing.T) {
		got, err := tarball.ImageFromPath(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		a, _ := got.ConfigName()
		b, _ := img.ConfigName()
		if a != b {
			t.Errorf("config %s, want %s", a, b)
		}
	})
	t.Run("tar", func(t *testing.T) {
		bin, err := exec.LookPath("tar")
		if err != nil {
			t.Skip("tar is not installed")
		}
		dir := t.TempDir()
		if out, err := exec.Command(bin, "-xf", path, "-C", dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		p, err := layout.FromPath(dir)
		if err != nil {
			t.Fatal(err)
		}
		want, _ := img.Digest()
		got, err := p.Image(want)
		if err != nil {
			t.Fatal(err)
		}
		if d, err := got.Digest(); err != nil || d != want {
			t.Errorf("digest %s, want %s", d, want)
		}
	})
}
