// Package signature verifies signatures of images as cosign makes them with a key: a small JSON document, the payload,
// that names the digest of a manifest, signed as it is ("simple signing"). It knows neither registries nor the local
// store: who does hands it what was found. Signatures by an identity, without a key of one's own (certificates of Fulcio,
// entries of Rekor), are not verified here.
package signature

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// minRSA is the least length of an RSA key, bits.
const minRSA = 2048

// Key is a public key that signs images.
type Key struct{ public crypto.PublicKey }

// ParseKey reads a public key in PEM: ECDSA, Ed25519 or RSA of at least 2048 bits, as `cosign generate-key-pair` and
// openssl write them.
func ParseKey(text []byte) (*Key, error) {
	block, rest := pem.Decode(text)
	if block == nil {
		return nil, errors.New("it holds no public key in PEM")
	}
	if more, _ := pem.Decode(rest); more != nil {
		return nil, errors.New("it holds more than one key: give each its own file")
	}
	if block.Type != "PUBLIC KEY" {
		return nil, fmt.Errorf("it holds %q, not a PUBLIC KEY in PEM", block.Type)
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("its public key cannot be read: %w", err)
	}
	switch k := public.(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey:
	case *rsa.PublicKey:
		if k.N.BitLen() < minRSA {
			return nil, fmt.Errorf("its RSA key has %d bits, at least %d are needed", k.N.BitLen(), minRSA)
		}
	default:
		return nil, fmt.Errorf("its key is of a kind (%T) that signs no images", public)
	}
	return &Key{public}, nil
}

// verifies reports whether sig is the key's signature of a message: of its SHA-256 for ECDSA (in ASN.1) and RSA
// (PKCS #1 v1.5), of itself for Ed25519, as cosign signs.
func (k *Key) verifies(message, sig []byte) bool {
	sum := sha256.Sum256(message)
	switch public := k.public.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(public, sum[:], sig)
	case ed25519.PublicKey:
		return ed25519.Verify(public, message, sig)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(public, crypto.SHA256, sum[:], sig) == nil
	}
	return false
}
