// Package trust holds the manifest of a confidential workload: the document in which its owner says
// exactly what may run, signed by the owner's key, and enforced in the guest by comparing every
// request of the host with it. It knows the agent's requests, and neither machines, brokers nor
// the network; it is linked into the agent, so it is small.
package trust

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Format is the version of the document that this release reads and writes.
const Format = "manis.manifest/1"

// Bounds of a manifest.
const (
	MaxBytes      = 192 << 10
	maxContainers = 64
	maxSecrets    = 64
	maxSecretPath = 1024
)

// Manifest is what an owner signs. Its canonical form is its JSON with the members in this order and no
// other bytes, see Encode.
type Manifest struct {
	Format string `json:"format"`
	// Version counts the owner's documents for one workload: a broker can refuse old ones.
	Version uint64 `json:"version"`
	// Expires is in UTC, whole seconds.
	Expires time.Time `json:"expires"`
	// Network is "none", "user", or "pod": the interfaces of a pod's network namespace.
	Network string `json:"network"`
	// Containers are created in this order, each once.
	Containers []Container `json:"containers"`
	// Calls are what the host may ask for besides the life of the containers: see Calls.
	Calls []string `json:"calls"`
	// Broker releases the secrets. Nil: there are none.
	Broker *Broker `json:"broker,omitempty"`
	// Secrets become files of the first container.
	Secrets []Secret `json:"secrets,omitempty"`
}

// Calls that a manifest can permit: "logs" hands the output of processes to the host, "signal" takes any signal
// in place of SIGTERM and SIGKILL, "stats" tells counters, "pause" freezes and thaws.
var Calls = []string{"logs", "pause", "signal", "stats"}

// Broker is who releases secrets.
type Broker struct {
	// URL is where the host finds it. It is a hint: what counts is the key.
	URL string `json:"url"`
	// Key is its ed25519 public key, PKIX DER.
	Key []byte `json:"key"`
}

// Secret is one that the broker releases under Name; the container finds it as the file Path with this mode.
type Secret struct {
	Name string `json:"name"`
	Path string `json:"path"`
	Mode uint32 `json:"mode"`
}

// Encode returns the canonical form of m.
func (m *Manifest) Encode() ([]byte, error) {
	if err := m.Check(); err != nil {
		return nil, err
	}
	return json.Marshal(m)
}

// Decode reads a manifest in its canonical form. Members that it does not know, members twice and any other
// spelling of the same are errors.
func Decode(b []byte) (*Manifest, error) {
	if len(b) > MaxBytes {
		return nil, fmt.Errorf("the manifest has %d bytes, more than %d", len(b), MaxBytes)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var m Manifest
	if err := d.Decode(&m); err != nil {
		return nil, fmt.Errorf("read the manifest: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("read the manifest: there is more than one document")
	}
	again, err := m.Encode()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, b) {
		return nil, errors.New("read the manifest: it is not in canonical form (make it with manis trust manifest)")
	}
	return &m, nil
}

// Digest names a manifest by its canonical form.
func Digest(canonical []byte) []byte {
	d := sha256.Sum256(canonical)
	return d[:]
}

// Check says what is wrong with m by itself.
func (m *Manifest) Check() error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("manifest: %w", fmt.Errorf(format, args...))
	}
	switch {
	case m.Format != Format:
		return fail("format %q is not %q, which this release understands", m.Format, Format)
	case m.Version == 0:
		return fail("version: it begins at 1")
	case m.Expires.IsZero() || m.Expires.Location() != time.UTC || m.Expires.Nanosecond() != 0:
		return fail("expires: a time in UTC and in whole seconds is needed")
	case m.Network != "none" && m.Network != "user" && m.Network != "pod":
		return fail("network %q is none of none, user and pod", m.Network)
	case len(m.Containers) == 0 || len(m.Containers) > maxContainers:
		return fail("%d containers: there are 1 to %d", len(m.Containers), maxContainers)
	case !slices.IsSorted(m.Calls):
		return fail("calls: they are in alphabetical order")
	case len(m.Secrets) > maxSecrets:
		return fail("%d secrets, more than %d", len(m.Secrets), maxSecrets)
	case (len(m.Secrets) > 0) != (m.Broker != nil):
		return fail("secrets and a broker come together")
	}
	for i, c := range m.Calls {
		if !slices.Contains(Calls, c) || slices.Contains(m.Calls[:i], c) {
			return fail("calls: %q is none of %s, or is there twice", c, strings.Join(Calls, ", "))
		}
	}
	for i, c := range m.Containers {
		for j, f := range c.Files {
			if f.Form != "" && f.Form != Hosts && f.Form != Resolver || f.Form == Resolver && f.SHA256 != "" {
				return fail("containers[%d].files[%d]: form %q is none, or has a digest that means nothing", i, j, f.Form)
			}
		}
	}
	if m.Broker != nil {
		if _, err := ParseKey(m.Broker.Key); err != nil {
			return fail("broker: %w", err)
		}
	}
	seen := make(map[string]bool)
	for _, s := range m.Secrets {
		switch {
		case !isWord(s.Name) || seen[s.Name]:
			return fail("secret %q: not 1 to 64 letters, digits, '-', '_', '.', or there twice", s.Name)
		case !strings.HasPrefix(s.Path, "/") || len(s.Path) > maxSecretPath || strings.Contains(s.Path+"/", "/../") || strings.IndexByte(s.Path, 0) >= 0:
			return fail("secret %s: %q is not an absolute path without ..", s.Name, s.Path)
		case s.Mode&^0o777 != 0:
			return fail("secret %s: mode %o", s.Name, s.Mode)
		}
		seen[s.Name] = true
	}
	return nil
}

// Permits reports whether the host may make a call of this name.
func (m *Manifest) Permits(call string) bool { return slices.Contains(m.Calls, call) }

func isWord(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.", r))
	}) < 0
}

// ParseKey reads an ed25519 public key in PKIX DER.
func ParseKey(der []byte) (ed25519.PublicKey, error) {
	k, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fmt.Errorf("read the public key: %w", err)
	}
	key, ok := k.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("the public key is a %T, not ed25519 (make one with manis trust keygen)", k)
	}
	return key, nil
}

// KeyDER is the PKIX form of a public key.
func KeyDER(key ed25519.PublicKey) []byte {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		panic(err) // not for a key of this type
	}
	return der
}
