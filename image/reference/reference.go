// Package reference reads image names the way docker does: "alpine" is
// docker.io/library/alpine:latest, a first part with a dot, a colon or the
// word localhost is a registry. It must not know of registries' protocols nor
// of the local store.
package reference

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	dist "github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"manis/image/fault"
)

// Name is a full image name: a repository with a tag or a digest.
type Name struct {
	Domain string // registry host, with port: "docker.io", "[::1]:5000"
	Path   string // repository within it: "library/alpine"
	Tag    string // empty when Digest is set
	Digest string // "sha256:..."; empty when Tag is set
}

// maxLength of a name that is looked at: longer than any registry accepts.
const maxLength = 1024

// Parse reads a name. Without tag and digest it gets the tag "latest"; with
// both the digest counts, as for docker.
func Parse(s string) (Name, error) {
	if len(s) > maxLength {
		return Name{}, fmt.Errorf("image name of %d bytes: %w", len(s), fault.ErrInvalid)
	}
	named, err := dist.ParseDockerRef(s)
	if err != nil {
		msg := strings.TrimPrefix(err.Error(), "invalid reference format: ")
		return Name{}, fmt.Errorf("image name %q: %s: %w", s, msg, fault.ErrInvalid)
	}
	n := Name{Domain: dist.Domain(named), Path: dist.Path(named)}
	if d, ok := named.(dist.Digested); ok {
		n.Digest = d.Digest().String()
		if d.Digest().Algorithm() != digest.SHA256 {
			return Name{}, fmt.Errorf("image name %q: digest algorithm %s: %w", s, d.Digest().Algorithm(), fault.ErrUnsupported)
		}
	} else if t, ok := named.(dist.Tagged); ok {
		n.Tag = t.Tag()
	}
	return n, nil
}

// Repository is the name without tag and digest.
func (n Name) Repository() string { return n.Domain + "/" + n.Path }

// String is the name in full.
func (n Name) String() string {
	if n.Digest != "" {
		return n.Repository() + "@" + n.Digest
	}
	return n.Repository() + ":" + n.Tag
}

// Identifier is what a registry knows the image by within the repository: its
// digest or tag.
func (n Name) Identifier() string {
	if n.Digest != "" {
		return n.Digest
	}
	return n.Tag
}

// Familiar is the short form people write: "alpine:3.20".
func (n Name) Familiar() string {
	named, err := dist.ParseNormalizedNamed(n.String())
	if err != nil {
		return n.String()
	}
	return dist.FamiliarString(named)
}

// WithDigest is the name of the same repository by digest.
func (n Name) WithDigest(digest string) Name {
	return Name{Domain: n.Domain, Path: n.Path, Digest: digest}
}

// IsLoopback reports whether host, with or without a port, is this machine by
// its very spelling: localhost, 127.0.0.0/8 or ::1. Names are not looked up.
func IsLoopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}
