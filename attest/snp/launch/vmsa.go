package launch

import "encoding/binary"

// resetVector is where the first processor starts.
const resetVector = 0xfffffff0

// segment is a segment's register.
type segment struct {
	at              int
	selector, flags uint16
	base            uint64
}

// vmsa is the page of a processor's first state: that of a reset, at an instruction, as QEMU and KVM make it.
func vmsa(eip, signature uint32, features uint64) []byte {
	b := make([]byte, pageSize)
	le := binary.LittleEndian
	for _, s := range []segment{
		{0x00, 0, 0x93, 0},                          // ES
		{0x10, 0xf000, 0x9b, uint64(eip &^ 0xffff)}, // CS
		{0x20, 0, 0x93, 0},                          // SS
		{0x30, 0, 0x93, 0},                          // DS
		{0x40, 0, 0x93, 0},                          // FS
		{0x50, 0, 0x93, 0},                          // GS
		{0x60, 0, 0, 0},                             // GDTR
		{0x70, 0, 0x82, 0},                          // LDTR
		{0x80, 0, 0, 0},                             // IDTR
		{0x90, 0, 0x8b, 0},                          // TR
	} {
		le.PutUint16(b[s.at:], s.selector)
		le.PutUint16(b[s.at+2:], s.flags)
		le.PutUint32(b[s.at+4:], 0xffff)
		le.PutUint64(b[s.at+8:], s.base)
	}
	for _, r := range []struct {
		at    int
		value uint64
	}{
		{0x0d0, 1 << 12},              // EFER: SVME, by KVM
		{0x148, 1 << 6},               // CR4: MCE, by KVM
		{0x158, 0x10},                 // CR0
		{0x160, 0x400},                // DR7
		{0x168, 0xffff0ff0},           // DR6
		{0x170, 0x2},                  // RFLAGS
		{0x178, uint64(eip & 0xffff)}, // RIP
		{0x268, 0x0007040600070406},   // G_PAT
		{0x310, uint64(signature)},    // RDX
		{0x3b0, features},             // SEV_FEATURES
		{0x3e8, 0x1},                  // XCR0
	} {
		le.PutUint64(b[r.at:], r.value)
	}
	le.PutUint32(b[0x408:], 0x1f80) // MXCSR
	le.PutUint16(b[0x410:], 0x37f)  // FCW
	return b
}
