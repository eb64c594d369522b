package inflate

// A decoding table is looked up with the next bits of the stream, the first
// bit lowest. Codes longer than the first level's width lead to a second
// level. An entry is
//
//	bits  0-7   bits to consume: of the code and of what is added to its value
//	bits  8-12  bits of the code alone; of a link: width of the second level
//	bits 13-15  flags; none for a length or a distance
//	bits 16-31  literal, or base of a length or distance; of a link: index
const (
	flagLiteral = 1 << 13
	flagOther   = 1 << 14 // a link, the end of the block, or no code at all
	flagLink    = flagOther | 1<<15
	endOfBlock  = flagOther | 1<<16
	noCode      = flagOther | 2<<16
)

const (
	maxCode     = 15
	litWidth    = 11
	distWidth   = 8
	preWidth    = 7
	litEntries  = 4096 // at most 2342 are used with 288 symbols and 11 bits
	distEntries = 512  // at most 402 with 32 symbols and 8 bits
)

// symbols are entries without their code lengths, by symbol.
var (
	litSymbols  [288]uint32
	distSymbols [32]uint32
	preSymbols  [19]uint32
)

func init() {
	for i := range 256 {
		litSymbols[i] = flagLiteral | uint32(i)<<16
	}
	litSymbols[256] = endOfBlock
	base := uint32(3)
	for i := range 28 {
		extra := uint32(max(0, i/4-1))
		litSymbols[257+i] = base<<16 | extra
		base += 1 << extra
	}
	litSymbols[285] = 258 << 16 // one code for the longest, without extra bits
	litSymbols[286], litSymbols[287] = noCode, noCode
	base = 1
	for i := range 30 {
		extra := uint32(max(0, i/2-1))
		distSymbols[i] = base<<16 | extra
		base += 1 << extra
	}
	distSymbols[30], distSymbols[31] = noCode, noCode
	for i := range preSymbols {
		preSymbols[i] = flagLiteral | uint32(i)<<16
	}
}

// build fills a table from the code lengths of its symbols. It refuses sets of
// lengths that are no prefix code, but for the two that encoders do write: no
// code at all, and a single one of one bit.
func build(table []uint32, width uint, lengths []uint8, symbols []uint32) bool {
	var count [maxCode + 1]int
	for _, l := range lengths {
		count[l]++
	}
	longest := maxCode
	for longest > 0 && count[longest] == 0 {
		longest--
	}
	first := table[:1<<width]
	if longest == 0 {
		for i := range first {
			first[i] = noCode
		}
		return true
	}
	left := 1
	for l := 1; l <= maxCode; l++ {
		if left = left<<1 - count[l]; left < 0 {
			return false // more codes than there is room for
		}
	}
	if left > 0 {
		if longest != 1 || count[1] != 1 {
			return false
		}
		for i := range first {
			first[i] = noCode
		}
	}
	// Symbols in the order of their codes.
	var at [maxCode + 2]int
	for l := 1; l <= maxCode; l++ {
		at[l+1] = at[l] + count[l]
	}
	var sorted [288]uint16
	for s, l := range lengths {
		if l > 0 {
			sorted[at[l]] = uint16(s)
			at[l]++
		}
	}
	code := uint32(0) // with its first bit lowest
	next := 1 << width
	link, linkStart, linkWidth := uint32(1<<32-1), 0, uint(0)
	i := 0
	for l := uint(1); l <= uint(longest); l++ {
		for range count[l] {
			symbol := symbols[sorted[i]]
			i++
			entry := symbol
			if symbol&flagOther == 0 || symbol == endOfBlock {
				extra := symbol & 0xff
				entry = symbol&^0xff | (uint32(l) + extra) | uint32(l)<<8
			}
			if l <= width {
				for j := code; j < 1<<width; j += 1 << l {
					first[j] = entry
				}
			} else {
				prefix := code & (1<<width - 1)
				if prefix != link {
					// As wide as the codes that share this prefix need.
					link, linkStart, linkWidth = prefix, next, l-width
					room := 1<<linkWidth - count[l]
					if i > 1 { // codes of this length that are placed already
						room += placed(sorted[:i-1], lengths, uint8(l))
					}
					for w := linkWidth; room > 0 && w+width < uint(longest); {
						w++
						room = room<<1 - count[w+width]
						linkWidth = w
					}
					next += 1 << linkWidth
					if next > len(table) {
						return false
					}
					first[prefix] = flagLink | uint32(width) | uint32(linkWidth)<<8 | uint32(linkStart)<<16
				}
				// In the second level the first level's bits are gone.
				if entry&flagOther == 0 || entry&^0x1fff == endOfBlock {
					entry -= uint32(width) | uint32(width)<<8
				}
				for j := code >> width; j < 1<<linkWidth; j += 1 << (l - width) {
					table[linkStart+int(j)] = entry
				}
			}
			code = increment(code, l)
		}
	}
	return true
}

// placed counts how many of the symbols have codes of a length.
func placed(symbols []uint16, lengths []uint8, l uint8) int {
	n := 0
	for i := len(symbols) - 1; i >= 0 && lengths[symbols[i]] == l; i-- {
		n++
	}
	return n
}

// increment adds one to a code of n bits whose first bit is lowest.
func increment(code uint32, n uint) uint32 {
	bit := uint32(1) << (n - 1)
	for code&bit != 0 {
		code ^= bit
		bit >>= 1
	}
	return code | bit
}
