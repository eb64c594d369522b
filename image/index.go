package image

import (
	"fmt"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"manis/image/content"
)

// maxIndexDepth bounds indexes within indexes.
const maxIndexDepth = 4

// HostPlatform is what a guest on this host runs.
func HostPlatform() v1.Platform {
	return v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
}

// What images are made for: Go's names, and those that normal knows.
var (
	systems       = strings.Fields("aix android darwin dragonfly freebsd illumos ios js linux netbsd openbsd plan9 solaris wasip1 windows")
	architectures = strings.Fields("386 amd64 arm arm64 loong64 mips mips64 mips64le mipsle ppc64 ppc64le riscv64 s390x wasm " +
		"x86_64 x86-64 aarch64 armhf armel i386 i686")
)

// ParsePlatform reads "linux/arm64/v8". The operating system may be left out. What no
// image can be for is an error here, before anybody asks a registry for it.
func ParsePlatform(s string) (v1.Platform, error) {
	parts := strings.Split(s, "/")
	if len(parts) == 1 && parts[0] != "linux" {
		parts = []string{"linux", parts[0]}
	}
	p := v1.Platform{OS: parts[0]}
	switch len(parts) {
	case 3:
		p.Variant = parts[2]
		fallthrough
	case 2:
		p.Architecture = parts[1]
	case 1:
		p.Architecture = runtime.GOARCH
	default:
		return v1.Platform{}, fmt.Errorf("platform %q (want os/architecture[/variant]): %w", s, ErrInvalid)
	}
	if slices.Contains(parts, "") {
		return v1.Platform{}, fmt.Errorf("platform %q (want os/architecture[/variant]): %w", s, ErrInvalid)
	}
	switch {
	case !slices.Contains(systems, p.OS):
		return v1.Platform{}, fmt.Errorf("platform %q: unknown operating system %q (want os/architecture[/variant], such as linux/amd64): %w", s, p.OS, ErrInvalid)
	case !slices.Contains(architectures, p.Architecture):
		return v1.Platform{}, fmt.Errorf("platform %q: unknown architecture %q (want os/architecture[/variant], such as linux/amd64): %w", s, p.Architecture, ErrInvalid)
	}
	return normal(p), nil
}

// normal spells a platform as images do.
func normal(p v1.Platform) v1.Platform {
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "aarch64":
		p.Architecture = "arm64"
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel":
		p.Architecture, p.Variant = "arm", "v6"
	case "i386", "i686":
		p.Architecture = "386"
	}
	switch {
	case p.Architecture == "arm64" && p.Variant == "v8", p.Architecture == "amd64" && p.Variant == "v1":
		p.Variant = ""
	}
	return p
}

// fits tells how well an image for have runs where want is wanted: 0 not at
// all, more is better.
func fits(have, want v1.Platform) int {
	have, want = normal(have), normal(want)
	switch {
	case have.OS != want.OS || have.Architecture != want.Architecture:
		return 0
	case have.Variant == want.Variant:
		return 100
	case want.Variant == "" && have.Architecture == "amd64":
		return 0 // v2 to v4 need more than every processor has
	case want.Variant == "":
		return 50 - variantNumber(have.Variant) // any will do, the plainest first
	case have.Variant == "":
		return 50
	}
	if h, w := variantNumber(have.Variant), variantNumber(want.Variant); h > 0 && h < w {
		return h // an older variant runs on a newer processor
	}
	return 0
}

func variantNumber(v string) int {
	if len(v) == 2 && v[0] == 'v' && v[1] >= '0' && v[1] <= '9' {
		return int(v[1] - '0')
	}
	return 0
}

// isIndex reports whether a media type, or failing that the content, is of an
// index of images rather than one image.
func isIndex(mediaType string, raw []byte) bool {
	switch mediaType {
	case "application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json":
		return true
	case "application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json":
		return false
	}
	var probe struct {
		MediaType string         `json:"mediaType"`
		Manifests []any          `json:"manifests"`
		Config    map[string]any `json:"config"`
	}
	if decodeJSON(raw, &probe) != nil {
		return false
	}
	if probe.MediaType != "" && probe.MediaType != mediaType {
		return isIndex(probe.MediaType, raw)
	}
	return probe.Manifests != nil && probe.Config == nil
}

// parseIndex reads an index that anybody may have written.
func parseIndex(raw []byte) (*v1.IndexManifest, error) {
	var x v1.IndexManifest
	if err := decodeJSON(raw, &x); err != nil {
		return nil, fmt.Errorf("image index: %v: %w", err, ErrInvalid)
	}
	if len(x.Manifests) > maxLayers {
		return nil, fmt.Errorf("image index of %d images (at most %d allowed): %w", len(x.Manifests), maxLayers, ErrLimit)
	}
	for i, d := range x.Manifests {
		if err := content.CheckDigest(d.Digest); err != nil {
			return nil, fmt.Errorf("image index, entry %d: %w", i+1, err)
		}
		if d.Size < 0 || d.Size > maxManifest {
			return nil, fmt.Errorf("image index, entry %d: size %d (at most %d allowed): %w", i+1, d.Size, maxManifest, ErrInvalid)
		}
	}
	return &x, nil
}

// choose picks the image for a platform out of an index.
func choose(x *v1.IndexManifest, want v1.Platform) (v1.Descriptor, error) {
	best, score := v1.Descriptor{}, 0
	var has []string
	for _, d := range x.Manifests {
		if d.Platform == nil {
			// An index of one image need not say what it is for.
			if len(x.Manifests) == 1 {
				return d, nil
			}
			continue
		}
		if d.Platform.OS == "unknown" { // attestations of build tools
			continue
		}
		p := normal(*d.Platform)
		p.OSVersion = ""
		if !slices.Contains(has, p.String()) {
			has = append(has, p.String())
		}
		if n := fits(*d.Platform, want); n > score {
			best, score = d, n
		}
	}
	if score == 0 {
		list := strings.Join(has, ", ")
		if list == "" {
			list = "none"
		}
		return best, fmt.Errorf("want %s, the index has %s: %w", want, list, ErrPlatform)
	}
	return best, nil
}
