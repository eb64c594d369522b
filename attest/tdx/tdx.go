// Package tdx verifies evidence of machines with Intel TDX: a quote that the platform's quoting enclave has signed, with the certificates
// of its key in it. Linking it makes attest.Verify take such evidence. It asks nobody anything: Intel's root is in the library, and
// neither revocations nor Intel's judgement of a platform's version are looked up, so that the least version in the reference
// values is what keeps old machines out.
//
// It was tried with published quotes, and never with a machine.
package tdx

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-tdx-guest/abi"
	pb "github.com/google/go-tdx-guest/proto/tdx"
	"github.com/google/go-tdx-guest/validate"
	"github.com/google/go-tdx-guest/verify"

	"manis/attest"
)

func init() {
	attest.Register(attest.KindTDX, func(e *attest.Evidence, r *attest.Reference) (*attest.Result, error) {
		return check(e, r, e.ReportData(), nil, time.Now())
	})
}

// maxQuote bounds a quote, bytes.
const maxQuote = 32 << 10

// untrusted are the attributes by which the host can debug the machine: the group TUD of ATTRIBUTES (Intel TDX module, base architecture
// specification).
const untrusted = 0xff

// check verifies a quote over data. roots are Intel's if nil.
func check(e *attest.Evidence, r *attest.Reference, data [64]byte, roots *x509.CertPool, now time.Time) (result *attest.Result, err error) {
	defer attest.Contain(&err)
	if r.TDX == nil {
		return nil, errors.New("the reference values have none for TDX")
	}
	if len(e.Certificate) > 0 {
		return nil, errors.New("it has a certificate beside those of the quote")
	}
	options := new(validate.Options)
	body := &options.TdQuoteBodyOptions
	body.ReportData = data[:]
	if body.MrTd, err = attest.Digest("tdx.mrtd", r.TDX.MRTD, attest.MeasurementBytes); err != nil {
		return nil, err
	}
	for _, v := range r.TDX.RTMRs {
		d, err := attest.Digest("tdx.rtmrs", v, attest.MeasurementBytes)
		if err != nil {
			return nil, err
		}
		body.Rtmrs = append(body.Rtmrs, d)
	}
	if r.TDX.MinTCB != "" {
		if body.MinimumTeeTcbSvn, err = attest.Digest("tdx.minTcb", r.TDX.MinTCB, attest.TDXVersionBytes); err != nil {
			return nil, err
		}
	}
	quote, err := parse(e.Report)
	if err != nil {
		return nil, err
	}
	if err := verify.TdxQuote(quote, &verify.Options{TrustedRoots: roots, Now: now}); err != nil {
		return nil, fmt.Errorf("the quote is not signed by a platform of Intel's: %w", err)
	}
	td := quote.GetTdQuoteBody()
	if !bytes.Equal(td.GetReportData(), data[:]) {
		return nil, errors.New("the quote is not for this nonce, these keys and this manifest")
	}
	if err := undebugged(td.GetTdAttributes()); err != nil {
		return nil, err
	}
	if err := validate.TdxQuote(quote, options); err != nil {
		return nil, fmt.Errorf("the measurements or the version are not the reference's: %w", err)
	}
	return &attest.Result{Hardware: attest.KindTDX, FirmwareKnown: true, Firmware: r.TDX.MRTD, Steps: []attest.Step{
		{Check: "signature of the quote", Shows: "a platform of Intel's has signed it, by a key that Intel has certified; whether that was revoked, or is out of date, was not looked up"},
		{Check: "REPORTDATA", Shows: "the quote was made for this nonce, the machine's channel key, the key of its log, this manifest and this owner"},
		{Check: "ATTRIBUTES", Shows: "nobody can debug the machine"},
		{Check: "MRTD, RTMR", Shows: "firmware, kernel, initial file system and command line are the reference's"},
		{Check: "TEE_TCB_SVN", Shows: "the platform's version is at least " + r.TDX.MinTCB + " (empty: any)"},
	}}, nil
}

// undebugged checks the attributes, 8 bytes: the library has no objection to debugging.
func undebugged(attributes []byte) error {
	if a := binary.LittleEndian.Uint64(attributes); a&untrusted != 0 {
		return fmt.Errorf("the host can debug the machine: its attributes are %#x", a)
	}
	return nil
}

// parse reads a quote of version 4.
func parse(b []byte) (*pb.QuoteV4, error) {
	if len(b) > maxQuote {
		return nil, fmt.Errorf("a quote of %d bytes", len(b))
	}
	any, err := abi.QuoteToProto(b)
	if err != nil {
		return nil, fmt.Errorf("read the quote: %w", err)
	}
	quote, ok := any.(*pb.QuoteV4)
	if !ok {
		return nil, fmt.Errorf("the quote is a %T, not one of version 4", any)
	}
	return quote, nil
}
