// Package broker releases secrets to machines that have proved what they are. It verifies evidence against reference
// values and the owner's signature of the manifest, decides by its policy, writes the decision to its log, and only then
// answers. It knows machines by what they show only, and runs apart from all that they run on.
package broker

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"time"

	"manis/attest"
	"manis/broker/facts"
	"manis/broker/release"
	"manis/trust"
)

// Policy is what a broker is configured with.
type Policy struct {
	// Owners are the public keys, PKIX DER, whose manifests are trusted.
	Owners [][]byte `json:"owners"`
	// References are the machines that are.
	References []attest.Reference `json:"references"`
	// Secrets by name.
	Secrets map[string]Secret `json:"secrets"`
	// MinVersion refuses manifests with a lower version.
	MinVersion uint64 `json:"minVersion,omitempty"`
	// ProductionWithoutHardware releases production secrets to machines that no hardware protects, too.
	ProductionWithoutHardware bool `json:"productionWithoutHardware,omitempty"`
	// Rules are conditions of the owner's own, besides all that; nil: none.
	Rules facts.Rules `json:"-"`
}

// Secret is one that can be released.
type Secret struct {
	// Value is its content.
	Value []byte `json:"value"`
	// Test: it protects nothing, and may go to machines that no hardware protects. Otherwise it is a production secret.
	Test bool `json:"test,omitempty"`
	// Manifests are digests, hex, of those that may have it. Empty: any of a trusted owner that asks for it.
	Manifests []string `json:"manifests,omitempty"`
}

type challenge struct {
	Nonce []byte `json:"nonce"`
}

type claim struct {
	Evidence json.RawMessage `json:"evidence"`
	Manifest json.RawMessage `json:"manifest"`
}

type refusal struct {
	Error string `json:"error"`
}

// maxClaim bounds a request, bytes.
const maxClaim = 512 << 10

// Broker is a server of secrets.
type Broker struct {
	policy Policy
	key    ed25519.PrivateKey
	owners []ed25519.PublicKey
	log    *Log
	nonces *nonces
	now    func() time.Time
}

// New makes a broker with this key, which writes what it decides to log.
func New(policy Policy, key ed25519.PrivateKey, log *Log) (*Broker, error) {
	b := &Broker{policy: policy, key: key, log: log, nonces: newNonces(), now: time.Now}
	if len(policy.References) == 0 || len(policy.Owners) == 0 {
		return nil, errors.New("the broker's policy names no owners or no reference values, so that it would refuse everybody")
	}
	for i := range policy.References {
		if err := policy.References[i].Check(); err != nil {
			return nil, fmt.Errorf("the broker's policy: %w", err)
		}
	}
	for _, der := range policy.Owners {
		owner, err := trust.ParseKey(der)
		if err != nil {
			return nil, fmt.Errorf("the broker's policy: owners: %w", err)
		}
		b.owners = append(b.owners, owner)
	}
	size := 0
	for _, s := range policy.Secrets {
		size += len(s.Value)
	}
	if size > release.MaxSecrets {
		return nil, fmt.Errorf("the broker's policy: the secrets have %d bytes, more than %d", size, release.MaxSecrets)
	}
	return b, nil
}

// ServeHTTP answers POST /v1/challenge and POST /v1/release.
func (b *Broker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var answer any
	var err error
	switch {
	case r.Method != http.MethodPost:
		http.Error(w, "POST only", http.StatusMethodNotAllowed)
		return
	case r.URL.Path == "/v1/challenge":
		answer = challenge{b.nonces.give(b.now())}
	case r.URL.Path == "/v1/release":
		var body []byte
		if body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, maxClaim)); err == nil {
			answer, err = b.release(body)
		}
	default:
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusForbidden)
		answer = refusal{err.Error()}
	}
	json.NewEncoder(w).Encode(answer)
}

// release decides, writes that down, and answers.
func (b *Broker) release(body []byte) (*release.Release, error) {
	d := Decision{At: b.now().UTC()}
	answer, err := b.decide(body, &d)
	if err != nil {
		d.Refused = err.Error()
	}
	if lerr := b.log.Add(d); lerr != nil {
		return nil, fmt.Errorf("nothing is released that is not in the log: %w", lerr)
	}
	return answer, err
}

func (b *Broker) decide(body []byte, d *Decision) (*release.Release, error) {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	var c claim
	if err := dec.Decode(&c); err != nil {
		return nil, fmt.Errorf("read the request: %w", err)
	}
	e, err := attest.Parse(c.Evidence)
	if err != nil {
		return nil, err
	}
	d.Manifest, d.Nonce = hex.EncodeToString(e.Manifest), base64.StdEncoding.EncodeToString(e.Nonce)
	if err := b.nonces.good(e.Nonce, b.now()); err != nil {
		return nil, err
	}
	result, err := b.verify(func(r *attest.Reference) (*attest.Result, error) { return attest.Verify(e, r) })
	if err != nil {
		return nil, err
	}
	if err := b.nonces.spend(e.Nonce, b.now()); err != nil {
		return nil, err
	}
	d.Hardware = result.Hardware
	m, err := b.admit(c.Manifest, e, result)
	if err != nil {
		return nil, err
	}
	secrets := make(map[string][]byte)
	for _, asked := range m.Secrets {
		if secrets[asked.Name], err = b.secret(asked.Name, d.Manifest, result.Hardware); err != nil {
			return nil, err
		}
	}
	answer, err := release.Seal(b.key, e, result.Hardware, secrets)
	if err != nil {
		return nil, err
	}
	d.Secrets = slices.Sorted(maps.Keys(secrets))
	return answer, nil
}

// verify finds reference values that the evidence fits.
func (b *Broker) verify(fits func(*attest.Reference) (*attest.Result, error)) (result *attest.Result, err error) {
	for i := range b.policy.References {
		if result, err = fits(&b.policy.References[i]); err == nil {
			return result, nil
		}
	}
	return nil, err
}

// admit returns the manifest of a machine that has shown evidence, if it is in order and the rules are true.
func (b *Broker) admit(envelope []byte, e *attest.Evidence, result *attest.Result) (*trust.Manifest, error) {
	m, err := b.manifest(envelope, e)
	if err != nil || b.policy.Rules == nil {
		return m, err
	}
	verified := &facts.Facts{Result: result, Evidence: e, Manifest: m, Digest: hex.EncodeToString(e.Manifest), Now: b.now()}
	return m, b.policy.Rules.Check(verified)
}

// secret is the value of one for a manifest, by its digest in hex, on a machine that this hardware vouches for.
func (b *Broker) secret(name, manifest, hardware string) ([]byte, error) {
	s, ok := b.policy.Secrets[name]
	switch {
	case !ok || len(s.Manifests) > 0 && !slices.Contains(s.Manifests, manifest):
		return nil, fmt.Errorf("the secret %s is not for this manifest", name)
	case !s.Test && hardware == attest.HardwareNone && !b.policy.ProductionWithoutHardware:
		return nil, fmt.Errorf("the secret %s is for production, and no hardware protects this machine (hardware: none)", name)
	}
	return s.Value, nil
}

// manifest is the one that the evidence is for, if a trusted owner has signed it and it is not out of date.
func (b *Broker) manifest(envelope []byte, e *attest.Evidence) (*trust.Manifest, error) {
	for _, owner := range b.owners {
		if trust.KeyID(owner) != e.Owner {
			continue
		}
		m, canonical, err := trust.Open(envelope, owner)
		switch {
		case err != nil:
			return nil, err
		case !bytes.Equal(trust.Digest(canonical), e.Manifest):
			return nil, errors.New("the machine enforces another manifest than this one")
		case b.now().After(m.Expires):
			return nil, fmt.Errorf("the manifest was valid until %s", m.Expires.Format(time.RFC3339))
		case m.Version < b.policy.MinVersion:
			return nil, fmt.Errorf("the manifest has version %d, older than %d", m.Version, b.policy.MinVersion)
		case m.Broker == nil || !bytes.Equal(m.Broker.Key, trust.KeyDER(b.key.Public().(ed25519.PublicKey))):
			return nil, errors.New("the manifest names another broker")
		}
		return m, nil
	}
	return nil, errors.New("the manifest's owner is not one that this broker trusts")
}
