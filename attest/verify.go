package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// Hardware says what vouches for evidence that is in order.
const (
	// HardwareNone: a TPM in software, which the host's administrator runs. The evidence shows a change by
	// anybody else, and protects from nothing that this person wants to do.
	HardwareNone = "none"
)

// Result is what evidence has shown.
type Result struct {
	// Hardware is HardwareNone, or a kind of evidence that hardware has signed.
	Hardware string `json:"hardware"`
	// Firmware is PCR 0, hex; FirmwareKnown says that it is the reference's.
	Firmware      string `json:"firmware"`
	FirmwareKnown bool   `json:"firmwareKnown"`
	// Steps are what was checked, in order.
	Steps []Step `json:"steps,omitempty"`
}

// Step is one check that evidence has passed.
type Step struct {
	Check string `json:"check"`
	// Shows is what follows from it, for people.
	Shows string `json:"shows"`
}

// Parse reads evidence.
func Parse(b []byte) (*Evidence, error) {
	if len(b) > MaxEvidence {
		return nil, fmt.Errorf("the evidence has %d bytes, more than %d", len(b), MaxEvidence)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	e := new(Evidence)
	if err := d.Decode(e); err != nil {
		return nil, fmt.Errorf("read the evidence: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("read the evidence: there is more than one document")
	}
	return e, nil
}

// Verify checks evidence against reference values: the signature of the quote by a restricted key, that it is over the
// nonce, the keys and the manifest that the evidence names, and every PCR. The caller checks that the nonce is
// one it gave, and which manifest and owner these are.
func Verify(e *Evidence, r *Reference) (*Result, error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	fail := func(format string, args ...any) (*Result, error) {
		return nil, fmt.Errorf("the evidence is refused: %w", fmt.Errorf(format, args...))
	}
	switch {
	case e.Format != Format || e.Kind != KindTPM && drivers[e.Kind] == nil:
		return fail("%.40q of kind %.40q is nothing that this program verifies", e.Format, e.Kind)
	case len(e.Nonce) < MinNonce || len(e.Nonce) > MaxNonce:
		return fail("a nonce of %d bytes", len(e.Nonce))
	case len(e.Manifest) != sha256.Size:
		return fail("it names no manifest")
	case e.Kind != KindTPM:
		result, err := drivers[e.Kind].verify(e, r)
		if err != nil {
			return fail("%w", err)
		}
		return result, nil
	case len(e.Report) > 0 || len(e.Certificate) > 0:
		return fail("it has a report of hardware that its kind has none of")
	case len(e.PCRValues) != len(PCRs):
		return fail("%d PCRs, not %d", len(e.PCRValues), len(PCRs))
	}
	quote, err := signed(e)
	if err != nil {
		return fail("%w", err)
	}
	if want := Binding(e.Nonce, e.Channel, e.Signer, e.Manifest, e.Owner); !bytes.Equal(quote.ExtraData.Buffer, want) {
		return fail("the quote is not for this nonce, these keys and this manifest")
	}
	if err := covers(quote, e.PCRValues); err != nil {
		return fail("%w", err)
	}
	result, err := r.CheckPCRs(func(n int) []byte { return e.PCRValues[slices.Index(PCRs, n)] }, e.Cmdline, e.Manifest, e.Owner)
	if err != nil {
		return fail("%w", err)
	}
	result.Steps = append([]Step{
		{"signature of the quote", "a key that signs nothing but statements of a TPM has signed it; the TPM is a program of the host's, and so is the key"},
		{"qualifying data", "the quote was made for this nonce, the machine's channel key, the key of its log, this manifest and this owner"},
	}, result.Steps...)
	return result, nil
}

// CheckPCRs compares PCRs that a quote vouches for with the reference values, the command line that one of them is of, and the manifest that
// the machine enforces. pcr returns the value of each of PCRs. The steps of the result are those of the PCRs alone.
func (r *Reference) CheckPCRs(pcr func(n int) []byte, cmdline string, manifest []byte, owner string) (*Result, error) {
	if !bytes.Equal(pcr(PCRKernel), r.KernelPCR()) {
		return nil, fmt.Errorf("PCR %d: it is another kernel, or other firmware, than the reference's", PCRKernel)
	}
	if !bytes.Equal(pcr(PCRSecureBoot), SecureBootPCR()) {
		return nil, fmt.Errorf("PCR %d: the firmware has keys of its own", PCRSecureBoot)
	}
	if err := r.matchesCmdline(cmdline); err != nil {
		return nil, fmt.Errorf("the kernel's command line: %w", err)
	}
	if !bytes.Equal(pcr(PCRBoot), r.BootPCR(cmdline)) {
		return nil, fmt.Errorf("PCR %d: the initial file system is not the reference's, or the command line is not the one that was booted", PCRBoot)
	}
	if !bytes.Equal(pcr(PCRManifest), replay(ManifestEvent(manifest, owner))) {
		return nil, fmt.Errorf("PCR %d: the machine does not enforce this manifest, or not this one alone", PCRManifest)
	}
	firmware := hex.EncodeToString(pcr(PCRFirmware))
	if r.Firmware != "" && r.Firmware != firmware {
		return nil, fmt.Errorf("PCR %d: it is other firmware than the reference's", PCRFirmware)
	}
	result := &Result{Hardware: HardwareNone, Firmware: firmware, FirmwareKnown: r.Firmware != "", Steps: []Step{
		{fmt.Sprintf("PCR %d", PCRKernel), "the kernel is the reference's, started directly by the firmware"},
		{fmt.Sprintf("PCR %d", PCRSecureBoot), "the firmware has no keys of its own"},
		{fmt.Sprintf("PCR %d", PCRBoot), "command line and initial file system, with the agent that enforces the manifest, are the reference's"},
		{fmt.Sprintf("PCR %d", PCRManifest), "the agent enforces this manifest, and has enforced no other since the boot"},
	}}
	if result.FirmwareKnown {
		result.Steps = append(result.Steps, Step{fmt.Sprintf("PCR %d", PCRFirmware), "the firmware is the reference's"})
	}
	return result, nil
}

// signed returns the quote if the attestation key has signed it and is one that signs what the TPM itself has
// made, and nothing else.
func signed(e *Evidence) (*tpm2.TPMSAttest, error) {
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](e.Key)
	if err != nil {
		return nil, fmt.Errorf("read the attestation key: %w", err)
	}
	a := public.ObjectAttributes
	if public.Type != tpm2.TPMAlgECC || !a.Restricted || !a.SignEncrypt || a.Decrypt || !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin {
		return nil, errors.New("the attestation key is not an ECC key that the TPM has made and keeps for its own statements")
	}
	detail, err := public.Parameters.ECCDetail()
	if err != nil || detail.CurveID != tpm2.TPMECCNistP256 {
		return nil, errors.New("the attestation key is not of the curve P-256")
	}
	point, err := public.Unique.ECC()
	if err != nil {
		return nil, fmt.Errorf("read the attestation key: %w", err)
	}
	key := &ecdsa.PublicKey{Curve: elliptic.P256(), X: new(big.Int).SetBytes(point.X.Buffer), Y: new(big.Int).SetBytes(point.Y.Buffer)}
	if _, err := key.ECDH(); err != nil {
		return nil, fmt.Errorf("read the attestation key: %w", err)
	}
	signature, err := tpm2.Unmarshal[tpm2.TPMTSignature](e.Signature)
	if err != nil {
		return nil, fmt.Errorf("read the quote's signature: %w", err)
	}
	s, err := signature.Signature.ECDSA()
	if err != nil || s.Hash != tpm2.TPMAlgSHA256 {
		return nil, errors.New("the quote's signature is not ECDSA with SHA-256")
	}
	digest := sha256.Sum256(e.Quote)
	if !ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(s.SignatureR.Buffer), new(big.Int).SetBytes(s.SignatureS.Buffer)) {
		return nil, errors.New("the quote is not signed by the attestation key")
	}
	quote, err := tpm2.Unmarshal[tpm2.TPMSAttest](e.Quote)
	if err != nil {
		return nil, fmt.Errorf("read the quote: %w", err)
	}
	if quote.Magic != tpm2.TPMGeneratedValue || quote.Type != tpm2.TPMSTAttestQuote {
		return nil, errors.New("what is signed is not a quote of a TPM")
	}
	return quote, nil
}

// covers checks that a quote is over exactly these PCRs with these values.
func covers(quote *tpm2.TPMSAttest, values [][]byte) error {
	info, err := quote.Attested.Quote()
	if err != nil {
		return fmt.Errorf("read the quote: %w", err)
	}
	want := Selection()
	got := info.PCRSelect
	if len(got.PCRSelections) != 1 || got.PCRSelections[0].Hash != tpm2.TPMAlgSHA256 ||
		!bytes.Equal(got.PCRSelections[0].PCRSelect, want.PCRSelections[0].PCRSelect) {
		return errors.New("the quote is over other PCRs")
	}
	h := sha256.New()
	for _, v := range values {
		if len(v) != sha256.Size {
			return errors.New("a PCR is not a SHA-256")
		}
		h.Write(v)
	}
	if !bytes.Equal(h.Sum(nil), info.PCRDigest.Buffer) {
		return errors.New("the quote is over other values of the PCRs")
	}
	return nil
}

// Selection is that of a quote over PCRs.
func Selection() tpm2.TPMLPCRSelection {
	bits := make([]byte, 3)
	for _, p := range PCRs {
		bits[p/8] |= 1 << (p % 8)
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: bits}}}
}
