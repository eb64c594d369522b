package seccomp

import (
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// convention is a calling convention of the kernel: the numbers of its calls and how
// the filter recognises it.
type convention struct {
	name   specs.Arch
	docker string // as in includes.arches of docker's profiles
	audit  uint32 // AUDIT_ARCH_*, from <linux/audit.h>
	bits   int
	// numbers maps the names of calls.
	numbers func() map[string]uint32
	// last bounds the common table; what lies above is private to the architecture.
	last uint32
}

var (
	amd64 = &convention{specs.ArchX86_64, "amd64", 0xc000003e, 64, table(tableAMD64), maxNumber}
	x86   = &convention{specs.ArchX86, "x86", 0x40000003, 32, table(table386), maxNumber}
	arm64 = &convention{specs.ArchAARCH64, "arm64", 0xc00000b7, 64, table(tableARM64), maxNumber}
	arm   = &convention{specs.ArchARM, "arm", 0x40000028, 32, table(tableARM), 0xf0000}
)

const (
	// x32Bit marks the numbers of the x32 ABI, which shares its audit value
	// with x86_64.
	x32Bit    = 0x40000000
	maxNumber = x32Bit - 1
)

// machine is what a kernel for one GOARCH can run, its own convention first.
func machine(goarch string) ([]*convention, error) {
	switch goarch {
	case "amd64":
		return []*convention{amd64, x86}, nil
	case "arm64":
		return []*convention{arm64, arm}, nil
	}
	return nil, fmt.Errorf("compile seccomp profile: architecture %q is not supported (amd64 and arm64 are)", goarch)
}

// table parses one of the constants in tables.go when it is first asked for: a
// number begins a run of consecutive ones.
func table(text string) func() map[string]uint32 {
	return sync.OnceValue(func() map[string]uint32 {
		numbers := make(map[string]uint32, 512)
		next := uint32(0)
		for word := range strings.FieldsSeq(text) {
			if n, err := strconv.ParseUint(word, 10, 32); err == nil {
				next = uint32(n)
				continue
			}
			numbers[word] = next
			next++
		}
		return numbers
	})
}

// known are the architecture names that a profile may hold; most of them mean
// nothing on the machines that we know.
var known = map[specs.Arch]bool{
	specs.ArchX86: true, specs.ArchX86_64: true, specs.ArchX32: true,
	specs.ArchARM: true, specs.ArchAARCH64: true,
	specs.ArchMIPS: true, specs.ArchMIPS64: true, specs.ArchMIPS64N32: true,
	specs.ArchMIPSEL: true, specs.ArchMIPSEL64: true, specs.ArchMIPSEL64N32: true,
	specs.ArchPPC: true, specs.ArchPPC64: true, specs.ArchPPC64LE: true,
	specs.ArchS390: true, specs.ArchS390X: true,
	specs.ArchPARISC: true, specs.ArchPARISC64: true,
	specs.ArchRISCV64: true, specs.ArchLOONGARCH64: true,
	specs.ArchM68K: true, specs.ArchSH: true, specs.ArchSHEB: true,
	archNative: true,
}

const archNative specs.Arch = "SCMP_ARCH_NATIVE"
