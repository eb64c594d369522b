package kbs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"

	"manis/attest"
	"manis/broker"
)

// teeTPM is the protocol's name of the evidence that is taken. It comes in two forms: that of guest-components' TPM attester (quote), and Manis' own
// (attest.Evidence), whose nonce is the challenge's and whose channel is the binding. The agent of a Manis machine puts a key of 32 bytes there, and lets nobody
// choose it, so evidence that it makes for the broker's own protocol is none for this one.
const teeTPM = "tpm"

// pcrs are those of a TPM: a quote is over all.
const pcrs = 24

// quote is the evidence of guest-components' attester.
type quote struct {
	Key   []byte `json:"ak_public"` // PKIX
	Quote struct {
		Signature []byte   `json:"signature"` // TPMT_SIGNATURE
		Message   []byte   `json:"message"`   // TPMS_ATTEST
		PCRs      []string `json:"pcrs"`      // hex
	} `json:"tpm_quote"`
}

// proof reads an attestation for a session's challenge.
func (s *Server) proof(open *session, body []byte) (*broker.Proof, *attestation, error) {
	a, err := parseAttestation(body)
	if err != nil {
		return nil, nil, err
	}
	if a.Runtime.Nonce != open.nonceText() {
		return nil, nil, errors.New("the evidence is not for this session's challenge")
	}
	binding, err := a.binding(open.nonceText())
	if err != nil {
		return nil, nil, err
	}
	envelope, cmdline, err := a.InitData.read()
	if err != nil {
		return nil, nil, err
	}
	p := &broker.Proof{Protocol: protocol, Nonce: open.nonce, Envelope: envelope}
	var form struct {
		Format string `json:"format"`
	}
	if json.Unmarshal(a.Evidence.Primary, &form) == nil && form.Format != "" {
		err = ownEvidence(p, a.Evidence.Primary, binding)
	} else {
		err = s.quoteEvidence(p, a.Evidence.Primary, binding, cmdline)
	}
	return p, a, err
}

// ownEvidence is Manis' form.
func ownEvidence(p *broker.Proof, primary, binding []byte) error {
	e, err := attest.Parse(primary)
	switch {
	case err != nil:
		return err
	case e.Kind != attest.KindTPM:
		return fmt.Errorf("evidence of the kind %.40q is not that of a TPM", e.Kind)
	case !bytes.Equal(e.Nonce, p.Nonce) || !bytes.Equal(e.Channel, binding):
		return errors.New("the evidence is not for this challenge and this tee-pubkey")
	}
	p.Evidence, p.Verify = e, func(r *attest.Reference) (*attest.Result, error) { return attest.Verify(e, r) }
	return nil
}

// quoteEvidence is the attester's form. What the key signs besides quotes it does not tell, as the form has no attributes of the key; nothing depends on that
// where the hardware is attest.HardwareNone, as the TPM is then the host's program with all its keys.
func (s *Server) quoteEvidence(p *broker.Proof, primary, binding []byte, cmdline string) error {
	var q quote
	if err := parse("evidence", primary, &q); err != nil {
		return err
	}
	owner, manifest, err := s.broker.Signed(p.Envelope)
	if err != nil {
		return err
	}
	p.Evidence = &attest.Evidence{Format: attest.Format, Kind: attest.KindTPM, Nonce: p.Nonce, Manifest: manifest, Owner: owner, Cmdline: cmdline}
	values, err := q.verify(binding)
	if err != nil {
		return fmt.Errorf("the evidence is refused: %w", err)
	}
	p.Verify = func(r *attest.Reference) (*attest.Result, error) {
		booted := cmdline
		if booted == "" {
			booted = r.Cmdline
		}
		result, err := r.CheckPCRs(func(n int) []byte { return values[n] }, booted, manifest, owner)
		if err != nil {
			return nil, fmt.Errorf("the evidence is refused: %w", err)
		}
		result.Steps = append([]attest.Step{
			{Check: "signature of the quote", Shows: "a key that nothing vouches for has signed it; the TPM is a program of the host's, and so is the key"},
			{Check: "qualifying data", Shows: "the quote was made for this nonce and this tee-pubkey"},
		}, result.Steps...)
		return result, nil
	}
	return nil
}

// verify checks that the quote is signed, for binding (cut to 32 bytes, as the attester does) and over all PCRs, and returns their values.
func (q *quote) verify(binding []byte) (values [][]byte, err error) {
	defer attest.Contain(&err)
	signed, err := q.signed()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(signed.ExtraData.Buffer, binding[:sha256.Size]) {
		return nil, errors.New("the quote is not for this challenge and this tee-pubkey")
	}
	info, err := signed.Attested.Quote()
	if err != nil {
		return nil, fmt.Errorf("read the quote: %w", err)
	}
	sel := info.PCRSelect.PCRSelections
	if len(sel) != 1 || sel[0].Hash != tpm2.TPMAlgSHA256 || !bytes.Equal(sel[0].PCRSelect, []byte{0xff, 0xff, 0xff}) || len(q.Quote.PCRs) != pcrs {
		return nil, fmt.Errorf("the quote is not over the %d PCRs of the SHA-256 bank", pcrs)
	}
	values = make([][]byte, pcrs)
	h := sha256.New()
	for i, s := range q.Quote.PCRs {
		if values[i], err = hex.DecodeString(s); err != nil || len(values[i]) != sha256.Size {
			return nil, fmt.Errorf("PCR %d is not a SHA-256 in hex", i)
		}
		h.Write(values[i])
	}
	if !bytes.Equal(info.PCRDigest.Buffer, h.Sum(nil)) {
		return nil, errors.New("the quote is over other values of the PCRs")
	}
	return values, nil
}

// signed returns the statement that the key has signed, which is a quote.
func (q *quote) signed() (*tpm2.TPMSAttest, error) {
	public, err := x509.ParsePKIXPublicKey(q.Key)
	if err != nil {
		return nil, fmt.Errorf("read the attestation key: %w", err)
	}
	signature, err := tpm2.Unmarshal[tpm2.TPMTSignature](q.Quote.Signature)
	if err != nil {
		return nil, fmt.Errorf("read the quote's signature: %w", err)
	}
	digest := sha256.Sum256(q.Quote.Message)
	if err := verifySignature(public, digest[:], signature); err != nil {
		return nil, err
	}
	statement, err := tpm2.Unmarshal[tpm2.TPMSAttest](q.Quote.Message)
	if err != nil {
		return nil, fmt.Errorf("read the quote: %w", err)
	}
	if statement.Magic != tpm2.TPMGeneratedValue || statement.Type != tpm2.TPMSTAttestQuote {
		return nil, errors.New("what is signed is not a quote of a TPM")
	}
	return statement, nil
}

// verifySignature takes RSASSA of 2048 to 4096 bits and ECDSA on P-256, both with SHA-256.
func verifySignature(public crypto.PublicKey, digest []byte, signature *tpm2.TPMTSignature) error {
	bad := errors.New("the quote is not signed by the attestation key")
	switch k := public.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSABits || n > maxRSABits {
			return fmt.Errorf("the attestation key has %d bits: there are %d to %d", n, minRSABits, maxRSABits)
		}
		if s, err := signature.Signature.RSASSA(); err != nil || s.Hash != tpm2.TPMAlgSHA256 || rsa.VerifyPKCS1v15(k, crypto.SHA256, digest, s.Sig.Buffer) != nil {
			return bad
		}
	case *ecdsa.PublicKey:
		s, err := signature.Signature.ECDSA()
		if err != nil || k.Curve != elliptic.P256() || s.Hash != tpm2.TPMAlgSHA256 ||
			!ecdsa.Verify(k, digest, new(big.Int).SetBytes(s.SignatureR.Buffer), new(big.Int).SetBytes(s.SignatureS.Buffer)) {
			return bad
		}
	default:
		return fmt.Errorf("the attestation key is a %T, neither RSA nor of the curve P-256", public)
	}
	return nil
}
