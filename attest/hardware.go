package attest

import (
	"encoding/hex"
	"errors"
	"fmt"
)

// Kinds of evidence. KindTPM is verified here, the others by drivers that a program links: manis/attest/snp and
// manis/attest/tdx.
const (
	KindTPM = "tpm2"
	KindSNP = "sev-snp"
	KindTDX = "tdx"
)

// driver verifies one kind of evidence.
type driver struct {
	verify func(e *Evidence, r *Reference) (*Result, error)
}

var drivers = make(map[string]*driver)

// Register makes Verify take evidence of a kind that hardware has signed. It is for the init functions of drivers. What
// a driver is given has nothing of a TPM, a nonce of the right size and a manifest, and is not verified otherwise.
func Register(kind string, verify func(e *Evidence, r *Reference) (*Result, error)) {
	drivers[kind] = &driver{func(e *Evidence, r *Reference) (*Result, error) {
		if e.Cmdline != "" || len(e.PCRValues) > 0 || len(e.Key) > 0 || len(e.Quote) > 0 || len(e.Signature) > 0 {
			return nil, errors.New("it has values of a TPM, which nothing vouches for")
		}
		return verify(e, r)
	}}
}

// ReportData is what hardware signs in place of a TPM's qualifying data, 64 bytes: Binding, and zeros.
func (e *Evidence) ReportData() [64]byte {
	var d [64]byte
	copy(d[:], Binding(e.Nonce, e.Channel, e.Signer, e.Manifest, e.Owner))
	return d
}

// SNPReference are values of a machine with AMD SEV-SNP.
type SNPReference struct {
	// Measurement is the launch digest (SHA-384, hex) of firmware, kernel, initial file system, command line and processors.
	Measurement string `json:"measurement"`
	// MinTCB is the least of each part of the platform's version. All zero: any, which takes machines with known holes.
	MinTCB SNPVersion `json:"minTcb"`
	// Launch says what Measurement was computed from, for people; nil: that is not known.
	Launch *SNPLaunch `json:"launch,omitempty"`
}

// SNPVersion are the security patch levels of a platform.
type SNPVersion struct {
	BootLoader uint8 `json:"bootLoader"`
	TEE        uint8 `json:"tee"`
	SNP        uint8 `json:"snp"`
	Microcode  uint8 `json:"microcode"`
}

// TDXReference are values of a machine with Intel TDX.
type TDXReference struct {
	// MRTD is the measurement of the firmware, RTMRs are the four of what it and the kernel have measured (SHA-384, hex).
	MRTD  string   `json:"mrtd"`
	RTMRs []string `json:"rtmrs"`
	// MinTCB is the least TEE_TCB_SVN, 16 bytes in hex, compared one by one. Empty: any.
	MinTCB string `json:"minTcb,omitempty"`
}

// Digest returns the bytes of a hexadecimal value of a length.
func Digest(what, s string, size int) ([]byte, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != size {
		return nil, fmt.Errorf("reference values: %s: %.200q is not %d bytes in hex", what, s, size)
	}
	return b, nil
}

// Sizes of the values of hardware, bytes.
const (
	MeasurementBytes = 48
	TDXVersionBytes  = 16
)

func (r *Reference) checkHardware() error {
	if r.SNP != nil {
		if _, err := Digest("sevSnp.measurement", r.SNP.Measurement, MeasurementBytes); err != nil {
			return err
		}
		if err := r.SNP.Launch.check(); err != nil {
			return err
		}
	}
	if r.TDX == nil {
		return nil
	}
	if len(r.TDX.RTMRs) != 4 {
		return fmt.Errorf("reference values: tdx.rtmrs: %d, not 4", len(r.TDX.RTMRs))
	}
	for _, v := range append([]string{r.TDX.MRTD}, r.TDX.RTMRs...) {
		if _, err := Digest("tdx", v, MeasurementBytes); err != nil {
			return err
		}
	}
	if r.TDX.MinTCB == "" {
		return nil
	}
	_, err := Digest("tdx.minTcb", r.TDX.MinTCB, TDXVersionBytes)
	return err
}

// Contain is deferred by drivers whose evidence is read by a library that may trust lengths which whoever made the evidence has chosen
// (go-tdx-guest v0.3.1 does, for one: abi.qeAuthDataToProto): evidence that it panics at is refused.
func Contain(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("the evidence is malformed: %v", p)
	}
}
