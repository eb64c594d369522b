// Package snp verifies evidence of machines with AMD SEV-SNP: a report that the processor's firmware has signed, with the certificate of
// its key. Linking it makes attest.Verify take such evidence. It asks nobody anything: the certificate comes with the
// evidence, AMD's roots are in the library, and revocations are not looked up, so that the least version of the platform in the
// reference values is what keeps old machines out.
//
// It was tried with published reports and certificates, and never with a machine.
package snp

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	pb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/validate"
	"github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/trust"

	"manis/attest"
)

func init() {
	attest.Register(attest.KindSNP, func(e *attest.Evidence, r *attest.Reference) (*attest.Result, error) {
		return check(e, r, nil, time.Now())
	})
}

// maxCertificate bounds the certificate of a report's key, bytes.
const maxCertificate = 8 << 10

// check verifies a report. roots are AMD's if nil.
func check(e *attest.Evidence, r *attest.Reference, roots map[string][]*trust.AMDRootCerts, now time.Time) (result *attest.Result, err error) {
	defer attest.Contain(&err)
	if r.SNP == nil {
		return nil, errors.New("the reference values have none for SEV-SNP")
	}
	want, err := attest.Digest("sevSnp.measurement", r.SNP.Measurement, attest.MeasurementBytes)
	if err != nil {
		return nil, err
	}
	report, err := parse(e.Report, e.Certificate)
	if err != nil {
		return nil, err
	}
	if err := verify.SnpAttestation(report, &verify.Options{DisableCertFetching: true, TrustedRoots: roots, Now: now}); err != nil {
		return nil, fmt.Errorf("the report is not signed by a processor of AMD: %w", err)
	}
	data := e.ReportData()
	if !bytes.Equal(report.Report.ReportData, data[:]) {
		return nil, errors.New("the report is not for this nonce, these keys and this manifest")
	}
	if !bytes.Equal(report.Report.Measurement, want) {
		of := "the reference does not say what it is of"
		if r.SNP.Launch != nil {
			of = "the reference's is of " + r.SNP.Launch.String()
		}
		return nil, fmt.Errorf("MEASUREMENT: the launch digest %x is not the reference's sevSnp.measurement %s: it is other firmware, another kernel, initial file system or "+
			"command line, or there are other processors or guest features (%s)", report.Report.Measurement, r.SNP.Measurement, of)
	}
	if report.Report.Vmpl != 0 {
		return nil, fmt.Errorf("the report is for the privilege level %d, not the kernel's", report.Report.Vmpl)
	}
	least := r.SNP.MinTCB
	tcb := kds.TCBParts{BlSpl: least.BootLoader, TeeSpl: least.TEE, SnpSpl: least.SNP, UcodeSpl: least.Microcode}
	err = validate.SnpAttestation(report, &validate.Options{
		// The zero policy has no debugging and no migration; several threads per core are a matter of the host's.
		GuestPolicy: abi.SnpPolicy{SMT: true},
		ReportData:  data[:], Measurement: want, MinimumTCB: tcb, MinimumLaunchTCB: tcb,
	})
	if err != nil {
		return nil, fmt.Errorf("the machine's policy or version: %w", err)
	}
	return &attest.Result{Hardware: attest.KindSNP, FirmwareKnown: true, Firmware: r.SNP.Measurement, Steps: []attest.Step{
		{Check: "signature of the report", Shows: "a processor of AMD's has signed it, by a key that AMD has certified; whether that was revoked was not looked up"},
		{Check: "REPORT_DATA", Shows: "the report was made for this nonce, the machine's channel key, the key of its log, this manifest and this owner"},
		{Check: "MEASUREMENT", Shows: "firmware and what it was started with are the reference's"},
		{Check: "POLICY", Shows: "nobody can debug the machine, or move it elsewhere"},
		{Check: "TCB", Shows: fmt.Sprintf("the platform's versions are at least boot loader %d, TEE %d, SNP %d, microcode %d", least.BootLoader, least.TEE, least.SNP, least.Microcode)},
	}}, nil
}

// parse reads a report, and the certificate (DER) of the key that has signed it. The host's table of certificates
// (SEV-ES guest-hypervisor communication block) is the agent's to read: the library trusts the lengths in it.
func parse(report, certificate []byte) (*pb.Attestation, error) {
	if len(report) != abi.ReportSize || len(certificate) > maxCertificate {
		return nil, fmt.Errorf("a report of %d bytes with a certificate of %d bytes", len(report), len(certificate))
	}
	p, err := abi.ReportToProto(report)
	if err != nil {
		return nil, fmt.Errorf("read the report: %w", err)
	}
	signer, err := abi.ParseSignerInfo(p.SignerInfo)
	if err != nil {
		return nil, fmt.Errorf("read the report: %w", err)
	}
	chain := new(pb.CertificateChain)
	switch signer.SigningKey {
	case abi.VcekReportSigner:
		chain.VcekCert = certificate
	case abi.VlekReportSigner:
		chain.VlekCert = certificate
	default:
		return nil, errors.New("the report is not signed")
	}
	return &pb.Attestation{Report: p, CertificateChain: chain}, nil
}
