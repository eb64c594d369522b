package trust

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// PayloadType is that of a manifest in its envelope.
const PayloadType = "application/vnd.manis.manifest+json"

// maxEnvelope bounds an envelope, bytes.
const maxEnvelope = 256 << 10

// envelope is that of DSSE v1 (https://github.com/secure-systems-lab/dsse, envelope.md).
type envelope struct {
	PayloadType string      `json:"payloadType"`
	Payload     string      `json:"payload"`
	Signatures  []signature `json:"signatures"`
}

type signature struct {
	KeyID string `json:"keyid,omitempty"`
	Sig   string `json:"sig"`
}

// preauth is what is signed: DSSE's PAE.
func preauth(kind string, payload []byte) []byte {
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(kind), kind, len(payload), payload)
}

// KeyID names a public key: the SHA-256 of its PKIX form, hex.
func KeyID(key ed25519.PublicKey) string {
	d := sha256.Sum256(KeyDER(key))
	return hex.EncodeToString(d[:])
}

// Sign puts a manifest's canonical form into an envelope with the owner's signature.
func Sign(canonical []byte, owner ed25519.PrivateKey) ([]byte, error) {
	if _, err := Decode(canonical); err != nil {
		return nil, err
	}
	return json.Marshal(envelope{
		PayloadType: PayloadType,
		Payload:     base64.StdEncoding.EncodeToString(canonical),
		Signatures: []signature{{
			KeyID: KeyID(owner.Public().(ed25519.PublicKey)),
			Sig:   base64.StdEncoding.EncodeToString(ed25519.Sign(owner, preauth(PayloadType, canonical))),
		}},
	})
}

// ErrSignature: an envelope is not signed by the key that it should be signed by.
var ErrSignature = errors.New("the manifest is not signed by this owner's key")

// Open returns the manifest in an envelope, and its canonical form, if the owner has signed it.
func Open(b []byte, owner ed25519.PublicKey) (*Manifest, []byte, error) {
	e, canonical, err := parse(b)
	if err != nil {
		return nil, nil, err
	}
	for _, s := range e.Signatures {
		sig, err := base64.StdEncoding.Strict().DecodeString(s.Sig)
		if err == nil && ed25519.Verify(owner, preauth(PayloadType, canonical), sig) {
			m, err := Decode(canonical)
			return m, canonical, err
		}
	}
	return nil, nil, fmt.Errorf("%w (%s)", ErrSignature, KeyID(owner))
}

// Peek returns the manifest in an envelope whoever has signed it: for the host, which decides nothing by it.
func Peek(b []byte) (*Manifest, error) {
	_, canonical, err := parse(b)
	if err != nil {
		return nil, err
	}
	return Decode(canonical)
}

func parse(b []byte) (*envelope, []byte, error) {
	if len(b) > maxEnvelope {
		return nil, nil, fmt.Errorf("the signed manifest has %d bytes, more than %d", len(b), maxEnvelope)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var e envelope
	if err := d.Decode(&e); err != nil {
		return nil, nil, fmt.Errorf("read the signed manifest: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, nil, errors.New("read the signed manifest: there is more than one document")
	}
	if e.PayloadType != PayloadType {
		return nil, nil, fmt.Errorf("the envelope holds %q, not a manifest (%s)", e.PayloadType, PayloadType)
	}
	if len(e.Signatures) > 16 {
		return nil, nil, fmt.Errorf("the signed manifest has %d signatures, more than 16", len(e.Signatures))
	}
	canonical, err := base64.StdEncoding.Strict().DecodeString(e.Payload)
	if err != nil {
		return nil, nil, fmt.Errorf("read the signed manifest: %w", err)
	}
	return &e, canonical, nil
}
