package checkpoint

import "unsafe"

// resumerCode is the address of the resumer's code in this program.
func resumerCode() unsafe.Pointer

// cpuid performs the instruction of this name.
func cpuid(leaf, sub uint32) (eax, ebx, ecx, edx uint32)

// componentEnd returns where a component of the extended registers ends in XSAVE's standard layout.
func componentEnd(component int) int {
	size, offset, _, _ := cpuid(0xd, uint32(component))
	return int(size + offset)
}
