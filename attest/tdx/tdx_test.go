package tdx

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tdx-guest/testing/testdata"

	"manis/attest"
	"manis/attest/tpm/tpmtest"
)

// now is when the published quote's certificates are valid.
var now = time.Date(2023, 7, 1, 1, 0, 0, 0, time.UTC)

func evidence(report []byte) *attest.Evidence {
	return &attest.Evidence{
		Format: attest.Format, Kind: attest.KindTDX, Nonce: bytes.Repeat([]byte{1}, 32), Channel: []byte("channel"), Signer: []byte("signer"),
		Manifest: bytes.Repeat([]byte{2}, 32), Owner: "owner", Report: report,
	}
}

// Where TUD of ATTRIBUTES is in a quote of version 4 (Intel TDX DCAP quoting library API): header, then 120 bytes of the body.
const atAttributes = 48 + 120

// published is a quote of a Sapphire Rapids platform: reference values that fit it, and what it is over.
func published(t testing.TB) (*attest.Reference, [64]byte) {
	quote, err := parse(testdata.RawQuote)
	if err != nil {
		t.Fatal(err)
	}
	td := quote.GetTdQuoteBody()
	r := tpmtest.Reference()
	r.TDX = &attest.TDXReference{MRTD: hex.EncodeToString(td.MrTd), MinTCB: hex.EncodeToString(td.TeeTcbSvn)}
	for _, v := range td.Rtmrs {
		r.TDX.RTMRs = append(r.TDX.RTMRs, hex.EncodeToString(v))
	}
	if err := r.Check(); err != nil {
		t.Fatal(err)
	}
	return r, [64]byte(td.ReportData)
}

func TestPublished(t *testing.T) {
	other := strings.Repeat("ab", 48)
	for name, c := range map[string]struct {
		change func(e *attest.Evidence, r *attest.Reference, data *[64]byte)
		want   string
	}{
		"in order":        {nil, ""},
		"for another":     {func(e *attest.Evidence, _ *attest.Reference, data *[64]byte) { *data = e.ReportData() }, "not for this nonce"},
		"another MRTD":    {func(_ *attest.Evidence, r *attest.Reference, _ *[64]byte) { r.TDX.MRTD = other }, "not the reference's"},
		"another RTMR":    {func(_ *attest.Evidence, r *attest.Reference, _ *[64]byte) { r.TDX.RTMRs[2] = other }, "not the reference's"},
		"an old platform": {func(_ *attest.Evidence, r *attest.Reference, _ *[64]byte) { r.TDX.MinTCB = strings.Repeat("ff", 16) }, "version"},
		"no reference":    {func(_ *attest.Evidence, r *attest.Reference, _ *[64]byte) { r.TDX = nil }, "have none for TDX"},
		"debugging":       {func(e *attest.Evidence, _ *attest.Reference, _ *[64]byte) { e.Report[atAttributes] |= 1 }, "not signed by a platform"},
		"a changed quote": {func(e *attest.Evidence, _ *attest.Reference, _ *[64]byte) { e.Report[600] ^= 1 }, "not signed by a platform"},
		"cut short":       {func(e *attest.Evidence, _ *attest.Reference, _ *[64]byte) { e.Report = e.Report[:500] }, "read the quote"},
		"a certificate":   {func(e *attest.Evidence, _ *attest.Reference, _ *[64]byte) { e.Certificate = []byte{1} }, "beside"},
	} {
		t.Run(name, func(t *testing.T) {
			r, data := published(t)
			e := evidence(bytes.Clone(testdata.RawQuote))
			if c.change != nil {
				c.change(e, r, &data)
			}
			result, err := check(e, r, data, nil, now)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if err == nil && result.Hardware != "tdx" {
				t.Errorf("got %+v", result)
			}
		})
	}
	t.Run("certificates that have expired", func(t *testing.T) {
		r, data := published(t)
		if _, err := check(evidence(testdata.RawQuote), r, data, nil, time.Date(2053, 7, 1, 0, 0, 0, 0, time.UTC)); err == nil {
			t.Error("it was accepted")
		}
	})
}

// TestDebugging: the attributes by which a host can look into a machine are refused, which the library takes.
func TestDebugging(t *testing.T) {
	quote, err := parse(testdata.RawQuote)
	if err != nil {
		t.Fatal(err)
	}
	attributes := quote.GetTdQuoteBody().TdAttributes
	if err := undebugged(attributes); err != nil {
		t.Fatal(err)
	}
	attributes[0] |= 1
	if err := undebugged(attributes); err == nil || !strings.Contains(err.Error(), "can debug") {
		t.Errorf("got %v", err)
	}
}

// TestRegistered: evidence of this kind comes here, and is bound to what it says.
func TestRegistered(t *testing.T) {
	r, _ := published(t)
	if _, err := attest.Verify(evidence(testdata.RawQuote), r); err == nil || strings.Contains(err.Error(), "nothing that this program verifies") {
		t.Errorf("got %v", err)
	}
}

// FuzzCheck: a quote is the host's to choose.
func FuzzCheck(f *testing.F) {
	r, _ := published(f)
	f.Add(testdata.RawQuote)
	f.Fuzz(func(t *testing.T, quote []byte) {
		e := evidence(quote)
		if _, err := check(e, r, e.ReportData(), nil, now); err == nil {
			t.Error("it was taken for a quote over our data")
		}
	})
}
