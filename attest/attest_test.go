package attest_test

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"manis/attest"
	"manis/attest/tpm/tpmtest"
)

// evidence is that of a machine as the reference says, by a real TPM.
func evidence(t *testing.T) *attest.Evidence {
	e := &attest.Evidence{
		Nonce: bytes.Repeat([]byte{1}, 32), Channel: []byte("channel"), Signer: []byte("signer"),
		Manifest: bytes.Repeat([]byte{2}, 32), Owner: "owner", Cmdline: tpmtest.Cmdline,
	}
	made := tpmtest.New(t)
	tpmtest.Boot(t, made, tpmtest.Reference().Events(e.Cmdline, e.Manifest, e.Owner))
	if err := made.Quote(e); err != nil {
		t.Fatal(err)
	}
	return e
}

func TestEvidence(t *testing.T) {
	good, other := evidence(t), evidence(t)
	result, err := attest.Verify(good, tpmtest.Reference())
	if err != nil {
		t.Fatalf("evidence that is in order: %v", err)
	}
	if result.Hardware != "none" || result.FirmwareKnown {
		t.Errorf("got %+v: a TPM in software is no hardware, and no firmware was named", result)
	}
	for name, c := range map[string]struct {
		change func(e *attest.Evidence, r *attest.Reference)
		want   string
	}{
		"another nonce":        {func(e *attest.Evidence, _ *attest.Reference) { e.Nonce = bytes.Repeat([]byte{9}, 32) }, "not for this nonce"},
		"another channel":      {func(e *attest.Evidence, _ *attest.Reference) { e.Channel = []byte("attacker") }, "these keys"},
		"another signer":       {func(e *attest.Evidence, _ *attest.Reference) { e.Signer = []byte("attacker") }, "these keys"},
		"another manifest":     {func(e *attest.Evidence, _ *attest.Reference) { e.Manifest = bytes.Repeat([]byte{9}, 32) }, "this manifest"},
		"another owner":        {func(e *attest.Evidence, _ *attest.Reference) { e.Owner = "attacker" }, "this manifest"},
		"another key":          {func(e *attest.Evidence, _ *attest.Reference) { e.Key = other.Key }, "not signed by the attestation key"},
		"a quote of another":   {func(e *attest.Evidence, _ *attest.Reference) { e.Quote = other.Quote }, "not signed by the attestation key"},
		"a changed PCR":        {func(e *attest.Evidence, _ *attest.Reference) { e.PCRValues[1][0] ^= 1 }, "other values"},
		"another command line": {func(e *attest.Evidence, _ *attest.Reference) { e.Cmdline = "quiet init=/bin/sh initrd=initrd" }, "init=/bin/sh"},
		"another clock": {func(e *attest.Evidence, _ *attest.Reference) {
			e.Cmdline = strings.Replace(e.Cmdline, "2596120", "1", 1)
		}, "not the one that was booted"},
		"no number": {func(e *attest.Evidence, _ *attest.Reference) {
			e.Cmdline = strings.Replace(e.Cmdline, "2596120", "1,x", 1)
		}, "tsc_early_khz"},
		"another kernel":        {func(_ *attest.Evidence, r *attest.Reference) { r.Kernel = r.Initrd }, "another kernel"},
		"another initrd":        {func(_ *attest.Evidence, r *attest.Reference) { r.Initrd = r.Kernel }, "PCR 9"},
		"another firmware":      {func(_ *attest.Evidence, r *attest.Reference) { r.Firmware = r.Kernel }, "other firmware"},
		"a PCR less":            {func(e *attest.Evidence, _ *attest.Reference) { e.PCRValues = e.PCRValues[1:] }, "PCRs"},
		"a short nonce":         {func(e *attest.Evidence, _ *attest.Reference) { e.Nonce = nil }, "nonce of 0"},
		"an unknown kind":       {func(e *attest.Evidence, _ *attest.Reference) { e.Kind = "insecure-dev" }, "insecure-dev"},
		"a key that is garbage": {func(e *attest.Evidence, _ *attest.Reference) { e.Key = []byte{1, 2, 3} }, "attestation key"},
	} {
		t.Run(name, func(t *testing.T) {
			e, r := *good, tpmtest.Reference()
			e.PCRValues = nil
			for _, v := range good.PCRValues {
				e.PCRValues = append(e.PCRValues, bytes.Clone(v))
			}
			c.change(&e, r)
			if _, err := attest.Verify(&e, r); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error about %q", err, c.want)
			}
		})
	}
	t.Run("known firmware", func(t *testing.T) {
		r := tpmtest.Reference()
		r.Firmware = hex.EncodeToString(good.PCRValues[0])
		if result, err := attest.Verify(good, r); err != nil || !result.FirmwareKnown {
			t.Errorf("got %+v, %v", result, err)
		}
	})
}

// TestSecondManifest: a machine that was made to enforce one manifest after another proves neither.
func TestSecondManifest(t *testing.T) {
	e := &attest.Evidence{Nonce: bytes.Repeat([]byte{1}, 32), Manifest: bytes.Repeat([]byte{2}, 32), Owner: "owner", Cmdline: tpmtest.Cmdline}
	made := tpmtest.New(t)
	tpmtest.Boot(t, made, tpmtest.Reference().Events(e.Cmdline, e.Manifest, e.Owner))
	if err := made.Extend(attest.PCRManifest, attest.ManifestEvent(bytes.Repeat([]byte{3}, 32), "attacker")); err != nil {
		t.Fatal(err)
	}
	if err := made.Quote(e); err != nil {
		t.Fatal(err)
	}
	if _, err := attest.Verify(e, tpmtest.Reference()); err == nil || !strings.Contains(err.Error(), "PCR 15") {
		t.Errorf("got %v, want that it does not enforce this manifest alone", err)
	}
}

// TestSecureBootPCR: the value that OVMF of Debian 12 (2022.11-6+deb12u2) without keys has shown.
func TestSecureBootPCR(t *testing.T) {
	if got := hex.EncodeToString(attest.SecureBootPCR()); got != "65caf8dd1e0ea7a6347b635d2b379c93b9a1351edc2afc3ecda700e534eb3068" {
		t.Errorf("got %s", got)
	}
}
