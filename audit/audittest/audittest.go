// Package audittest makes whole bundles for tests: signed by an owner, with evidence of a TPM in software and a log of the key that the evidence
// names, and without a machine.
package audittest

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"testing"
	"time"

	"manis/attest"
	"manis/attest/tpm/tpmtest"
	"manis/audit"
	"manis/trust"
)

// Owner signs the manifests, machine the events.
var (
	Owner   = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32))
	machine = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{5}, 32))
)

// Expect is what an auditor brings to verify what New makes.
func Expect() audit.Expect {
	return audit.Expect{Owner: Public(Owner), Reference: tpmtest.Reference()}
}

// Public is a key's other half.
func Public(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

// Manifest is that of one container.
func Manifest() *trust.Manifest {
	return &trust.Manifest{
		Format: trust.Format, Version: 3, Expires: time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC), Network: "none", Calls: []string{"logs"},
		Containers: []trust.Container{{Args: []string{"cat", "/run/greeting"}, Env: []string{"A=1"}, User: "0", Root: trust.Root{Hash: "abcd"}}},
	}
}

// New makes the bundle of a run with this manifest, in which events wrote to the log between the attestation and the end.
func New(t testing.TB, m *trust.Manifest, events func(*audit.Log)) *audit.Bundle {
	t.Helper()
	canonical, err := m.Encode()
	check(t, err)
	envelope, err := trust.Sign(canonical, Owner)
	check(t, err)
	digest, owner := trust.Digest(canonical), trust.KeyID(Public(Owner))
	made := tpmtest.New(t)
	tpmtest.Boot(t, made, tpmtest.Reference().Events(tpmtest.Cmdline, digest, owner))
	e := &attest.Evidence{
		Nonce: bytes.Repeat([]byte{7}, 32), Channel: []byte("channel"), Signer: trust.KeyDER(Public(machine)),
		Manifest: digest, Owner: owner, Cmdline: tpmtest.Cmdline,
	}
	check(t, made.Quote(e))
	evidence, err := json.Marshal(e)
	check(t, err)
	l := audit.New(machine, digest)
	l.Add(audit.Admitted, map[string]string{"owner": owner})
	l.Add(audit.Attested, map[string]string{"nonce": base64.StdEncoding.EncodeToString(e.Nonce)})
	if events != nil {
		events(l)
	}
	l.Add(audit.Closed, nil)
	b := &audit.Bundle{Format: audit.BundleFormat, Envelope: envelope, Evidence: evidence}
	for _, entry := range l.From(0, audit.MaxEvents) {
		b.Entries = append(b.Entries, entry)
	}
	return b
}

// File is a bundle's file.
func File(t testing.TB, b *audit.Bundle) []byte {
	t.Helper()
	file, err := json.Marshal(b)
	check(t, err)
	return file
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
