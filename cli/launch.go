package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"manis/attest"
	"manis/attest/snp/launch"
	"manis/vmm"
)

// launchFlags are those of trust measure for a machine with SEV-SNP. Their names are those of sev-snp-measure where it has them.
type launchFlags struct {
	snp       bool
	ovmf      string
	vcpus     int
	kind      string
	signature uint32
	features  uint64
	cmdline   string
	least     string
}

func (l *launchFlags) add(fs *pflag.FlagSet) {
	fs.BoolVar(&l.snp, "snp", false, "Compute the launch digest of SEV-SNP, too (needs --ovmf, --vcpus, and --vcpu-type or --vcpu-sig)")
	fs.StringVar(&l.ovmf, "ovmf", "", "SEV-SNP: the firmware, OVMF of the kind AmdSev")
	fs.IntVar(&l.vcpus, "vcpus", 0, "SEV-SNP: number of processors that the machine starts with")
	fs.StringVar(&l.kind, "vcpu-type", "", "SEV-SNP: kind of processor, as QEMU's -cpu (EPYC-Milan, EPYC-Genoa-v1)")
	fs.Uint32Var(&l.signature, "vcpu-sig", 0, "SEV-SNP: signature of the processor (0xa00f11), in place of --vcpu-type")
	fs.Uint64Var(&l.features, "guest-features", 1, "SEV-SNP: guest features of the first state, bits (0x21)")
	fs.StringVar(&l.cmdline, "append", "", "SEV-SNP: the kernel's command line, in place of Manis' own without the words about the host's clock")
	fs.StringVar(&l.least, "min-tcb", "", "SEV-SNP: least version of the platform: BOOTLOADER,TEE,SNP,MICROCODE")
}

// read checks the flags, and returns what they say of the machine: nil where they do not ask for the digest.
func (l *launchFlags) read(fs *pflag.FlagSet) (*attest.SNPReference, error) {
	if !l.snp {
		for _, name := range []string{"ovmf", "vcpus", "vcpu-type", "vcpu-sig", "guest-features", "append", "min-tcb"} {
			if fs.Changed(name) {
				return nil, fmt.Errorf("--%s is about the launch digest of SEV-SNP: it needs --snp", name)
			}
		}
		return nil, nil
	}
	switch {
	case l.ovmf == "":
		return nil, errors.New("--snp needs --ovmf, the firmware that the machine starts with")
	case !fs.Changed("vcpus"):
		return nil, errors.New("--snp needs --vcpus, the number of processors that the machine starts with")
	case fs.Changed("vcpu-type") == fs.Changed("vcpu-sig"):
		return nil, errors.New("--snp needs either --vcpu-type or --vcpu-sig: the kind of processor is measured")
	}
	signature := l.signature
	if fs.Changed("vcpu-type") {
		var err error
		if signature, err = launch.Signature(l.kind); err != nil {
			return nil, fmt.Errorf("--vcpu-type: %w (--vcpu-sig)", err)
		}
	}
	least, err := parseTCB(l.least)
	if err != nil {
		return nil, err
	}
	return &attest.SNPReference{MinTCB: least, Launch: &attest.SNPLaunch{
		Cmdline: l.cmdline, VCPUs: l.vcpus, VCPUSignature: attest.Hex(signature), GuestFeatures: attest.Hex(l.features),
	}}, nil
}

// measure computes the digest of what read has returned, for a machine of Manis' and its command line.
func (l *launchFlags) measure(r *attest.SNPReference, fs *pflag.FlagSet, vm vmm.Config, cmdline string) error {
	if r == nil {
		return nil
	}
	if !fs.Changed("append") {
		r.Launch.Cmdline = attest.LaunchCmdline(cmdline)
	}
	measured, err := attest.MeasureLaunch(vm.Kernel, vm.Initrd, l.ovmf, *r.Launch)
	if err != nil {
		return err
	}
	r.Measurement, r.Launch = measured.Measurement, measured.Launch
	return nil
}

// parseTCB reads BOOTLOADER,TEE,SNP,MICROCODE; of nothing it makes zeros.
func parseTCB(s string) (v attest.SNPVersion, err error) {
	if s == "" {
		return v, nil
	}
	numbers := strings.Split(s, ",")
	parts := []*uint8{&v.BootLoader, &v.TEE, &v.SNP, &v.Microcode}
	if len(numbers) != len(parts) {
		return v, fmt.Errorf("--min-tcb %.60q: expected BOOTLOADER,TEE,SNP,MICROCODE, such as 4,0,24,219", s)
	}
	for i, n := range numbers {
		u, err := strconv.ParseUint(n, 10, 8)
		if err != nil {
			return v, fmt.Errorf("--min-tcb %.60q: %.20q is no number of 0 to 255", s, n)
		}
		*parts[i] = uint8(u)
	}
	return v, nil
}
