package kbs

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
	josecipher "github.com/go-jose/go-jose/v4/cipher"
)

// Algorithms of JWE (RFC 7518) that clients have: how the content's key is encrypted, and how the content is.
const (
	algRSA  = "RSA-OAEP-256"
	algEC   = "ECDH-ES+A256KW"
	encoded = "A256GCM"
)

// Bounds of keys.
const (
	minRSABits = 2048
	maxRSABits = 4096
	keyBytes   = 32
)

// teeKey is the public key of a client, as the evidence has vouched for it.
type teeKey struct {
	jwk    map[string]string
	public crypto.PublicKey // *rsa.PublicKey or *ecdsa.PublicKey
}

// response is a flattened JWE.
type response struct {
	Protected    string `json:"protected"`
	EncryptedKey string `json:"encrypted_key"`
	IV           string `json:"iv"`
	Ciphertext   string `json:"ciphertext"`
	Tag          string `json:"tag"`
}

// header is a JWE's. Clients check its tag over their own encoding of it, in which the members come in this order: those of epk by the alphabet.
type header struct {
	Alg string `json:"alg"`
	Enc string `json:"enc"`
	EPK *epk   `json:"epk,omitempty"`
}

type epk struct {
	Curve string `json:"crv"`
	Type  string `json:"kty"`
	X     string `json:"x"`
	Y     string `json:"y"`
}

// parseKey reads a JSON Web Key that has exactly the members of its kind: each is part of what evidence is bound to.
func parseKey(members map[string]string) (*teeKey, error) {
	alg, want := algRSA, []string{"alg", "e", "kty", "n"}
	if members["kty"] == "EC" {
		alg, want = algEC, []string{"alg", "crv", "kty", "x", "y"}
	}
	if got := slices.Sorted(maps.Keys(members)); !slices.Equal(got, want) {
		return nil, fmt.Errorf("tee-pubkey: an RSA key has alg, e, kty and n, an EC key alg, crv, kty, x and y: this one has %d others or fewer", len(got))
	}
	if members["alg"] != alg {
		return nil, fmt.Errorf("tee-pubkey: alg %.40q is not %s, which this broker encrypts by for a key of kty %.10q", members["alg"], alg, members["kty"])
	}
	for name, v := range members {
		if len(v) > 1024 || name != "alg" && name != "kty" && name != "crv" && strings.Trim(v, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
			return nil, fmt.Errorf("tee-pubkey: %s is not base64url", name)
		}
	}
	b, err := json.Marshal(members)
	if err != nil {
		return nil, err
	}
	var jwk jose.JSONWebKey
	if err := jwk.UnmarshalJSON(b); err != nil {
		return nil, fmt.Errorf("tee-pubkey: %w", err)
	}
	switch k := jwk.Key.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSABits || n > maxRSABits || k.E < 65537 || k.E&1 == 0 {
			return nil, fmt.Errorf("tee-pubkey: an RSA key of %d bits with the exponent %d: there are %d to %d bits, and an odd exponent from 65537", n, k.E, minRSABits, maxRSABits)
		}
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P521() {
			return nil, errors.New("tee-pubkey: the curve is neither P-256 nor P-521")
		}
		if _, err := k.ECDH(); err != nil {
			return nil, fmt.Errorf("tee-pubkey: %w", err)
		}
	default:
		return nil, errors.New("tee-pubkey: it is no public key")
	}
	return &teeKey{jwk: members, public: jwk.Key}, nil
}

// seal encrypts for the key's owner.
func (k *teeKey) seal(value []byte) (*response, error) {
	key := make([]byte, keyBytes)
	rand.Read(key)
	h, wrapped, err := k.wrap(key)
	if err != nil {
		return nil, fmt.Errorf("encrypt for the client's key: %w", err)
	}
	b, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	iv, protected := make([]byte, gcm.NonceSize()), encode(b)
	rand.Read(iv)
	sealed := gcm.Seal(nil, iv, value, []byte(protected))
	text, tag := sealed[:len(value)], sealed[len(value):]
	return &response{Protected: protected, EncryptedKey: encode(wrapped), IV: encode(iv), Ciphertext: encode(text), Tag: encode(tag)}, nil
}

// wrap encrypts a key.
func (k *teeKey) wrap(key []byte) (*header, []byte, error) {
	switch public := k.public.(type) {
	case *rsa.PublicKey:
		wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, public, key, nil)
		return &header{Alg: algRSA, Enc: encoded}, wrapped, err
	case *ecdsa.PublicKey:
		once, err := ecdsa.GenerateKey(public.Curve, rand.Reader)
		if err != nil {
			return nil, nil, err
		}
		block, err := aes.NewCipher(josecipher.DeriveECDHES(algEC, nil, nil, once, public, keyBytes))
		if err != nil {
			return nil, nil, err
		}
		wrapped, err := josecipher.KeyWrap(block, key)
		if err != nil {
			return nil, nil, err
		}
		point, err := once.PublicKey.Bytes()
		if err != nil {
			return nil, nil, err
		}
		half := (len(point) - 1) / 2
		return &header{Alg: algEC, Enc: encoded, EPK: &epk{
			Curve: public.Params().Name, Type: "EC", X: encode(point[1 : 1+half]), Y: encode(point[1+half:]),
		}}, wrapped, nil
	}
	return nil, nil, errors.New("it is no public key")
}
