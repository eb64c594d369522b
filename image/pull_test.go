package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"manis/image/registry"
)

// quick is how tests pull: retries come at once.
var quick = PullOptions{Backoff: time.Millisecond, Retries: 3}

// noise is content that does not compress.
func noise(n int, seed uint64) string {
	p := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 3))
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return string(p)
}

// traffic is what a registry was asked for blobs, and what it gave out.
type traffic struct {
	mu    sync.Mutex
	gets  []string // "digest" or "digest from N"
	bytes int64
	// before may answer a blob request itself.
	before func(n int, w http.ResponseWriter, r *http.Request) bool
}

func (c *traffic) wrap(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/sha256:") {
			h.ServeHTTP(w, r)
			return
		}
		c.mu.Lock()
		what := r.URL.Path[strings.LastIndex(r.URL.Path, ":")+1:]
		if rg := r.Header.Get("Range"); rg != "" {
			from, _, _ := strings.Cut(strings.TrimPrefix(rg, "bytes="), "-")
			what += " from " + from
		}
		c.gets = append(c.gets, what)
		n, before := len(c.gets), c.before
		c.mu.Unlock()
		if before != nil && before(n, w, r) {
			return
		}
		h.ServeHTTP(&counted{ResponseWriter: w, c: c}, r)
	})
}

// asked returns the requests for one blob.
func (c *traffic) asked(d v1.Hash) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(c.gets), func(s string) bool { return !strings.HasPrefix(s, d.Hex) })
}

func (c *traffic) sent() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes
}

type counted struct {
	http.ResponseWriter
	c *traffic
}

func (w *counted) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.c.mu.Lock()
	w.c.bytes += int64(n)
	w.c.mu.Unlock()
	return n, err
}

// cutter ends each response after a number of bytes, as a broken line does.
type cutter struct {
	http.ResponseWriter
	left int
}

func (w *cutter) Write(p []byte) (int, error) {
	if len(p) <= w.left {
		w.left -= len(p)
		return w.ResponseWriter.Write(p)
	}
	w.ResponseWriter.Write(p[:w.left])
	w.left = 0
	http.NewResponseController(w.ResponseWriter).Flush()
	panic(http.ErrAbortHandler)
}

func layersOf(t testing.TB, img v1.Image) []v1.Descriptor {
	t.Helper()
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	return m.Layers
}

// whole checks that an image of the store is complete and can be converted.
func whole(t testing.TB, s *Store, img *Image) {
	t.Helper()
	if !s.whole(img.ManifestID) {
		t.Error("blobs are missing")
	}
	_, release, err := s.Rootfs(t.Context(), img, nil)
	if err != nil {
		t.Fatal(err)
	}
	release()
}

func TestPull(t *testing.T) {
	host := registryServer(t, nil)
	img := smallImage(t, "hello")
	push(t, host+"/a/b:v1", img)
	digest, _ := img.Digest()
	config, _ := img.ConfigName()
	for _, tt := range []struct{ ref, name string }{
		{host + "/a/b:v1", host + "/a/b:v1"},
		{host + "/a/b@" + digest.String(), ""},
		{host + "/a/b:other@" + digest.String(), ""},
	} {
		t.Run(tt.ref, func(t *testing.T) {
			s := openStore(t)
			got, err := s.Pull(t.Context(), tt.ref, quick)
			if err != nil {
				t.Fatal(err)
			}
			if got.ID != config.String() || got.ManifestID != digest || got.Platform.String() != HostPlatform().String() {
				t.Errorf("ID %s, manifest %s, platform %s", got.ID, got.ManifestID, got.Platform)
			}
			if name := strings.Join(got.Names, ","); name != tt.name {
				t.Errorf("names %q, want %q", name, tt.name)
			}
			if !slices.Equal(got.RepoDigests, []string{host + "/a/b@" + digest.String()}) {
				t.Errorf("digests %q", got.RepoDigests)
			}
			if !slices.Equal(got.Config.Config.Cmd, []string{"/bin/sh"}) || got.Created.Unix() != 1700000000 {
				t.Errorf("config %+v", got.Config)
			}
			whole(t, s, got)
		})
	}
}

func TestPullChoosesPlatform(t *testing.T) {
	host := registryServer(t, nil)
	add := func(p v1.Platform) mutate.IndexAddendum {
		return mutate.IndexAddendum{
			Add:        imageFor(t, p, layerOf(t, tarOf(t, testFile{name: "arch", body: p.String()}))),
			Descriptor: v1.Descriptor{Platform: &p},
		}
	}
	riscv := v1.Platform{OS: "linux", Architecture: "riscv64"}
	arm6 := v1.Platform{OS: "linux", Architecture: "arm", Variant: "v6"}
	arm7 := v1.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}
	windows := v1.Platform{OS: "windows", Architecture: "amd64", OSVersion: "10.0"}
	attestation := mutate.IndexAddendum{Add: imageFor(t, riscv), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}}}
	all := mutate.AppendManifests(empty.Index, add(riscv), add(windows), add(HostPlatform()), add(arm6), add(arm7), attestation)
	foreign := mutate.AppendManifests(empty.Index, add(riscv), add(windows), attestation)
	nested := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: all})
	pushIndex(t, host+"/all:1", all)
	pushIndex(t, host+"/foreign:1", foreign)
	pushIndex(t, host+"/nested:1", nested)
	push(t, host+"/single:1", imageFor(t, riscv))

	tests := []struct {
		ref  string
		want v1.Platform
		got  string // platform, or the end of an error
	}{
		{"all:1", v1.Platform{}, HostPlatform().String()},
		{"nested:1", v1.Platform{}, HostPlatform().String()},
		{"all:1", riscv, "linux/riscv64"},
		{"all:1", arm7, "linux/arm/v7"},
		{"all:1", v1.Platform{OS: "linux", Architecture: "arm", Variant: "v8"}, "linux/arm/v7"},
		{"all:1", v1.Platform{OS: "linux", Architecture: "s390x"}, fmt.Sprintf("want linux/s390x, the index has linux/riscv64, windows/amd64, %s, linux/arm/v6, linux/arm/v7: no image for this platform", HostPlatform())},
		{"foreign:1", v1.Platform{}, fmt.Sprintf("want %s, the index has linux/riscv64, windows/amd64: no image for this platform", HostPlatform())},
		{"single:1", v1.Platform{}, fmt.Sprintf("want %s, the image is for linux/riscv64: no image for this platform", HostPlatform())},
	}
	for _, tt := range tests {
		t.Run(tt.ref+" "+tt.want.String(), func(t *testing.T) {
			s := openStore(t)
			opts := quick
			opts.Platform = tt.want
			img, err := s.Pull(t.Context(), host+"/"+tt.ref, opts)
			if err != nil {
				if !errors.Is(err, ErrPlatform) || !strings.HasSuffix(err.Error(), tt.got) {
					t.Errorf("\ngot  %v\nwant %s", err, tt.got)
				}
				if list, _ := s.List(); len(list) != 0 {
					t.Error("an image is there all the same")
				}
				return
			}
			if img.Platform.String() != tt.got {
				t.Errorf("got %s, want %s", img.Platform, tt.got)
			}
		})
	}
	t.Run("digests", func(t *testing.T) {
		s := openStore(t)
		img, err := s.Pull(t.Context(), host+"/all:1", quick)
		if err != nil {
			t.Fatal(err)
		}
		index, _ := all.Digest()
		// Both name the image: the index's as it was pulled, and its own.
		for _, d := range []v1.Hash{index, img.ManifestID} {
			if got, err := s.Resolve(host + "/all@" + d.String()); err != nil || got.ID != img.ID {
				t.Errorf("resolve by %s: %v", d, err)
			}
		}
	})
}

func TestPullResumes(t *testing.T) {
	c := &traffic{}
	host := registryServer(t, c.wrap)
	img := imageOf(t, layerOf(t, tarOf(t, testFile{name: "f", body: noise(3<<20, 1)})))
	push(t, host+"/a:1", img)
	layer := layersOf(t, img)[0]

	t.Run("after a broken line", func(t *testing.T) {
		cuts := 0
		c.before = func(n int, w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, layer.Digest.Hex) || cuts == 6 {
				return false
			}
			cuts++
			serveBlob(t, &cutter{w, 400_000}, r, img)
			return true
		}
		defer func() { c.before = nil }()
		var retries []Event
		opts := quick
		opts.Progress = func(e Event) {
			if e.Phase == Retrying {
				retries = append(retries, e)
			}
		}
		s := openStore(t)
		got, err := s.Pull(t.Context(), host+"/a:1", opts)
		if err != nil {
			t.Fatal(err)
		}
		whole(t, s, got)
		asked := c.asked(layer.Digest)
		if len(asked) != 7 || cuts != 6 {
			t.Fatalf("asked %d times: %q", len(asked), asked)
		}
		last := int64(0)
		for i, a := range asked[1:] {
			var from int64
			fmt.Sscanf(a[len(layer.Digest.Hex):], " from %d", &from)
			if from <= last {
				t.Errorf("request %d continues at %d, after %d: %q", i+2, from, last, asked)
			}
			last = from
		}
		if len(retries) != 6 || retries[5].Current == 0 {
			t.Errorf("retries told: %+v", retries)
		}
	})

	t.Run("after an interruption", func(t *testing.T) {
		c.mu.Lock()
		c.gets, c.bytes = nil, 0
		c.mu.Unlock()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		opts := quick
		var at int64
		opts.Progress = func(e Event) {
			if e.Phase == Downloading && e.Current > 1<<20 {
				at = e.Current
				cancel()
			}
		}
		root := t.TempDir()
		s, err := Open(root)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Pull(ctx, host+"/a:1", opts); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
		if s, err = Open(root); err != nil { // as the next process does
			t.Fatal(err)
		}
		if list, _ := s.List(); len(list) != 0 {
			t.Errorf("%d images after an interrupted pull", len(list))
		}
		got, err := s.Pull(t.Context(), host+"/a:1", quick)
		if err != nil {
			t.Fatal(err)
		}
		whole(t, s, got)
		asked := c.asked(layer.Digest)
		var from int64
		if len(asked) == 2 {
			fmt.Sscanf(asked[1][len(layer.Digest.Hex):], " from %d", &from)
		}
		if from < at {
			t.Errorf("%d bytes had arrived, continued at %d: %q", at, from, asked)
		}
		if left, err := os.ReadDir(filepath.Join(root, "partial")); err != nil || len(left) != 0 {
			t.Errorf("partials left: %v, %v", left, err)
		}
	})

	// What an earlier pull left is not always of use.
	for name, content := range map[string]string{
		"from other content": noise(1<<20, 99),
		"from too much":      noise(5<<20, 99),
		"from all, damaged":  noise(int(layer.Size), 99),
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			s, err := Open(root)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, "partial", layer.Digest.Hex), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := s.Pull(t.Context(), host+"/a:1", quick)
			if err != nil {
				t.Fatal(err)
			}
			whole(t, s, got)
		})
	}

	t.Run("without ranges", func(t *testing.T) {
		first := true
		c.before = func(n int, w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, layer.Digest.Hex) {
				return false
			}
			r.Header.Del("Range")
			if first {
				first = false
				serveBlob(t, &cutter{w, 1_000_000}, r, img)
				return true
			}
			return false
		}
		defer func() { c.before = nil }()
		s := openStore(t)
		got, err := s.Pull(t.Context(), host+"/a:1", quick)
		if err != nil {
			t.Fatal(err)
		}
		whole(t, s, got)
	})

	t.Run("from a line that falls silent", func(t *testing.T) {
		release := make(chan struct{})
		first := true
		c.before = func(n int, w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, layer.Digest.Hex) || !first {
				return false
			}
			first = false
			w.Header().Set("Content-Length", fmt.Sprint(layer.Size))
			w.Write(make([]byte, 0))
			http.NewResponseController(w).Flush()
			select {
			case <-release:
			case <-r.Context().Done():
			}
			return true
		}
		defer func() { c.before = nil }()
		defer close(release)
		opts := quick
		opts.IdleTimeout = 50 * time.Millisecond
		s := openStore(t)
		got, err := s.Pull(t.Context(), host+"/a:1", opts)
		if err != nil {
			t.Fatal(err)
		}
		whole(t, s, got)
	})
}

// serveBlob gives out a blob of an image with ranges, as registries do.
func serveBlob(t testing.TB, w http.ResponseWriter, r *http.Request, img v1.Image) {
	d, err := v1.NewHash(r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:])
	if err != nil {
		t.Error(err)
		return
	}
	l, err := img.LayerByDigest(d)
	if err != nil {
		t.Error(err)
		return
	}
	rc, err := l.Compressed()
	if err != nil {
		t.Error(err)
		return
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err != nil {
		t.Error(err)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

func TestPullFromBadRegistries(t *testing.T) {
	c := &traffic{}
	host := registryServer(t, c.wrap)
	img := imageOf(t, layerOf(t, tarOf(t, testFile{name: "f", body: noise(300_000, 2)})))
	push(t, host+"/a:1", img)
	layer := layersOf(t, img)[0]
	rc, err := mustLayer(t, img, layer.Digest).Compressed()
	if err != nil {
		t.Fatal(err)
	}
	blob, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	send := func(p []byte) func(int, http.ResponseWriter, *http.Request) {
		return func(_ int, w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(p))
		}
	}
	status := func(code int) func(int, http.ResponseWriter, *http.Request) {
		return func(_ int, w http.ResponseWriter, r *http.Request) { w.WriteHeader(code) }
	}
	flipped := bytes.Clone(blob)
	flipped[1000] ^= 1
	tests := []struct {
		name    string
		answer  func(n int, w http.ResponseWriter, r *http.Request) // to a request for the layer
		until   int                                                 // from this request on all is well; 0: never
		kind    error
		text    string // the end
		partial bool   // something may be left to continue from
	}{
		{"damaged", send(flipped), 0, ErrDigest, "content does not match its digest", false},
		{"too long", send(append(bytes.Clone(blob), 'x')), 0, ErrDigest, fmt.Sprintf("content of %s is longer than its %d bytes: content does not match its digest", layer.Digest, layer.Size), true},
		{"too short", send(blob[:100_000]), 0, ErrTruncated, fmt.Sprintf("gave up after 4 attempts: after 100000 of %d bytes: the registry sent no more: content is truncated", layer.Size), true},
		{"empty", send(nil), 0, ErrTruncated, "the registry sent no more: content is truncated", false},
		{"too short, then well", send(blob[:100_000]), 3, nil, "", false},
		{"server error", status(500), 0, ErrUnavailable, "gave up after 4 attempts: answered 500 Internal Server Error", false},
		{"server error, then well", status(503), 3, nil, "", false},
		{"gateway trouble, then well", status(502), 2, nil, "", false},
		{"gone", status(404), 0, ErrNotFound, "not found (are name and tag right?)", false},
		{"forbidden", status(403), 0, ErrUnauthorized, "access denied (is the name right, and does docker's config.json hold a login for the registry?)", false},
		{"another range than asked for", func(_ int, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 5-%d/%d", layer.Size-1, layer.Size))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(blob[5:])
		}, 0, ErrInvalid, fmt.Sprintf("the registry answered with another range (bytes 5-%d/%d) than asked for: invalid", layer.Size-1, layer.Size), false},
		{"redirect in a circle", func(_ int, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		}, 0, ErrUnavailable, "stopped after 10 redirects: registry unavailable", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := 0
			c.before = func(_ int, w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, layer.Digest.Hex) {
					return false
				}
				if n++; tt.until > 0 && n >= tt.until {
					return false
				}
				tt.answer(n, w, r)
				return true
			}
			defer func() { c.before = nil }()
			s := openStore(t)
			img, err := s.Pull(t.Context(), host+"/a:1", quick)
			if tt.kind == nil {
				if err != nil {
					t.Fatal(err)
				}
				whole(t, s, img)
				return
			}
			if !errors.Is(err, tt.kind) || !strings.HasSuffix(err.Error(), tt.text) || !strings.HasPrefix(err.Error(), "pull "+host+"/a:1: layer 1 of 1: ") {
				t.Errorf("\ngot  %v\nwant pull ...: layer 1 of 1: ...%s", err, tt.text)
			}
			untouched(t, s, tt.partial)
		})
	}
}

func mustLayer(t testing.TB, img v1.Image, d v1.Hash) v1.Layer {
	t.Helper()
	l, err := img.LayerByDigest(d)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// untouched checks that a failed operation left nothing but partials.
func untouched(t testing.TB, s *Store, partial bool) {
	t.Helper()
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Errorf("%d images are there (%v)", len(list), err)
	}
	for _, d := range []string{"blobs/sha256", "lease", "tmp", "rootfs", "partial"} {
		entries, err := os.ReadDir(filepath.Join(s.root, d))
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) > 0 && (d != "partial" || !partial) {
			t.Errorf("%s holds %v", d, entries)
		}
	}
}

func TestPullRefusesBadManifests(t *testing.T) {
	good := smallImage(t, "x")
	raw, err := good.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	config, err := good.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	edit := func(change func(m map[string]any)) []byte {
		var m map[string]any
		if err := json.Unmarshal(raw, &m); err != nil {
			t.Fatal(err)
		}
		change(m)
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	layer := func(m map[string]any) map[string]any { return m["layers"].([]any)[0].(map[string]any) }
	conf := func(m map[string]any) map[string]any { return m["config"].(map[string]any) }
	withConfig := func(cfg string) []byte {
		sum := sha256.Sum256([]byte(cfg))
		return edit(func(m map[string]any) {
			conf(m)["digest"] = "sha256:" + hex.EncodeToString(sum[:])
			conf(m)["size"] = len(cfg)
		})
	}
	noLayers := strings.Replace(string(config), `"diff_ids":["`, `"diff_ids":["sha256:`+strings.Repeat("0", 64)+`","`, 1)
	hex0 := strings.Repeat("0", 64)
	tests := []struct {
		name     string
		manifest []byte
		config   string // beside the good one
		kind     error
		text     string // the end
	}{
		{"no JSON", []byte("<html>"), "", ErrInvalid, "image manifest: invalid character '<' looking for beginning of value: invalid"},
		{"empty", []byte(""), "", ErrInvalid, "image manifest: EOF: invalid"},
		{"two values", append(bytes.Clone(raw), '{', '}'), "", ErrInvalid, "image manifest: more than one JSON value: invalid"},
		{"a list", []byte("[]"), "", ErrInvalid, "invalid"},
		{"nothing in it", []byte("{}"), "", ErrInvalid, "image manifest without a config: invalid"},
		{"schema 1", []byte(`{"schemaVersion":1,"name":"x","tag":"y","fsLayers":[]}`), "", ErrUnsupported, "image manifest of schema 1, deprecated since 2017 (push the image again with a current tool): not supported"},
		{"config of an artifact", edit(func(m map[string]any) { conf(m)["mediaType"] = "application/vnd.example.chart" }), "", ErrUnsupported, `this is no container image: its config is of media type "application/vnd.example.chart": not supported`},
		{"unknown layers", edit(func(m map[string]any) { layer(m)["mediaType"] = "application/x-squashfs" }), "", ErrUnsupported, `image manifest, layer 1: media type "application/x-squashfs": not supported`},
		{"encrypted layers", edit(func(m map[string]any) {
			layer(m)["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"
		}), "", ErrUnsupported, `media type "application/vnd.oci.image.layer.v1.tar+gzip+encrypted": not supported`},
		{"negative size", edit(func(m map[string]any) { layer(m)["size"] = -1 }), "", ErrInvalid, "image manifest, layer 1: size -1: invalid"},
		{"digest that is a path", edit(func(m map[string]any) { layer(m)["digest"] = "sha256:../../../etc/passwd" }), "", ErrInvalid, "invalid"},
		{"short digest", edit(func(m map[string]any) { layer(m)["digest"] = "sha256:abc" }), "", ErrInvalid, "invalid"},
		{"capital digest", edit(func(m map[string]any) { layer(m)["digest"] = "sha256:" + strings.Repeat("A", 64) }), "", ErrInvalid, "invalid"},
		{"other algorithm", edit(func(m map[string]any) { layer(m)["digest"] = "sha512:" + hex0 + hex0 }), "", ErrUnsupported, "only sha256 is read: not supported"},
		{"huge config", edit(func(m map[string]any) { conf(m)["size"] = 1 << 40 }), "", ErrLimit, "image config of 1099511627776 bytes (at most 16777216 allowed): over the limit"},
		{"huge layers", edit(func(m map[string]any) { layer(m)["size"] = int64(1) << 62 }), "", ErrLimit, "layers of more than 137438953472 bytes: over the limit"},
		{"sizes that overflow", edit(func(m map[string]any) {
			layer(m)["size"] = int64(math.MaxInt64)
			m["layers"] = []any{layer(m), layer(m)}
		}), strings.Replace(string(config), `"diff_ids":[`, `"diff_ids":["sha256:`+hex0+`",`, 1), ErrInvalid, "invalid"},
		{"many layers", edit(func(m map[string]any) { m["layers"] = slices.Repeat([]any{layer(m)}, 5000) }), "", ErrLimit, "image manifest with 5000 layers (at most 4096 allowed): over the limit"},
		{"config of wrong size", edit(func(m map[string]any) { conf(m)["size"] = len(config) - 1 }), "", ErrDigest, "content does not match its digest"},
		{"config missing", edit(func(m map[string]any) { conf(m)["digest"] = "sha256:" + hex0 }), "", ErrNotFound, `blob unknown: the registry has lost a part of the image: "Unknown blob"`},
		{"layers and diff IDs differ", withConfig(noLayers), noLayers, ErrInvalid, "image config names 2 layers, the manifest 1: invalid"},
		{"config is no JSON", withConfig("hello"), "hello", ErrInvalid, "image config: invalid character 'h' looking for beginning of value: invalid"},
		{"diff ID that is a path", withConfig(`{"os":"linux","rootfs":{"diff_ids":["sha256:../x"]}}`), `{"os":"linux","rootfs":{"diff_ids":["sha256:../x"]}}`, ErrInvalid, "invalid"},
		{"index of nothing", []byte(`{"schemaVersion":2,"manifests":[]}`), "", ErrPlatform, fmt.Sprintf("want %s, the index has none: no image for this platform", HostPlatform())},
		{"index with a huge entry", []byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:` + hex0 + `","size":999999999}]}`), "", ErrInvalid, "image index, entry 1: size 999999999 (at most 8388608 allowed): invalid"},
		{"index of a missing image", []byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:` + hex0 + `","size":9}]}`), "", ErrNotFound, `manifest unknown (is the tag right?): "Unknown manifest"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			host := registryServer(t, func(h http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					sum := sha256.Sum256([]byte(tt.config))
					switch {
					case strings.HasSuffix(r.URL.Path, "/manifests/bad"):
						w.Write(tt.manifest)
					case tt.config != "" && strings.HasSuffix(r.URL.Path, hex.EncodeToString(sum[:])):
						io.WriteString(w, tt.config)
					default:
						h.ServeHTTP(w, r)
					}
				})
			})
			push(t, host+"/a:good", good)
			s := openStore(t)
			_, err := s.Pull(t.Context(), host+"/a:bad", quick)
			if !errors.Is(err, tt.kind) || !strings.HasSuffix(err.Error(), tt.text) {
				t.Errorf("\ngot  %v\nwant ...%s", err, tt.text)
			}
			untouched(t, s, false)
		})
	}
	t.Run("not what its digest says", func(t *testing.T) {
		host := registryServer(t, func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.Path, "/manifests/sha256:") && r.Method == http.MethodGet {
					w.Write(append(bytes.Clone(raw), ' '))
					return
				}
				h.ServeHTTP(w, r)
			})
		})
		push(t, host+"/a:1", good)
		d, _ := good.Digest()
		_, err := openStore(t).Pull(t.Context(), host+"/a@"+d.String(), quick)
		if !errors.Is(err, ErrDigest) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("endless", func(t *testing.T) {
		host := registryServer(t, func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if !strings.Contains(r.URL.Path, "/manifests/") {
					h.ServeHTTP(w, r)
					return
				}
				for r.Context().Err() == nil {
					if _, err := w.Write(make([]byte, 1<<20)); err != nil {
						return
					}
				}
			})
		})
		_, err := openStore(t).Pull(t.Context(), host+"/a:1", quick)
		if !errors.Is(err, ErrLimit) || !strings.HasSuffix(err.Error(), "manifest is larger than 8388608 bytes: over the limit") {
			t.Errorf("got %v", err)
		}
	})
}

func TestPullUnknown(t *testing.T) {
	host := registryServer(t, nil)
	push(t, host+"/a:1", smallImage(t, "x"))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	l.Close()
	tests := []struct {
		ref  string
		kind error
		text string
	}{
		{host + "/a:2", ErrNotFound, "pull " + host + "/a:2: " + host + ": manifest unknown (is the tag right?)"},
		{host + "/b:1", ErrNotFound, "repository unknown (is the name right?)"},
		{host + "/a@sha256:" + strings.Repeat("0", 64), ErrNotFound, "manifest unknown (is the tag right?)"},
		{closed + "/a:1", ErrUnavailable, "pull " + closed + "/a:1: " + closed + ": connection refused (does a registry run there?)"},
		{"no-such-registry.invalid/a:1", ErrUnavailable, "no such host (is the registry's name right?)"},
		{"UPPER", ErrInvalid, `pull: image name "UPPER": repository name (library/UPPER) must be lowercase: invalid`},
		{"a b", ErrInvalid, `pull: image name "a b": `},
		{"", ErrInvalid, `pull: image name "": `},
		{strings.Repeat("a", 2000), ErrInvalid, "pull: image name of 2000 bytes: invalid"},
	}
	for _, tt := range tests {
		t.Run(tt.ref[:min(len(tt.ref), 40)], func(t *testing.T) {
			s := openStore(t)
			_, err := s.Pull(t.Context(), tt.ref, quick)
			if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("\ngot  %v\nwant %s", err, tt.text)
			}
			untouched(t, s, false)
		})
	}
}

// guarded asks for a login, by Basic or Bearer.
func guarded(bearer bool, realm func() string) func(http.Handler) http.Handler {
	return func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			user, pass, _ := r.BasicAuth()
			ok := user == "me" && pass == "secret"
			switch {
			case r.URL.Path == "/token":
				if !ok {
					w.WriteHeader(http.StatusUnauthorized)
					io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"incorrect username or password"}]}`)
					return
				}
				fmt.Fprintf(w, `{"token":%q}`, "t-"+r.URL.Query().Get("scope"))
				return
			case bearer:
				ok = strings.HasPrefix(r.Header.Get("Authorization"), "Bearer t-repository:private/a:pull")
			}
			if !ok {
				challenge := `Basic realm="test"`
				if bearer {
					challenge = fmt.Sprintf(`Bearer realm="%s/token",service="test"`, realm())
				}
				w.Header().Set("WWW-Authenticate", challenge)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			h.ServeHTTP(w, r)
		})
	}
}

func TestPullWithLogin(t *testing.T) {
	img := smallImage(t, "private")
	for _, bearer := range []bool{false, true} {
		t.Run(fmt.Sprintf("bearer=%v", bearer), func(t *testing.T) {
			var inner http.Handler
			open := registryServer(t, func(h http.Handler) http.Handler { inner = h; return h })
			push(t, open+"/private/a:1", img)
			var url string
			server := httptest.NewServer(guarded(bearer, func() string { return url })(inner))
			defer server.Close()
			url = server.URL
			host := strings.TrimPrefix(url, "http://")
			ref := host + "/private/a:1"

			login := func(user, pass string) string {
				return fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte(user+":"+pass)))
			}
			helper := "#!/bin/sh\nread host\n[ \"$1 $host\" = \"get " + host + "\" ] && echo '{\"Username\":\"me\",\"Secret\":\"secret\"}' && exit\n" +
				"echo 'credentials not found in native keychain'; exit 1\n"
			bin := t.TempDir()
			if err := os.WriteFile(filepath.Join(bin, "docker-credential-manistest"), []byte(helper), 0o755); err != nil {
				t.Fatal(err)
			}
			for _, tt := range []struct {
				name, config string
				ok           bool
			}{
				{"no configuration", "", false},
				{"no login", `{}`, false},
				{"login", login("me", "secret"), true},
				{"wrong login", login("me", "wrong"), false},
				{"credential helper", `{"credHelpers":{"` + host + `":"manistest"}}`, true},
				{"credential store", `{"credsStore":"manistest"}`, true},
				{"helper that is not installed", `{"credsStore":"no-such-helper"}`, false},
			} {
				t.Run(tt.name, func(t *testing.T) {
					dir := t.TempDir()
					t.Setenv("HOME", dir)
					t.Setenv("DOCKER_CONFIG", dir)
					t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
					if tt.config != "" {
						if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(tt.config), 0o600); err != nil {
							t.Fatal(err)
						}
					}
					s := openStore(t)
					got, err := s.Pull(t.Context(), ref, quick)
					if tt.ok {
						if err != nil {
							t.Fatal(err)
						}
						whole(t, s, got)
						return
					}
					if !errors.Is(err, ErrUnauthorized) || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "wrong") {
						t.Errorf("got %v", err)
					}
					untouched(t, s, false)
				})
			}
			t.Run("keychain of the caller", func(t *testing.T) {
				opts := quick
				opts.Keychain = fixedKeychain{authn.FromConfig(authn.AuthConfig{Username: "me", Password: "secret"})}
				s := openStore(t)
				if _, err := s.Pull(t.Context(), ref, opts); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

type fixedKeychain struct{ auth authn.Authenticator }

func (k fixedKeychain) Resolve(authn.Resource) (authn.Authenticator, error) { return k.auth, nil }

// worldwide is a transport in which every host name leads to one server.
func worldwide(to string) *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, to)
	}}
}

func TestPlainHTTP(t *testing.T) {
	c := &traffic{}
	host := registryServer(t, c.wrap)
	_, port, _ := net.SplitHostPort(host)
	push(t, host+"/a:1", smallImage(t, "x"))
	tests := []struct {
		ref  string
		opts PullOptions
		ok   bool
	}{
		{host + "/a:1", PullOptions{}, true},
		{"localhost:" + port + "/a:1", PullOptions{}, true},
		{"127.1.2.3:" + port + "/a:1", PullOptions{}, true},
		{"[::1]:" + port + "/a:1", PullOptions{}, true},
		{"registry.example/a:1", PullOptions{}, false},
		{"registry.example:5000/a:1", PullOptions{}, false},
		{"registry.local/a:1", PullOptions{}, false},
		{"10.0.0.1:5000/a:1", PullOptions{}, false},
		{"192.168.1.1/a:1", PullOptions{}, false},
		{"localhost.example:5000/a:1", PullOptions{}, false},
		{"10.0.0.1:5000/a:1", PullOptions{Insecure: true}, true},
		{"registry.example:5000/a:1", PullOptions{Hosts: registry.Hosts{"registry.example:5000": {Insecure: true}}}, true},
		{"registry.example:5000/a:1", PullOptions{Hosts: registry.Hosts{"other.example": {Insecure: true}}}, false},
	}
	for _, tt := range tests {
		t.Run(tt.ref, func(t *testing.T) {
			tt.opts.Transport = worldwide(host)
			tt.opts.Backoff, tt.opts.Retries = time.Millisecond, 1
			s := openStore(t)
			_, err := s.Pull(t.Context(), tt.ref, tt.opts)
			if tt.ok && err != nil || !tt.ok && !errors.Is(err, ErrUnavailable) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestPullByTLS(t *testing.T) {
	var inner http.Handler
	open := registryServer(t, func(h http.Handler) http.Handler { inner = h; return h })
	push(t, open+"/a:1", smallImage(t, "x"))
	server := httptest.NewTLSServer(inner)
	server.Config.ErrorLog = nil2log()
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "https://")

	opts := quick
	opts.Transport = server.Client().Transport
	if _, err := openStore(t).Pull(t.Context(), host+"/a:1", opts); err != nil {
		t.Errorf("with the authority known: %v", err)
	}
	if _, err := openStore(t).Pull(t.Context(), host+"/a:1", quick); !errors.Is(err, ErrUnavailable) {
		t.Errorf("with the authority unknown: %v", err)
	}
	opts = quick
	opts.Insecure = true
	if _, err := openStore(t).Pull(t.Context(), host+"/a:1", opts); err != nil {
		t.Errorf("unknown authority, but asked for: %v", err)
	}
}

func TestMirrors(t *testing.T) {
	c := &traffic{}
	mirror := registryServer(t, c.wrap)
	img := smallImage(t, "mirrored")
	push(t, mirror+"/library/alpine:latest", img)
	emptyMirror := registryServer(t, nil)
	dead := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}()
	for name, mirrors := range map[string][]string{
		"one":              {"http://" + mirror},
		"after an empty":   {"http://" + emptyMirror, "http://" + mirror},
		"after a dead one": {"http://" + dead, "http://" + mirror},
	} {
		t.Run(name, func(t *testing.T) {
			opts := quick
			opts.Hosts = registry.Hosts{"docker.io": {Mirrors: mirrors}}
			s := openStore(t)
			got, err := s.Pull(t.Context(), "alpine", opts)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got.Names, []string{"alpine:latest"}) || !strings.HasPrefix(got.RepoDigests[0], "alpine@sha256:") {
				t.Errorf("names %q, digests %q", got.Names, got.RepoDigests)
			}
			whole(t, s, got)
		})
	}
	t.Run("then the registry itself", func(t *testing.T) {
		own := registryServer(t, nil)
		push(t, own+"/x:1", img)
		opts := quick
		opts.Hosts = registry.Hosts{own: {Mirrors: []string{"http://" + emptyMirror}}}
		if _, err := openStore(t).Pull(t.Context(), own+"/x:1", opts); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("from a file", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "registries.json")
		if h, err := registry.LoadHosts(path); err != nil || len(h) != 0 {
			t.Errorf("no file: %v, %v", h, err)
		}
		if err := os.WriteFile(path, []byte(`{"docker.io":{"mirrors":["http://`+mirror+`"]}}`), 0o600); err != nil {
			t.Fatal(err)
		}
		h, err := registry.LoadHosts(path)
		if err != nil {
			t.Fatal(err)
		}
		opts := quick
		opts.Hosts = h
		if _, err := openStore(t).Pull(t.Context(), "docker.io/library/alpine:latest", opts); err != nil {
			t.Fatal(err)
		}
		os.WriteFile(path, []byte(`{"docker.io":`), 0o600)
		if _, err := registry.LoadHosts(path); !errors.Is(err, ErrInvalid) {
			t.Errorf("bad file: %v", err)
		}
	})
	t.Run("that is none", func(t *testing.T) {
		opts := quick
		opts.Hosts = registry.Hosts{"docker.io": {Mirrors: []string{"mirror.example"}}}
		_, err := openStore(t).Pull(t.Context(), "alpine", opts)
		if !errors.Is(err, ErrInvalid) || !strings.HasSuffix(err.Error(), `mirror "mirror.example" of docker.io (want http://host:port or https://host:port): invalid`) {
			t.Errorf("got %v", err)
		}
	})
}

func TestRedirects(t *testing.T) {
	img := smallImage(t, "elsewhere")
	var auths []string
	var inner http.Handler
	open := registryServer(t, func(h http.Handler) http.Handler { inner = h; return h })
	push(t, open+"/private/a:1", img)
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		auths = append(auths, r.Header.Get("Authorization"))
		inner.ServeHTTP(w, r)
	}))
	defer other.Close()
	redirecting := guarded(false, nil)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, other.URL+r.URL.Path, http.StatusTemporaryRedirect)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	server := httptest.NewServer(redirecting)
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	opts := quick
	opts.Keychain = fixedKeychain{authn.FromConfig(authn.AuthConfig{Username: "me", Password: "secret"})}
	if _, err := openStore(t).Pull(t.Context(), host+"/private/a:1", opts); err != nil {
		t.Fatal(err)
	}
	if len(auths) == 0 || strings.Join(auths, "") != "" {
		t.Errorf("credentials went to another host: %q", auths)
	}
	// A registry out in the world must not send us to our own services.
	auths = nil
	opts.Transport = worldwide(host)
	opts.Insecure = true
	_, err := openStore(t).Pull(t.Context(), "registry.example/private/a:1", opts)
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "redirects to this host's own address 127.0.0.1: refused") || len(auths) > 0 {
		t.Errorf("got %v, %d requests", err, len(auths))
	}
}

func TestPullSharesLayers(t *testing.T) {
	c := &traffic{}
	host := registryServer(t, c.wrap)
	base := layerOf(t, tarOf(t, testFile{name: "base", body: noise(100_000, 1)}))
	one := imageOf(t, base, layerOf(t, tarOf(t, testFile{name: "one", body: "1"})))
	two := imageOf(t, base, layerOf(t, tarOf(t, testFile{name: "two", body: "2"})))
	push(t, host+"/one:1", one)
	push(t, host+"/two:1", two)
	s := openStore(t)
	for _, ref := range []string{"/one:1", "/two:1", "/two:1"} {
		var exists int
		opts := quick
		opts.Progress = func(e Event) {
			if e.Phase == Exists {
				exists++
			}
		}
		if _, err := s.Pull(t.Context(), host+ref, opts); err != nil {
			t.Fatal(err)
		}
	}
	d, _ := base.Digest()
	if asked := c.asked(d); len(asked) != 1 {
		t.Errorf("the shared layer was fetched %d times", len(asked))
	}
}

func TestPullMovesTag(t *testing.T) {
	host := registryServer(t, nil)
	s := openStore(t)
	push(t, host+"/a:1", smallImage(t, "old"))
	old, err := s.Pull(t.Context(), host+"/a:1", quick)
	if err != nil {
		t.Fatal(err)
	}
	push(t, host+"/a:1", smallImage(t, "new"))
	now, err := s.Pull(t.Context(), host+"/a:1", quick)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Resolve(host + "/a:1"); err != nil || got.ID != now.ID {
		t.Errorf("name leads to %v, %v", got, err)
	}
	if got, err := s.Resolve(old.ID); err != nil || len(got.Names) != 0 {
		t.Errorf("old image: %v, %v", got, err)
	}
}

func TestPullTellsProgress(t *testing.T) {
	host := registryServer(t, nil)
	push(t, host+"/a:1", imageOf(t, layerOf(t, tarOf(t, testFile{name: "f", body: noise(1<<20, 1)})), layerOf(t, tarOf(t, testFile{name: "g", body: noise(1<<20, 2)}))))
	at := map[string]int64{}
	seen := map[Phase]int{}
	inside := false
	opts := quick
	opts.Progress = func(e Event) {
		if inside {
			t.Error("two events at a time")
		}
		inside = true
		defer func() { inside = false }()
		seen[e.Phase]++
		if e.Phase == Downloading {
			if e.Current < at[e.ID] || e.Current > e.Total {
				t.Errorf("progress of %s: %d after %d of %d", e.ID, e.Current, at[e.ID], e.Total)
			}
			at[e.ID] = e.Current
		}
	}
	if _, err := openStore(t).Pull(t.Context(), host+"/a:1", opts); err != nil {
		t.Fatal(err)
	}
	if seen[Resolving] != 1 || seen[Waiting] != 2 || seen[Downloaded] != 2 || seen[Done] != 1 || len(at) != 2 {
		t.Errorf("events %v", seen)
	}
}
