package agent

// hypervisor returns the signature of what the machine runs on, CPUID leaf
// 0x40000000.
func hypervisor() (b, c, d uint32)

// isEmulated says whether QEMU translates every instruction (TCG).
func isEmulated() bool {
	b, c, d := hypervisor()
	const tcgt, cgtc, gtcg = 0x54474354, 0x43544743, 0x47435447 // "TCGTCGTCGTCG"
	return b == tcgt && c == cgtc && d == gtcg
}

// verityHash is the kernel's implementation of SHA-256 to check disks with. Vector
// instructions are the slowest of all where they are emulated: plain code is
// several times as fast there.
func verityHash() string {
	if isEmulated() {
		return "sha256-generic"
	}
	return "sha256"
}
