// Package attest says what evidence of a confidential machine is and verifies it: a quote of a TPM 2.0 over what
// the firmware and the kernel's EFI stub have measured, and over the manifest that the agent enforces, bound to the
// verifier's nonce and to the machine's keys. It computes the values to compare with from the files of the
// guest. Package manis/attest/tpm makes evidence in the guest; this one needs no TPM.
package attest

import (
	"crypto/sha256"
	"encoding/binary"
)

// Format is the version of the evidence.
const Format = "manis.evidence/1"

// What is in which PCR, all of the SHA-256 bank. The manifest's is the agent's, the others are those of
// firmware (TCG PC Client Platform Firmware Profile) and of Linux's EFI stub.
const (
	PCRFirmware   = 0
	PCRKernel     = 4
	PCRSecureBoot = 7
	PCRBoot       = 9 // command line, initial file system
	PCRManifest   = 15
)

// PCRs are those that a quote has, in its order.
var PCRs = []int{PCRFirmware, PCRKernel, PCRSecureBoot, PCRBoot, PCRManifest}

// Bounds of a nonce, bytes.
const (
	MinNonce = 16
	MaxNonce = 64
)

// MaxEvidence bounds evidence as JSON, bytes.
const MaxEvidence = 64 << 10

// Evidence is what a machine says of itself. Everything in it is worth what Verify makes of it.
type Evidence struct {
	Format string `json:"format"`
	Kind   string `json:"kind"` // KindTPM, or that of a driver
	Nonce  []byte `json:"nonce"`
	// Channel is the machine's HPKE public key (DHKEM X25519), to which secrets are sealed.
	Channel []byte `json:"channel"`
	// Signer is its ed25519 public key, PKIX DER, which signs the events of its audit log.
	Signer []byte `json:"signer"`
	// Manifest is the digest of the manifest in force, Owner the id of the key that has signed it.
	Manifest []byte `json:"manifest"`
	Owner    string `json:"owner"`

	// Of a TPM: Cmdline is the kernel's command line, PCRValues those of PCRs, in that order.
	Cmdline   string   `json:"cmdline,omitempty"`
	PCRValues [][]byte `json:"pcrs,omitempty"`
	// Key is the attestation key's TPMT_PUBLIC, Quote a TPMS_ATTEST, Signature a TPMT_SIGNATURE.
	Key       []byte `json:"key,omitempty"`
	Quote     []byte `json:"quote,omitempty"`
	Signature []byte `json:"signature,omitempty"`

	// Of hardware: Report is what it has signed, Certificate (DER) that of the key, where the report has not got it.
	Report      []byte `json:"report,omitempty"`
	Certificate []byte `json:"certificate,omitempty"`
}

// Binding is what a quote has as its qualifying data: nonce, keys and manifest.
func Binding(nonce, channel, signer, manifest []byte, owner string) []byte {
	h := sha256.New()
	for _, part := range [][]byte{[]byte(Format), nonce, channel, signer, manifest, []byte(owner)} {
		binary.Write(h, binary.BigEndian, uint32(len(part)))
		h.Write(part)
	}
	return h.Sum(nil)
}

// ManifestEvent is what the agent extends PCRManifest by.
func ManifestEvent(manifest []byte, owner string) []byte {
	h := sha256.New()
	h.Write([]byte("manis.manifest\x00"))
	h.Write(manifest)
	h.Write([]byte(owner))
	return h.Sum(nil)
}

// extend is TPM2_PCR_Extend.
func extend(pcr, digest []byte) []byte {
	d := sha256.Sum256(append(append([]byte(nil), pcr...), digest...))
	return d[:]
}

// replay is the value of a PCR that was zero before these events.
func replay(digests ...[]byte) []byte {
	pcr := make([]byte, sha256.Size)
	for _, d := range digests {
		pcr = extend(pcr, d)
	}
	return pcr
}
