package broker

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"manis/attest"
	"manis/trust"
)

// Proof is evidence that a machine has shown by another protocol than the broker's own. Whoever reads that protocol (manis/broker/kbs) has
// spent its nonce before; owners, reference values, rules and secrets are the broker's, and so is the log.
type Proof struct {
	// Protocol is its name in the log.
	Protocol string
	Nonce    []byte
	// Envelope is the signed manifest.
	Envelope []byte
	// Evidence has at least Kind, Manifest and Owner, and nothing that Verify does not check.
	Evidence *attest.Evidence
	// Verify checks the evidence against reference values.
	Verify func(*attest.Reference) (*attest.Result, error)
}

// Machine is one whose proof was accepted.
type Machine struct {
	broker *Broker
	proof  *Proof
	// Result is what the proof has shown.
	Result *attest.Result
}

// Errors of Machine.Release.
var (
	// ErrRefused: the machine does not get this secret. What is wrapped says why.
	ErrRefused = errors.New("refused")
	// ErrNoSecret: its manifest asks for the secret, and the broker has none of this name.
	ErrNoSecret = errors.New("the broker has no such secret")
)

// Admit accepts a machine or says why not, once that is in the log.
func (b *Broker) Admit(p *Proof) (*Machine, error) {
	d := b.decision(p)
	result, err := b.verify(p.Verify)
	if err == nil {
		d.Hardware = result.Hardware
		_, err = b.admit(p.Envelope, p.Evidence, result)
	}
	if err := b.write(&d, err); err != nil {
		return nil, err
	}
	return &Machine{broker: b, proof: p, Result: result}, nil
}

// Refuse writes to the log that a request was refused before there was evidence to decide on, and returns the reason.
func (b *Broker) Refuse(protocol string, nonce []byte, reason error) error {
	d := b.decision(&Proof{Protocol: protocol, Nonce: nonce, Evidence: new(attest.Evidence)})
	return b.write(&d, reason)
}

// Release returns the value of a secret that the machine's manifest asks for, once that is in the log. Everything but the evidence is decided on
// anew. An error is ErrRefused, ErrNoSecret, or of the log.
func (m *Machine) Release(name string) ([]byte, error) {
	b := m.broker
	d := b.decision(m.proof)
	d.Hardware = m.Result.Hardware
	value, err := m.find(name)
	if err == nil {
		d.Secrets = []string{name}
	}
	if err := b.write(&d, err); err != nil {
		return nil, err
	}
	return value, nil
}

func (m *Machine) find(name string) ([]byte, error) {
	b := m.broker
	manifest, err := b.admit(m.proof.Envelope, m.proof.Evidence, m.Result)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if !slices.ContainsFunc(manifest.Secrets, func(s trust.Secret) bool { return s.Name == name }) {
		return nil, fmt.Errorf("%w: the machine's manifest does not ask for the secret %.200q", ErrRefused, name)
	}
	if _, ok := b.policy.Secrets[name]; !ok {
		return nil, fmt.Errorf("%w: %s", ErrNoSecret, name)
	}
	value, err := b.secret(name, hex.EncodeToString(m.proof.Evidence.Manifest), m.Result.Hardware)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return value, nil
}

// Signed says which of the owners has signed a manifest (its key's id), and the manifest's digest.
func (b *Broker) Signed(envelope []byte) (owner string, digest []byte, err error) {
	for _, key := range b.owners {
		_, canonical, err := trust.Open(envelope, key)
		if err == nil {
			return trust.KeyID(key), trust.Digest(canonical), nil
		}
		if !errors.Is(err, trust.ErrSignature) {
			return "", nil, err
		}
	}
	return "", nil, errors.New("the manifest's owner is not one that this broker trusts")
}

func (b *Broker) decision(p *Proof) Decision {
	return Decision{
		At: b.now().UTC(), Protocol: p.Protocol, Nonce: base64.StdEncoding.EncodeToString(p.Nonce), Manifest: hex.EncodeToString(p.Evidence.Manifest),
	}
}

// write puts a decision and its reason into the log and returns the reason, or that of the log.
func (b *Broker) write(d *Decision, reason error) error {
	if reason != nil {
		d.Refused = reason.Error()
	}
	if err := b.log.Add(*d); err != nil {
		return fmt.Errorf("nothing is released that is not in the log: %w", err)
	}
	return reason
}
