// Package launch computes the launch digest of machines with AMD SEV-SNP: the MEASUREMENT that the processor's firmware
// puts into its reports. It is of what QEMU has put into the memory before the first instruction, in this order: the firmware, the
// areas that the firmware asks for in its SEV metadata, one of which has the hashes of kernel, initial file system and
// command line, and the first state of each processor.
//
// By: AMD, "SEV Secure Nested Paging Firmware ABI Specification" (56860), SNP_LAUNCH_UPDATE and PAGE_INFO; AMD64 Architecture
// Programmer's Manual, volume 2, table B-4 (VMSA); OvmfPkg/ResetVector of EDK II (SEV metadata); target/i386/sev.c of QEMU (hashes).
// Registers and order are those of QEMU and KVM: other VMMs start machines with others. It knows nothing of reports, nor of files.
package launch

import (
	"errors"
	"fmt"
)

// MaxVCPUs bounds a machine's processors.
const MaxVCPUs = 1024

// Machine is what is measured.
type Machine struct {
	Firmware *Firmware
	// Hashes are those of what the firmware starts; nil: it is given no hashes, and starts what it likes.
	Hashes *Hashes
	// VCPUs is the number of processors at the start.
	VCPUs int
	// Signature is the processors' (CPUID Fn0000_0001 EAX), as QEMU's -cpu makes it.
	Signature uint32
	// Features are SEV_FEATURES of the first state (guest features): bit 0 is SEV-SNP itself.
	Features uint64
}

// Digest is a launch digest, a SHA-384.
type Digest [48]byte

// ErrNoHashes is firmware that starts what it is given, unmeasured.
var ErrNoHashes = errors.New("it takes no hashes of kernel, initial file system and command line, so that the launch digest would not say what it starts: " + build)

// Bits of SEV_FEATURES: what there has to be, and what a specification has given a meaning.
const (
	featureSNP    = 1 << 0
	featuresKnown = 0xffff &^ (1<<11 | 1<<13)
)

// Measure computes the digest of a machine. What it says is wrong is what AMD's firmware, QEMU or the guest would not start with.
func Measure(m *Machine) (Digest, error) {
	var d Digest
	d.data(m.Firmware.base(), m.Firmware.image)
	return m.from(d)
}

// from goes on from the digest of the firmware's image.
func (m *Machine) from(d Digest) (Digest, error) {
	switch {
	case m.VCPUs < 1 || m.VCPUs > MaxVCPUs:
		return d, fmt.Errorf("%d processors: a machine has 1 to %d", m.VCPUs, MaxVCPUs)
	case m.Features&featureSNP == 0:
		return d, fmt.Errorf("guest features %#x: bit 0, SEV-SNP itself, is not set", m.Features)
	case m.Features&^featuresKnown != 0:
		return d, fmt.Errorf("guest features %#x: the bits %#x are reserved", m.Features, m.Features&^featuresKnown)
	case m.Hashes != nil && !m.Firmware.TakesHashes():
		return d, fmt.Errorf("the firmware: %w", ErrNoHashes)
	}
	for _, s := range m.Firmware.sections {
		switch s.kind {
		case sectionSecrets:
			d.empty(pageSecrets, s.base, s.size)
		case sectionCPUID:
			d.empty(pageCPUID, s.base, s.size)
		case sectionHashes:
			if m.Hashes != nil {
				d.data(uint64(s.base), m.Hashes.page(m.Firmware.hashes&(pageSize-1)))
				continue
			}
			fallthrough
		default:
			d.empty(pageZero, s.base, s.size)
		}
	}
	d.update(pageVMSA, vmsaAddress, sum(vmsa(resetVector, m.Signature, m.Features)))
	other := sum(vmsa(m.Firmware.reset, m.Signature, m.Features))
	for range m.VCPUs - 1 {
		d.update(pageVMSA, vmsaAddress, other)
	}
	return d, nil
}
