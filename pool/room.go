package pool

// need is what a size asks for: machines of so many bytes each, want of them, the least first.
type need struct {
	least, want int
	bytes       uint64
}

// firstGuess is what a machine is believed to take before one was measured.
const firstGuess = 160 << 20

// fit says how many machines of each size fit into room bytes. All sizes get their least
// before any gets more, and machines are dealt one by one in turn, so that no size starves another.
func fit(needs []need, room uint64) []int {
	given := make([]int, len(needs))
	deal := func(limit func(need) int) {
		for again := true; again; {
			again = false
			for i, n := range needs {
				if given[i] < min(limit(n), n.want) && n.bytes <= room {
					given[i]++
					room -= n.bytes
					again = true
				}
			}
		}
	}
	deal(func(n need) int { return n.least })
	deal(func(n need) int { return n.want })
	return given
}
