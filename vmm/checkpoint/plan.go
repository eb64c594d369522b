package checkpoint

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"slices"
	"unsafe"
)

// Where the resumer's parts lie, from the address of its code: the code, its steps, and what the
// steps refer to.
const (
	codeSize    = 0x1000
	stepsOffset = 0x2000
	dataOffset  = 0x600000
	dataLimit   = 16 << 20
	resumerSpan = dataOffset + dataLimit
)

// The resumer lies somewhere between these, below everything that a kernel or a loader places.
const (
	lowestBase  = 0x10000000
	highestBase = 0x400000000000
)

// newBase chooses where the resumer lies. It stays in the process, so its system call instruction must
// not be at an address that is known to who has taken over the process.
func newBase(areas []area) uint64 {
	for {
		var b [8]byte
		rand.Read(b[:])
		base := lowestBase + binary.LittleEndian.Uint64(b[:])%(highestBase-lowestBase)&^(pageSize-1)
		if !slices.ContainsFunc(areas, func(a area) bool { return a.start < base+resumerSpan && base < a.end }) {
			return base
		}
	}
}

// resumerSize is at least the size of the resumer's code, bytes.
const resumerSize = 512

// code is the resumer's code.
func code() []byte { return unsafe.Slice((*byte)(resumerCode()), resumerSize) }

// Flags of a step.
const (
	fromVDSO    = 1 << iota // the first argument counts from the vDSO; nothing is to be done if it is the fifth
	onFrame                 // the first argument becomes the stack pointer
	makesThread             // the new thread goes on with its own steps
	mayFail
	checked // the result must be the one that is wanted
)

// step is one system call, as the resumer reads it.
type step struct {
	nr     uint64
	args   [6]uint64
	flags  uint64
	thread uint64 // index of the new thread's steps; in the program their address
	text   uint64 // what is written when it fails, and its length
	length uint64
	wanted uint64
}

const stepSize = uint64(unsafe.Sizeof(step{}))

// plan is the resumer's steps and data as they are put together.
type plan struct {
	base  uint64 // the address of the resumer's code
	steps []step
	data  bytes.Buffer
	texts map[string][2]uint64
	pid   int // of the saved process
	// pagesFD is the descriptor of the file of the pages.
	pagesFD uint64
	keep    string // see Options.Keep
	files   []File // that are opened again
}

// put adds bytes to the data, at a multiple of align, and returns their address.
func (p *plan) put(b []byte, align int) uint64 {
	for p.data.Len()%align != 0 {
		p.data.WriteByte(0)
	}
	at := p.data.Len()
	p.data.Write(b)
	return p.base + dataOffset + uint64(at)
}

func (p *plan) cstring(s string) uint64 { return p.put(append([]byte(s), 0), 1) }

// call adds a system call; what it does is said when it fails.
func (p *plan) call(what string, nr uintptr, args ...uint64) *step {
	if p.texts == nil {
		p.texts = map[string][2]uint64{}
	}
	t, ok := p.texts[what]
	if !ok {
		text := []byte("cannot continue the saved process: " + what + "\n")
		t = [2]uint64{p.put(text, 1), uint64(len(text))}
		p.texts[what] = t
	}
	s := step{nr: uint64(nr), text: t[0], length: t[1]}
	copy(s.args[:], args)
	p.steps = append(p.steps, s)
	return &p.steps[len(p.steps)-1]
}

// program returns the resumer: a static executable.
func (p *plan) program() ([]byte, error) {
	var steps bytes.Buffer
	for _, s := range p.steps {
		if s.flags&makesThread != 0 {
			s.thread = p.base + stepsOffset + s.thread*stepSize
		}
		if err := binary.Write(&steps, binary.LittleEndian, s); err != nil {
			return nil, err
		}
	}
	const page = pageSize
	for steps.Len()%page != 0 {
		steps.WriteByte(0)
	}
	if steps.Len() > dataOffset-stepsOffset || p.data.Len() > dataLimit {
		return nil, errors.New("its memory is in too many pieces")
	}
	text := make([]byte, codeSize)
	copy(text, code())

	const segments = 4
	var b bytes.Buffer
	b.WriteString("\x7fELF\x02\x01\x01" + "\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	add := func(values ...any) {
		for _, v := range values {
			binary.Write(&b, binary.LittleEndian, v)
		}
	}
	// Type, machine, version, entry, program and section headers, flags, sizes.
	add(uint16(2), uint16(62), uint32(1), p.base, uint64(64), uint64(0), uint32(0),
		uint16(64), uint16(56), uint16(segments), uint16(0), uint16(0), uint16(0))
	segment := func(kind, flags uint32, offset, address, size, align uint64) {
		add(kind, flags, offset, address, address, size, size, align)
	}
	const load, stack, readable, writable, executable = 1, 0x6474e551, 4, 2, 1
	segment(load, readable|executable, page, p.base, codeSize, page)
	segment(load, readable, page+codeSize, p.base+stepsOffset, uint64(steps.Len()), page)
	segment(load, readable, page+codeSize+uint64(steps.Len()), p.base+dataOffset, uint64(p.data.Len()), page)
	segment(stack, readable|writable, 0, 0, 0, 16)
	b.Write(make([]byte, page-b.Len()))
	b.Write(text)
	b.Write(steps.Bytes())
	b.Write(p.data.Bytes())
	return b.Bytes(), nil
}
