package signature

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"testing"
)

const digest = "sha256:aaaa"

func payload(digest, kind string) []byte {
	return fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":"x"},"image":{"docker-manifest-digest":%q},"type":%q},"optional":null}`, digest, kind)
}

// signer is a key of a kind with the way that cosign signs with it.
type signer struct {
	public []byte // PEM
	sign   func(message []byte) []byte
}

func signers(t testing.TB) map[string]signer {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	inPEM := func(public any) []byte {
		b, err := x509.MarshalPKIXPublicKey(public)
		must(err)
		return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: b})
	}
	list := make(map[string]signer)
	for name, curve := range map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384()} {
		k, err := ecdsa.GenerateKey(curve, rand.Reader)
		must(err)
		list[name] = signer{inPEM(&k.PublicKey), func(m []byte) []byte {
			sum := sha256.Sum256(m)
			sig, err := ecdsa.SignASN1(rand.Reader, k, sum[:])
			must(err)
			return sig
		}}
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	must(err)
	list["Ed25519"] = signer{inPEM(public), func(m []byte) []byte { return ed25519.Sign(private, m) }}
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	must(err)
	list["RSA"] = signer{inPEM(&k.PublicKey), func(m []byte) []byte {
		sum := sha256.Sum256(m)
		sig, err := rsa.SignPKCS1v15(nil, k, crypto.SHA256, sum[:])
		must(err)
		return sig
	}}
	return list
}

func TestVerify(t *testing.T) {
	all := signers(t)
	for name, s := range all {
		key, err := ParseKey(s.public)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		message := payload(digest, payloadType)
		for what, c := range map[string]struct {
			signed Signed
			ok     bool
		}{
			"as it is":            {Signed{message, s.sign(message)}, true},
			"another image":       {Signed{payload("sha256:bbbb", payloadType), s.sign(payload("sha256:bbbb", payloadType))}, false},
			"another payload":     {Signed{payload(digest, payloadType), s.sign([]byte("x"))}, false},
			"another kind":        {Signed{payload(digest, "attestation"), s.sign(payload(digest, "attestation"))}, false},
			"no payload":          {Signed{[]byte("{}"), s.sign([]byte("{}"))}, false},
			"not JSON":            {Signed{[]byte("x"), s.sign([]byte("x"))}, false},
			"no signature":        {Signed{message, nil}, false},
			"a changed payload":   {Signed{[]byte(strings.Replace(string(message), "aaaa", "cccc", 1)), s.sign(message)}, false},
			"a cut-off signature": {Signed{message, s.sign(message)[1:]}, false},
		} {
			_, err := Verify([]Signed{c.signed}, []*Key{key}, []string{"sha256:0000", digest, "sha256:cccc"})
			if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrNone) {
				t.Errorf("%s, %s: %v, want it good: %v", name, what, err, c.ok)
			}
		}
		for other, o := range all {
			if other != name {
				if _, err := Verify([]Signed{{message, o.sign(message)}}, []*Key{key}, []string{digest}); err == nil {
					t.Errorf("a signature by %s counts as one by %s", other, name)
				}
			}
		}
	}
}

func TestParseKey(t *testing.T) {
	good := signers(t)["P-256"].public
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Skip("this Go makes no weak keys: ", err)
	}
	b, err := x509.MarshalPKIXPublicKey(&weak.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	for says, text := range map[string]string{
		"no public key in PEM":     "",
		"more than one key":        string(good) + string(good),
		"not a PUBLIC KEY":         string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")})),
		"cannot be read":           string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: []byte("x")})),
		"1024 bits, at least 2048": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: b})),
	} {
		if k, err := ParseKey([]byte(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, %v, want an error that says %q", k, err, says)
		}
	}
}

func TestTag(t *testing.T) {
	if got := Tag("sha256:12"); got != "sha256-12.sig" {
		t.Errorf("got %s", got)
	}
}

// Whatever is found, nothing unsigned counts, and nothing panics.
func FuzzVerify(f *testing.F) {
	key, err := ParseKey(signers(f)["P-256"].public)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(payload(digest, payloadType), base64.StdEncoding.EncodeToString([]byte("x")))
	f.Add([]byte("{}"), "")
	f.Fuzz(func(t *testing.T, message []byte, text string) {
		subject(message)
		s, err := FromLayer(message, text)
		if err != nil {
			return
		}
		if _, err := Verify([]Signed{s}, []*Key{key}, []string{digest}); err == nil {
			t.Error("a signature that the key has not made counts")
		}
	})
}
