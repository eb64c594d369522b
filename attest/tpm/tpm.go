// Package tpm speaks with the guest's TPM 2.0: it adds to a PCR and makes quotes. It runs in the agent.
package tpm

import (
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"manis/attest"
)

// TPM is an open TPM with an attestation key of this boot.
type TPM struct {
	conn   transport.TPM
	handle tpm2.NamedHandle
	public []byte
}

// attestationKey is an ECC key that signs nothing but what the TPM itself has made.
var attestationKey = tpm2.TPMTPublic{
	Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
	ObjectAttributes: tpm2.TPMAObject{
		FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, Restricted: true, SignEncrypt: true,
	},
	Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
		Scheme:  tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
		CurveID: tpm2.TPMECCNistP256,
	}),
}

// New makes the attestation key in the TPM behind conn.
func New(conn transport.TPM) (*TPM, error) {
	made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(attestationKey)}.Execute(conn)
	if err != nil {
		return nil, fmt.Errorf("make the attestation key: %w", err)
	}
	public, err := made.OutPublic.Contents()
	if err != nil {
		return nil, fmt.Errorf("read the attestation key: %w", err)
	}
	return &TPM{conn: conn, handle: tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name}, public: tpm2.Marshal(public)}, nil
}

// Extend adds a SHA-256 digest to a PCR.
func (t *TPM) Extend(pcr int, digest []byte) error {
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest}}},
	}.Execute(t.conn)
	if err != nil {
		return fmt.Errorf("extend PCR %d: %w", pcr, err)
	}
	return nil
}

// Quote fills in what of evidence is the TPM's: the PCRs, the key, and the quote with its signature.
func (t *TPM) Quote(e *attest.Evidence) error {
	read, err := tpm2.PCRRead{PCRSelectionIn: attest.Selection()}.Execute(t.conn)
	if err != nil {
		return fmt.Errorf("read the PCRs: %w", err)
	}
	e.PCRValues = nil
	for _, v := range read.PCRValues.Digests {
		e.PCRValues = append(e.PCRValues, v.Buffer)
	}
	if len(e.PCRValues) != len(attest.PCRs) {
		return fmt.Errorf("read the PCRs: the TPM has %d of %d (is its SHA-256 bank on?)", len(e.PCRValues), len(attest.PCRs))
	}
	quote, err := tpm2.Quote{
		SignHandle:     tpm2.AuthHandle{Handle: t.handle.Handle, Name: t.handle.Name, Auth: tpm2.PasswordAuth(nil)},
		QualifyingData: tpm2.TPM2BData{Buffer: attest.Binding(e.Nonce, e.Channel, e.Signer, e.Manifest, e.Owner)},
		InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		PCRSelect:      attest.Selection(),
	}.Execute(t.conn)
	if err != nil {
		return fmt.Errorf("make a quote: %w", err)
	}
	e.Format, e.Kind, e.Key = attest.Format, "tpm2", t.public
	e.Quote, e.Signature = quote.Quoted.Bytes(), tpm2.Marshal(quote.Signature)
	return nil
}
