package launch

import (
	"fmt"
	"strings"
)

// model is one of QEMU's processors (-cpu).
type model struct {
	name                    string
	family, model, stepping uint32
}

// models are those of AMD's that have SEV-SNP or come before them. Their versions (-v1 and so on) have the same signature.
var models = [...]model{
	{"EPYC", 23, 1, 2},
	{"EPYC-IBPB", 23, 1, 2},
	{"EPYC-Rome", 23, 49, 0},
	{"EPYC-Milan", 25, 1, 1},
	{"EPYC-Genoa", 25, 17, 0},
	{"EPYC-Turin", 26, 0, 0},
}

// Signature is that of a processor by QEMU's name of it, such as EPYC-Milan or EPYC-v4.
func Signature(name string) (uint32, error) {
	base := name
	if at := strings.LastIndex(name, "-v"); at > 0 {
		if v := name[at+2:]; len(v) == 1 && v[0] >= '1' && v[0] <= '9' {
			base = name[:at]
		}
	}
	var names []string
	for _, m := range models {
		if m.name == base {
			return signature(m.family, m.model, m.stepping), nil
		}
		names = append(names, m.name)
	}
	return 0, fmt.Errorf("processor %.60q is not known: take one of %s, with or without a version (-v1), or give its signature", name, strings.Join(names, ", "))
}

// signature is CPUID Fn0000_0001 EAX (AMD, "CPUID Specification", 25481).
func signature(family, model, stepping uint32) uint32 {
	base := min(family, 0xf)
	return (family-base)<<20 | model>>4<<16 | base<<8 | model&0xf<<4 | stepping
}
