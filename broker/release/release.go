// Package release is the answer of a broker to evidence: secrets that only the machine of the evidence can
// read, signed by the broker. Both the broker and the agent link it.
package release

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"manis/attest"
)

// Format is the version of a release.
const Format = "manis.release/1"

// MaxBytes bounds a release as JSON, MaxSecrets the content of all its secrets.
const (
	MaxBytes   = 256 << 10
	MaxSecrets = 64 << 10
)

// Release is what a broker answers.
type Release struct {
	Format string `json:"format"`
	// Binding is the qualifying data of the evidence that it answers.
	Binding []byte `json:"binding"`
	// Hardware is what vouched for the evidence.
	Hardware string `json:"hardware"`
	// Sealed is HPKE (DHKEM X25519, HKDF-SHA256, AES-256-GCM) of the secrets as a JSON object, for the evidence's
	// channel key: the encapsulated key and the ciphertext.
	Sealed []byte `json:"sealed"`
	// Signature is the broker's, ed25519, of all the above.
	Signature []byte `json:"signature"`
}

// NewKey makes the key of a machine's end.
func NewKey() (hpke.PrivateKey, error) { return hpke.DHKEM(ecdh.X25519()).GenerateKey() }

func (r *Release) signed() []byte {
	h := sha256.New()
	for _, part := range [][]byte{[]byte(r.Format), r.Binding, []byte(r.Hardware), r.Sealed} {
		fmt.Fprintf(h, "%d ", len(part))
		h.Write(part)
	}
	return append([]byte("manis release\x00"), h.Sum(nil)...)
}

// Seal makes the release of secrets to the machine of evidence that was verified.
func Seal(broker ed25519.PrivateKey, e *attest.Evidence, hardware string, secrets map[string][]byte) (*Release, error) {
	public, err := hpke.DHKEM(ecdh.X25519()).NewPublicKey(e.Channel)
	if err != nil {
		return nil, fmt.Errorf("read the machine's channel key: %w", err)
	}
	plain, err := json.Marshal(secrets)
	if err != nil {
		return nil, err
	}
	r := &Release{Format: Format, Hardware: hardware, Binding: attest.Binding(e.Nonce, e.Channel, e.Signer, e.Manifest, e.Owner)}
	if r.Sealed, err = hpke.Seal(public, hpke.HKDFSHA256(), hpke.AES256GCM(), r.Binding, plain); err != nil {
		return nil, fmt.Errorf("seal the secrets: %w", err)
	}
	r.Signature = ed25519.Sign(broker, r.signed())
	return r, nil
}

// ErrBroker: a release is not the expected broker's.
var ErrBroker = errors.New("the release is not signed by the manifest's broker")

// Open returns the secrets of a release that the broker has made for the evidence with this binding.
func Open(b []byte, broker ed25519.PublicKey, binding []byte, key hpke.PrivateKey) (map[string][]byte, *Release, error) {
	if len(b) > MaxBytes {
		return nil, nil, fmt.Errorf("the release has %d bytes, more than %d", len(b), MaxBytes)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	r := new(Release)
	if err := d.Decode(r); err != nil {
		return nil, nil, fmt.Errorf("read the release: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, nil, errors.New("read the release: there is more than one document")
	}
	switch {
	case r.Format != Format:
		return nil, nil, fmt.Errorf("the release has format %.40q, not %q", r.Format, Format)
	case !ed25519.Verify(broker, r.signed(), r.Signature):
		return nil, nil, ErrBroker
	case !bytes.Equal(r.Binding, binding):
		return nil, nil, errors.New("the release answers other evidence than this machine's last")
	}
	plain, err := hpke.Open(key, hpke.HKDFSHA256(), hpke.AES256GCM(), binding, r.Sealed)
	if err != nil {
		return nil, nil, fmt.Errorf("open the release: %w", err)
	}
	var secrets map[string][]byte
	if err := json.Unmarshal(plain, &secrets); err != nil {
		return nil, nil, fmt.Errorf("read the secrets: %w", err)
	}
	return secrets, r, nil
}
