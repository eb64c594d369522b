package signature

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// What signatures are found by, and what they look like (cosign's "Signature Specification").
const (
	// MediaType is that of a layer that holds a payload.
	MediaType = "application/vnd.dev.cosign.simplesigning.v1+json"
	// Annotation is where in the layer's descriptor the signature is, in base64.
	Annotation = "dev.cosignproject.cosign/signature"
	// MaxPayload bounds a payload, bytes, and MaxCount how many signatures of one image are looked at.
	MaxPayload = 64 << 10
	MaxCount   = 64
)

// Tag is the one under which signatures of a manifest are kept, in the image's repository.
func Tag(digest string) string { return strings.Replace(digest, ":", "-", 1) + ".sig" }

// Signed is a payload with a signature of it, as somebody has written them: nothing of it is true before Verify.
type Signed struct {
	Payload   []byte
	Signature []byte
}

// ErrNone: no signature is one of the keys.
var ErrNone = errors.New("no signature by one of the keys")

// FromLayer makes a Signed of a layer's content and the text of its annotation.
func FromLayer(payload []byte, annotation string) (Signed, error) {
	if len(payload) > MaxPayload {
		return Signed{}, fmt.Errorf("the payload of a signature has more than %d bytes", MaxPayload)
	}
	sig, err := base64.StdEncoding.DecodeString(annotation)
	if err != nil {
		return Signed{}, fmt.Errorf("a signature is not in base64: %w", err)
	}
	return Signed{payload, sig}, nil
}

// Verify finds a signature by one of the keys of a manifest that has one of the digests ("sha256:..."). It returns the number
// of the key. Which repository the payload names does not count, as for cosign: images are copied.
func Verify(list []Signed, keys []*Key, digests []string) (key int, err error) {
	for _, s := range list[:min(len(list), MaxCount)] {
		for i, k := range keys {
			if !k.verifies(s.Payload, s.Signature) {
				continue
			}
			// Signed by the key: now it may be believed.
			signed, err := subject(s.Payload)
			if err != nil {
				continue
			}
			for _, d := range digests {
				if d == signed {
					return i, nil
				}
			}
		}
	}
	return 0, fmt.Errorf("%w among %d", ErrNone, len(list))
}

// payloadType is what a payload says that it is.
const payloadType = "cosign container image signature"

// subject is the digest that a payload names.
func subject(payload []byte) (string, error) {
	var p struct {
		Critical struct {
			Image struct {
				Digest string `json:"docker-manifest-digest"`
			} `json:"image"`
			Type string `json:"type"`
		} `json:"critical"`
	}
	if err := json.Unmarshal(payload, &p); err != nil {
		return "", err
	}
	if p.Critical.Type != payloadType || p.Critical.Image.Digest == "" {
		return "", errors.New("it is not the payload of an image's signature")
	}
	return p.Critical.Image.Digest, nil
}
