package snp

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-sev-guest/abi"
	sevtest "github.com/google/go-sev-guest/testing"
	"github.com/google/go-sev-guest/verify/testdata"
	"github.com/google/go-sev-guest/verify/trust"

	"manis/attest"
	"manis/attest/snp/launch"
	"manis/attest/tpm/tpmtest"
)

// Where things are in a report (SEV-SNP ABI specification, 56860, ATTESTATION_REPORT).
const (
	atPolicy      = 0x008
	atVMPL        = 0x030
	atData        = 0x050
	atMeasurement = 0x090
)

// evidence is for the report's own REPORT_DATA where there is none of ours.
func evidence() *attest.Evidence {
	return &attest.Evidence{
		Format: attest.Format, Kind: attest.KindSNP, Nonce: bytes.Repeat([]byte{1}, 32), Channel: []byte("channel"), Signer: []byte("signer"),
		Manifest: bytes.Repeat([]byte{2}, 32), Owner: "owner",
	}
}

func reference(report []byte) *attest.Reference {
	r := tpmtest.Reference()
	r.SNP = &attest.SNPReference{Measurement: hex.EncodeToString(report[atMeasurement:][:48])}
	return r
}

// launched makes a report of a machine with the firmware of the package launch's tests, and processors of the kind EPYC-Milan.
func launched(vcpus int) func(report []byte) {
	return func(report []byte) {
		image, err := os.ReadFile("launch/testdata/amdsev.fd")
		if err != nil {
			panic(err)
		}
		firmware, err := launch.ParseFirmware(image)
		if err != nil {
			panic(err)
		}
		d, err := launch.Measure(&launch.Machine{Firmware: firmware, Hashes: new(launch.Hashes), VCPUs: vcpus, Signature: 0xa00f11, Features: 1})
		if err != nil {
			panic(err)
		}
		copy(report[atMeasurement:], d[:])
	}
}

// computed makes the reference's a machine with two processors of launched.
func computed(_ *attest.Evidence, r *attest.Reference) {
	report := make([]byte, abi.ReportSize)
	launched(2)(report)
	r.SNP = reference(report).SNP
	zeros := strings.Repeat("00", 32)
	r.SNP.Launch = &attest.SNPLaunch{FirmwareFile: zeros, Kernel: zeros, Initrd: zeros, VCPUs: 2, VCPUSignature: 0xa00f11, GuestFeatures: 1}
}

// TestPublished: the report of a Milan processor, published with its certificate, is one that AMD's roots vouch for, and is not ours.
func TestPublished(t *testing.T) {
	e, r := evidence(), reference(testdata.AttestationBytes)
	e.Report, e.Certificate = testdata.AttestationBytes[:abi.ReportSize], testdata.VcekBytes
	now := time.Date(2022, 9, 24, 1, 0, 0, 0, time.UTC)
	if _, err := check(e, r, nil, now); err == nil || !strings.Contains(err.Error(), "not for this nonce") {
		t.Errorf("got %v: its signature should be in order, and what it is for is not", err)
	}
	changed := bytes.Clone(e.Report)
	copy(changed[atData:], "another")
	e.Report = changed
	if _, err := check(e, r, nil, now); err == nil || !strings.Contains(err.Error(), "not signed by a processor") {
		t.Errorf("a changed report: got %v", err)
	}
}

// TestEvidence: reports as a processor would sign them, by keys of a root made for tests.
func TestEvidence(t *testing.T) {
	now := time.Date(2022, 9, 24, 1, 0, 0, 0, time.UTC)
	signer, err := sevtest.DefaultTestOnlyCertChain("Milan-B1", now)
	if err != nil {
		t.Fatal(err)
	}
	root := trust.AMDRootCertsProduct("Milan")
	root.ProductCerts = &trust.ProductCerts{Ark: signer.Ark, Ask: signer.Ask}
	roots := map[string][]*trust.AMDRootCerts{"Milan": {root}}
	const smt, debug, migrate = 1<<16 | 1<<17, 1 << 19, 1 << 18
	make := func(e *attest.Evidence, change func(report []byte)) {
		report := sevtest.TestCases()[0].Output
		b := report[:]
		b = bytes.Clone(b)[:abi.ReportSize]
		binary.LittleEndian.PutUint64(b[atPolicy:], smt)
		data := e.ReportData()
		copy(b[atData:], data[:])
		if change != nil {
			change(b)
		}
		rr, ss, err := signer.Sign(abi.SignedComponent(b))
		if err != nil {
			t.Fatal(err)
		}
		if err := abi.SetSignature(rr, ss, b); err != nil {
			t.Fatal(err)
		}
		e.Report, e.Certificate = b, signer.Vcek.Raw
	}
	for name, c := range map[string]struct {
		report func([]byte)
		change func(*attest.Evidence, *attest.Reference)
		want   string
	}{
		"in order":           {nil, nil, ""},
		"another nonce":      {nil, func(e *attest.Evidence, _ *attest.Reference) { e.Nonce = bytes.Repeat([]byte{9}, 32) }, "not for this nonce"},
		"another channel":    {nil, func(e *attest.Evidence, _ *attest.Reference) { e.Channel = []byte("attacker") }, "not for this nonce"},
		"another manifest":   {nil, func(e *attest.Evidence, _ *attest.Reference) { e.Manifest = bytes.Repeat([]byte{9}, 32) }, "not for this nonce"},
		"another owner":      {nil, func(e *attest.Evidence, _ *attest.Reference) { e.Owner = "attacker" }, "not for this nonce"},
		"a changed report":   {nil, func(e *attest.Evidence, _ *attest.Reference) { e.Report[atMeasurement] ^= 1 }, "not signed by a processor"},
		"another launch":     {func(b []byte) { b[atMeasurement] ^= 1 }, nil, "MEASUREMENT: the launch digest"},
		"a computed launch":  {launched(2), computed, ""},
		"more processors":    {launched(3), computed, "the reference's is of 2 processors of the signature 0xa00f11, guest features 0x1"},
		"debugging":          {func(b []byte) { binary.LittleEndian.PutUint64(b[atPolicy:], smt|debug) }, nil, "debug"},
		"migration":          {func(b []byte) { binary.LittleEndian.PutUint64(b[atPolicy:], smt|migrate) }, nil, "migration"},
		"another privilege":  {func(b []byte) { b[atVMPL] = 2 }, nil, "privilege level 2"},
		"an old platform":    {nil, func(_ *attest.Evidence, r *attest.Reference) { r.SNP.MinTCB.Microcode = 255 }, "version"},
		"no reference":       {nil, func(_ *attest.Evidence, r *attest.Reference) { r.SNP = nil }, "have none for SEV-SNP"},
		"no certificate":     {nil, func(e *attest.Evidence, _ *attest.Reference) { e.Certificate = nil }, "not signed by a processor"},
		"AMD's own key":      {nil, func(e *attest.Evidence, _ *attest.Reference) { e.Certificate = testdata.VcekBytes }, "not signed by a processor"},
		"a report cut short": {nil, func(e *attest.Evidence, _ *attest.Reference) { e.Report = e.Report[:100] }, "100 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			e := evidence()
			make(e, c.report)
			r := reference(sevtest.TestCases()[0].Output[:])
			if c.change != nil {
				c.change(e, r)
			}
			result, err := check(e, r, roots, now)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if err == nil && result.Hardware != "sev-snp" {
				t.Errorf("got %+v", result)
			}
		})
	}
	t.Run("not AMD's root", func(t *testing.T) {
		e := evidence()
		make(e, nil)
		if _, err := attest.Verify(e, reference(e.Report)); err == nil || !strings.Contains(err.Error(), "not signed by a processor") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("values of a TPM beside", func(t *testing.T) {
		e := evidence()
		make(e, nil)
		e.Cmdline = "quiet"
		if _, err := attest.Verify(e, reference(e.Report)); err == nil || !strings.Contains(err.Error(), "nothing vouches for") {
			t.Errorf("got %v", err)
		}
	})
}

// FuzzCheck: a report and its certificate are the host's to choose.
func FuzzCheck(f *testing.F) {
	f.Add(testdata.AttestationBytes[:abi.ReportSize], testdata.VcekBytes)
	f.Fuzz(func(t *testing.T, report, certificate []byte) {
		e := evidence()
		e.Report, e.Certificate = report, certificate
		if _, err := check(e, reference(testdata.AttestationBytes), nil, time.Date(2022, 9, 24, 1, 0, 0, 0, time.UTC)); err == nil {
			t.Error("it was taken for a report over our data")
		}
	})
}
