package tsc

func counter() int64
func cpuid(leaf, sub uint32) (a, b, c, d uint32)

// constant reports whether the counter's frequency never changes (CPUID leaf
// 80000007h, bit 8 of EDX), which every x86-64 server since 2008 has.
func constant() bool {
	if max, _, _, _ := cpuid(0x80000000, 0); max < 0x80000007 {
		return false
	}
	_, _, _, d := cpuid(0x80000007, 0)
	return d&(1<<8) != 0
}

// Declared returns the frequency in kHz that the processor (leaf 15h) or the
// hypervisor below this host (leaf 40000010h) states, and whether one does.
func Declared() (int, bool) {
	if max, _, _, _ := cpuid(0, 0); max >= 0x15 {
		if a, b, c, _ := cpuid(0x15, 0); a != 0 && b != 0 && c != 0 {
			return int(uint64(c) * uint64(b) / uint64(a) / 1000), true
		}
	}
	if _, _, c, _ := cpuid(1, 0); c&(1<<31) != 0 {
		if max, _, _, _ := cpuid(0x40000000, 0); max >= 0x40000010 && max < 0x40010000 {
			if khz, _, _, _ := cpuid(0x40000010, 0); khz != 0 {
				return int(khz), true
			}
		}
	}
	return 0, false
}
