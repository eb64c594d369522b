// Package inflate decompresses gzip, faster than the standard library: nearly
// all image layers come this way, and it is what converting an image spends
// most of its time on. The decoder works on large buffers, a word of input at
// a time, with all checks but no copy in between. It must not know what it
// decompresses.
package inflate

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
)

var (
	// ErrCorrupt: the data is not what any compressor writes.
	ErrCorrupt = errors.New("gzip: data is damaged")
	// ErrHeader: what should be a gzip header is none.
	ErrHeader = errors.New("gzip: invalid header")
	// ErrChecksum: the decompressed content differs from what was compressed.
	ErrChecksum = errors.New("gzip: invalid checksum")
)

const (
	windowSize = 32 << 10
	maxMatch   = 258
	inSize     = 128 << 10
	outSize    = windowSize + 256<<10
	// A round of the fast loop reads up to two words and writes up to three
	// literals and a match, which is copied by whole words.
	inMargin  = 24
	outMargin = maxMatch + 16
)

// Reader decompresses a gzip stream of one or more members. It reads ahead of
// what it needs.
type Reader struct {
	src io.Reader
	err error // sticky, io.EOF included

	in    [inSize + 2*inMargin]byte
	pos   int // next byte to load
	limit int // the fast loop may start a round up to here
	end   int // bytes of input in the buffer
	eof   bool
	srcIs error // what src ended with

	bits  uint64 // loaded and not used, lowest first
	nbits uint   // how many of them count

	out     [outSize]byte
	served  int // out[served:written] is still to be read
	written int
	counted int // out[counted:written] is not in the checksum yet

	state  state
	final  bool // the current block is the member's last
	stored int  // bytes left of a stored block
	sum    uint32
	size   uint32 // modulo 2^32, as the trailer has it

	lit  [litEntries]uint32
	dist [distEntries]uint32
	pre  [1 << preWidth]uint32
	lens [288 + 32]uint8
}

type state int

const (
	atMember state = iota
	atBlock
	inStored
	inCodes
)

// NewReader reads the first member's header.
func NewReader(src io.Reader) (*Reader, error) {
	r := &Reader{src: src, limit: -1}
	if err := r.header(); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return r, nil
}

// Read implements io.Reader. It returns io.EOF at the end of the last member,
// io.ErrUnexpectedEOF when the input ends before, else an error of this
// package or of the source.
func (r *Reader) Read(p []byte) (int, error) {
	for r.served == r.written {
		if r.err != nil {
			return 0, r.err
		}
		r.err = r.decode()
	}
	n := copy(p, r.out[r.served:r.written])
	r.served += n
	return n, nil
}

// decode produces more output, or an error when there is none to come.
func (r *Reader) decode() error {
	if r.written > outSize-outMargin-windowSize {
		// What may still be referred to moves to the front.
		n := copy(r.out[:], r.out[max(0, r.written-windowSize):r.written])
		r.written, r.served, r.counted = n, n, n
	}
	start := r.written
	for r.written == start {
		var err error
		switch r.state {
		case atMember:
			err = r.header()
		case atBlock:
			err = r.block()
		case inStored:
			err = r.copyStored()
		case inCodes:
			err = r.codes()
		}
		r.checksum()
		if err == nil && r.final && r.state == atBlock {
			err = r.trailer()
		}
		// So near the end there is no room for the trailer: what looks damaged
		// is the zeros that stand for what is missing.
		if err == ErrCorrupt && r.eof && 8*(r.end-r.pos)+int(r.nbits) < 64 {
			err = r.cut()
		}
		if err != nil {
			return err // Read gives out first what came before it
		}
	}
	return nil
}

func (r *Reader) checksum() {
	r.sum = crc32.Update(r.sum, crc32.IEEETable, r.out[r.counted:r.written])
	r.size += uint32(r.written - r.counted)
	r.counted = r.written
}

// more moves the unread input to the front and reads on. At the end of the
// source zeros follow the input, so that the fast loop needs no other one;
// using them is found out afterwards, by overrun.
func (r *Reader) more() error {
	if r.eof {
		return r.cut()
	}
	keep := max(0, min(r.pos, r.end)-8) // unload may go back by a word
	copy(r.in[:], r.in[keep:r.end])
	r.end -= keep
	r.pos -= keep
	for r.end-r.pos < 2*inMargin && !r.eof {
		n, err := r.src.Read(r.in[r.end:inSize])
		r.end += n
		if err != nil {
			r.eof, r.srcIs = true, err
			clear(r.in[r.end : r.end+2*inMargin])
		}
	}
	r.limit = r.end - inMargin
	if r.eof {
		r.limit = r.end + 8
	}
	return nil
}

// cut is the error of input that ends too early.
func (r *Reader) cut() error {
	if r.srcIs != io.EOF {
		return r.srcIs
	}
	return io.ErrUnexpectedEOF
}

// overrun reports whether bits behind the end of the input were used.
func (r *Reader) overrun() bool { return r.eof && r.pos-int(r.nbits>>3) > r.end }

// fill loads at least 56 bits.
func (r *Reader) fill() error {
	if r.pos > r.limit {
		if err := r.more(); err != nil {
			return err
		}
	}
	r.bits |= binary.LittleEndian.Uint64(r.in[r.pos:]) << (r.nbits & 63)
	r.pos += int((63 - r.nbits) >> 3)
	r.nbits |= 56
	if r.overrun() {
		return r.cut()
	}
	return nil
}

// take uses up n bits, of which there must be enough.
func (r *Reader) take(n uint) uint32 {
	v := uint32(r.bits & (1<<n - 1))
	r.bits >>= n
	r.nbits -= n
	return v
}

// unload gives whole bytes back to the input, and drops the rest of a byte.
func (r *Reader) unload() {
	r.pos -= int(r.nbits >> 3)
	r.bits, r.nbits = 0, 0
}

// bytes returns the next n bytes of input, fewer than inMargin, at a byte's
// boundary. The slice is good until the next call.
func (r *Reader) bytes(n int) ([]byte, error) {
	if r.pos+n > r.end {
		if !r.eof {
			r.limit = -1
			if err := r.more(); err != nil {
				return nil, err
			}
		}
		if r.pos+n > r.end {
			if r.pos >= r.end && r.srcIs == io.EOF {
				return nil, io.EOF
			}
			return nil, r.cut()
		}
	}
	p := r.in[r.pos : r.pos+n]
	r.pos += n
	return p, nil
}

// must is bytes where the input must not end.
func (r *Reader) must(n int) ([]byte, error) {
	p, err := r.bytes(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return p, err
}

// header reads a member's header; io.EOF if there is no further member.
func (r *Reader) header() error {
	p, err := r.bytes(1)
	if err != nil {
		return err
	}
	first := p[0]
	if p, err = r.must(9); err != nil {
		return err
	}
	if first != 0x1f || p[0] != 0x8b || p[1] != 8 {
		return ErrHeader
	}
	sum := crc32.Update(0, crc32.IEEETable, append([]byte{first}, p...))
	flags := p[2]
	skip := func(n int) error {
		p, err := r.must(n)
		sum = crc32.Update(sum, crc32.IEEETable, p)
		return err
	}
	if flags&4 != 0 { // extra field
		p, err := r.must(2)
		if err != nil {
			return err
		}
		n := int(binary.LittleEndian.Uint16(p))
		sum = crc32.Update(sum, crc32.IEEETable, p)
		for ; n > 0; n -= min(n, 16) {
			if err := skip(min(n, 16)); err != nil {
				return err
			}
		}
	}
	for _, flag := range []byte{8, 16} { // name, comment
		for flags&flag != 0 {
			p, err := r.must(1)
			if err != nil {
				return err
			}
			sum = crc32.Update(sum, crc32.IEEETable, p)
			if p[0] == 0 {
				break
			}
		}
	}
	if flags&2 != 0 { // checksum of the header
		p, err := r.must(2)
		if err != nil {
			return err
		}
		if binary.LittleEndian.Uint16(p) != uint16(sum) {
			return ErrHeader
		}
	}
	r.sum, r.size, r.final, r.state = 0, 0, false, atBlock
	// A new member must not refer to what came before it.
	r.written, r.served, r.counted = 0, 0, 0
	return nil
}

func (r *Reader) trailer() error {
	r.unload()
	p, err := r.must(8)
	if err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(p) != r.sum || binary.LittleEndian.Uint32(p[4:]) != r.size {
		return ErrChecksum
	}
	r.state = atMember
	return nil
}

// block reads a block's header.
func (r *Reader) block() error {
	if err := r.fill(); err != nil {
		return err
	}
	r.final = r.take(1) == 1
	switch r.take(2) {
	case 0:
		r.unload()
		p, err := r.must(4)
		if err != nil {
			return err
		}
		n := binary.LittleEndian.Uint16(p)
		if n != ^binary.LittleEndian.Uint16(p[2:]) {
			return ErrCorrupt
		}
		r.stored, r.state = int(n), inStored
		if n == 0 {
			r.state = atBlock
		}
		return nil
	case 1:
		return r.fixed()
	case 2:
		return r.dynamic()
	}
	return ErrCorrupt
}

func (r *Reader) copyStored() error {
	if r.pos >= r.end {
		if r.eof {
			return r.cut()
		}
		r.limit = -1
		if err := r.more(); err != nil {
			return err
		}
		if r.pos >= r.end {
			return r.cut()
		}
	}
	n := min(r.stored, r.end-r.pos, outSize-outMargin-r.written)
	copy(r.out[r.written:], r.in[r.pos:r.pos+n])
	r.pos += n
	r.written += n
	if r.stored -= n; r.stored == 0 {
		r.state = atBlock
	}
	return nil
}

// fixed sets up the codes that the format prescribes.
func (r *Reader) fixed() error {
	for i := range 288 {
		switch {
		case i < 144, i >= 280:
			r.lens[i] = 8
		case i < 256:
			r.lens[i] = 9
		default:
			r.lens[i] = 7
		}
	}
	for i := range 32 {
		r.lens[288+i] = 5
	}
	return r.tables(r.lens[:288], r.lens[288:])
}

func (r *Reader) tables(lit, dist []uint8) error {
	if !build(r.lit[:], litWidth, lit, litSymbols[:]) || !build(r.dist[:], distWidth, dist, distSymbols[:]) {
		return ErrCorrupt
	}
	r.state = inCodes
	return nil
}

// preOrder is the order in which the lengths of the code for code lengths come.
var preOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// dynamic reads the codes of a block.
func (r *Reader) dynamic() error {
	nlit, ndist, npre := int(r.take(5))+257, int(r.take(5))+1, int(r.take(4))+4
	if nlit > 286 || ndist > 30 {
		return ErrCorrupt
	}
	var pre [19]uint8
	for i := range npre {
		if err := r.fill(); err != nil {
			return err
		}
		pre[preOrder[i]] = uint8(r.take(3))
	}
	if !build(r.pre[:], preWidth, pre[:], preSymbols[:]) {
		return ErrCorrupt
	}
	lens := r.lens[:nlit+ndist]
	for i := 0; i < len(lens); {
		if err := r.fill(); err != nil {
			return err
		}
		e := r.pre[r.bits&(1<<preWidth-1)]
		if e&flagLiteral == 0 {
			return ErrCorrupt
		}
		r.take(uint(e & 0xff))
		symbol := e >> 16
		if symbol < 16 {
			lens[i] = uint8(symbol)
			i++
			continue
		}
		var repeat int
		var value uint8
		switch symbol {
		case 16:
			if i == 0 {
				return ErrCorrupt
			}
			repeat, value = 3+int(r.take(2)), lens[i-1]
		case 17:
			repeat = 3 + int(r.take(3))
		default:
			repeat = 11 + int(r.take(7))
		}
		if i+repeat > len(lens) {
			return ErrCorrupt
		}
		for range repeat {
			lens[i] = value
			i++
		}
	}
	if r.overrun() {
		return r.cut()
	}
	return r.tables(lens[:nlit], lens[nlit:])
}

// codes decodes until the block ends or the output buffer is full.
func (r *Reader) codes() error {
	for r.written <= outSize-outMargin && r.state == inCodes {
		if r.pos > r.limit {
			if err := r.more(); err != nil {
				return err
			}
		}
		err := r.fast()
		if r.overrun() {
			return r.cut()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// fast is the loop that all the time goes into. A round starts with at least
// 56 bits loaded: enough for three literals of the first level, or, loaded
// again, for a length and a distance of 48 bits at most.
func (r *Reader) fast() error {
	in, out := &r.in, &r.out
	lit, dist := &r.lit, &r.dist
	bits, nbits, pos, o, limit := r.bits, r.nbits, r.pos, r.written, r.limit
	var err error
rounds:
	for pos <= limit && o <= outSize-outMargin {
		bits |= binary.LittleEndian.Uint64(in[pos:pos+8]) << (nbits & 63)
		pos += int((63 - nbits) >> 3)
		nbits |= 56
		e := lit[bits&(1<<litWidth-1)]
		if e&flagLiteral != 0 {
			bits >>= e & 63
			nbits -= uint(e & 0xff)
			out[o] = byte(e >> 16)
			o++
			e = lit[bits&(1<<litWidth-1)]
			if e&flagLiteral != 0 {
				bits >>= e & 63
				nbits -= uint(e & 0xff)
				out[o] = byte(e >> 16)
				o++
				e = lit[bits&(1<<litWidth-1)]
				if e&flagLiteral != 0 {
					bits >>= e & 63
					nbits -= uint(e & 0xff)
					out[o] = byte(e >> 16)
					o++
					continue
				}
			}
			bits |= binary.LittleEndian.Uint64(in[pos:pos+8]) << (nbits & 63)
			pos += int((63 - nbits) >> 3)
			nbits |= 56
		}
		if e&flagOther != 0 {
			if e&flagLink == flagLink {
				bits >>= litWidth
				nbits -= litWidth
				e = lit[(e>>16+uint32(bits)&(1<<(e>>8&31)-1))&(litEntries-1)]
				if e&flagLiteral != 0 {
					bits >>= e & 63
					nbits -= uint(e & 0xff)
					out[o] = byte(e >> 16)
					o++
					continue
				}
			}
			if e&flagOther != 0 {
				if e&^0x1fff != endOfBlock {
					err = ErrCorrupt
					break rounds
				}
				bits >>= e & 63
				nbits -= uint(e & 0xff)
				r.state = atBlock
				break rounds
			}
		}
		length := int(e>>16) + int(uint32(bits)&(1<<(e&31)-1)>>(e>>8&31))
		bits >>= e & 63
		nbits -= uint(e & 0xff)
		e = dist[bits&(1<<distWidth-1)]
		if e&flagOther != 0 {
			if e&flagLink != flagLink {
				err = ErrCorrupt
				break rounds
			}
			bits >>= distWidth
			nbits -= distWidth
			e = dist[(e>>16+uint32(bits)&(1<<(e>>8&31)-1))&(distEntries-1)]
			if e&flagOther != 0 {
				err = ErrCorrupt
				break rounds
			}
		}
		distance := int(e>>16) + int(uint32(bits)&(1<<(e&31)-1)>>(e>>8&31))
		bits >>= e & 63
		nbits -= uint(e & 0xff)
		from := o - distance
		if from < 0 {
			err = ErrCorrupt
			break rounds
		}
		switch {
		case distance >= 8:
			// Whole words: what is written too much is overwritten later.
			for end := o + length; ; {
				binary.LittleEndian.PutUint64(out[o:o+8], binary.LittleEndian.Uint64(out[from:from+8]))
				o += 8
				from += 8
				if o >= end {
					o = end
					break
				}
			}
		case distance == 1:
			word := uint64(out[from]) * 0x0101010101010101
			for end := o + length; ; {
				binary.LittleEndian.PutUint64(out[o:o+8], word)
				o += 8
				if o >= end {
					o = end
					break
				}
			}
		default:
			for range length {
				out[o] = out[from]
				o++
				from++
			}
		}
	}
	r.bits, r.nbits, r.pos, r.written = bits, nbits, pos, o
	return err
}
