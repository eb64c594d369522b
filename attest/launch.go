package attest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"manis/attest/snp/launch"
)

// SNPLaunch is what a machine with SEV-SNP is started with, by QEMU with kernel-hashes=on.
type SNPLaunch struct {
	// FirmwareFile, Kernel and Initrd are the SHA-256 of files, hex.
	FirmwareFile string `json:"firmwareFile"`
	Kernel       string `json:"kernel"`
	Initrd       string `json:"initrd"`
	// Cmdline is the kernel's command line as QEMU is given it (-append): every byte of it counts.
	Cmdline string `json:"cmdline"`
	// VCPUs is the number of processors, VCPUSignature theirs (CPUID Fn0000_0001 EAX).
	VCPUs         int `json:"vcpus"`
	VCPUSignature Hex `json:"vcpuSignature"`
	// GuestFeatures are SEV_FEATURES of the processors' first state.
	GuestFeatures Hex `json:"guestFeatures"`
}

// Hex is a number that people know by its hexadecimal digits: "0x800f12".
type Hex uint64

// MarshalText writes h with 0x before it.
func (h Hex) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%#x", uint64(h)), nil }

// UnmarshalText reads what MarshalText writes, and nothing else.
func (h *Hex) UnmarshalText(b []byte) error {
	digits, ok := strings.CutPrefix(string(b), "0x")
	n, err := strconv.ParseUint(digits, 16, 64)
	if !ok || err != nil {
		return fmt.Errorf("%.40q is no hexadecimal number (0x1)", b)
	}
	*h = Hex(n)
	return nil
}

// MeasureLaunch computes the launch digest of a machine with these files. Of l there are the command line, the
// processors and the guest features; the hashes are filled in.
func MeasureLaunch(kernel, initrd, firmware string, l SNPLaunch) (*SNPReference, error) {
	if strings.Contains(l.Cmdline, anyNumber) {
		return nil, fmt.Errorf("measure the launch: a launch digest is of one command line, in which no %s stands for any number", anyNumber)
	}
	image, err := readFile("the firmware", firmware, maxFirmware)
	if err != nil {
		return nil, err
	}
	parsed, err := launch.ParseFirmware(image)
	if err != nil {
		return nil, fmt.Errorf("measure the firmware %s: %w", firmware, err)
	}
	if !parsed.TakesHashes() {
		// Said by Measure, too, which does not know the file.
		return nil, fmt.Errorf("measure the firmware %s: %w", firmware, launch.ErrNoHashes)
	}
	hashes := new(launch.Hashes)
	for _, f := range []struct {
		what, path string
		most       int64
		to         *[sha256.Size]byte
	}{{"the kernel", kernel, maxKernel, &hashes.Kernel}, {"the initial file system", initrd, maxInitrd, &hashes.Initrd}} {
		digest, _, err := hashFile(f.what, f.path, f.most)
		if err != nil {
			return nil, err
		}
		copy(f.to[:], digest)
	}
	if hashes.Cmdline, err = launch.HashCmdline(l.Cmdline); err != nil {
		return nil, fmt.Errorf("measure the launch: %w", err)
	}
	if uint64(l.VCPUSignature) != uint64(uint32(l.VCPUSignature)) {
		return nil, fmt.Errorf("measure the launch: a processor's signature has 32 bits, not %#x", uint64(l.VCPUSignature))
	}
	digest, err := launch.Measure(&launch.Machine{
		Firmware: parsed, Hashes: hashes, VCPUs: l.VCPUs, Signature: uint32(l.VCPUSignature), Features: uint64(l.GuestFeatures),
	})
	if err != nil {
		return nil, fmt.Errorf("measure the launch: %w", err)
	}
	d := sha256.Sum256(image)
	l.FirmwareFile = hex.EncodeToString(d[:])
	l.Kernel, l.Initrd = hex.EncodeToString(hashes.Kernel[:]), hex.EncodeToString(hashes.Initrd[:])
	return &SNPReference{Measurement: hex.EncodeToString(digest[:]), Launch: &l}, nil
}

// LaunchCmdline is the command line of a VMM without what tells of the host's clock: with SEV-SNP a number that differs from
// host to host would make a launch digest of each.
func LaunchCmdline(cmdline string) string {
	var words []string
	for _, w := range strings.Split(cmdline, " ") {
		if hostWord(w) == "" {
			words = append(words, w)
		}
	}
	return strings.Join(words, " ")
}

// String says what the launch is of, for people.
func (l *SNPLaunch) String() string {
	return fmt.Sprintf("%d processors of the signature %#x, guest features %#x, firmware %.16s, kernel %.16s, initial file system %.16s, command line %q",
		l.VCPUs, uint64(l.VCPUSignature), uint64(l.GuestFeatures), l.FirmwareFile, l.Kernel, l.Initrd, l.Cmdline)
}

func (l *SNPLaunch) check() error {
	if l == nil {
		return nil
	}
	for _, v := range []struct{ what, digest string }{{"firmwareFile", l.FirmwareFile}, {"kernel", l.Kernel}, {"initrd", l.Initrd}} {
		if _, err := Digest("sevSnp.launch."+v.what, v.digest, sha256.Size); err != nil {
			return err
		}
	}
	if l.VCPUs < 1 || l.VCPUs > launch.MaxVCPUs {
		return fmt.Errorf("reference values: sevSnp.launch.vcpus: %d is no number of processors", l.VCPUs)
	}
	if l.VCPUSignature > 1<<32-1 {
		return errors.New("reference values: sevSnp.launch.vcpuSignature: it has more than 32 bits")
	}
	return nil
}
