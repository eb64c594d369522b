package erofs

import (
	"fmt"
	"os"
	"unsafe"
)

// paged is a growing array of fixed-size records, of which only so many pages
// stay in memory; the others live in an unlinked temporary file. It is what
// keeps the memory of a build flat however many entries a layer brings.
//
// T must hold no pointers. Records are copied in and out. The first I/O error
// sticks in err and every later get returns a zero record, so that callers
// check once per operation instead of once per access.
type paged[T any] struct {
	dir       string
	maxFrames int
	perPage   uint32

	count  uint32  // records
	where  []int32 // page -> frame, or -1 when it is in the file
	frames []frame[T]
	hand   int // clock hand for eviction
	file   *os.File
	err    error
}

type frame[T any] struct {
	data  []T
	page  uint32
	used  bool
	dirty bool
}

const pageBytes = 16 << 10

// newPaged makes a table that keeps at most maxBytes of records in memory and
// spills into a file in dir. Record 0 exists and stays zero: "none".
func newPaged[T any](dir string, maxBytes int) *paged[T] {
	var zero T
	size := int(unsafe.Sizeof(zero))
	p := &paged[T]{dir: dir, perPage: uint32(pageBytes / size), maxFrames: max(maxBytes/pageBytes, 4)}
	p.grow(1)
	return p
}

// grow appends n zero records and returns the index of the first.
func (p *paged[T]) grow(n uint32) uint32 {
	first := p.count
	p.count += n
	for uint64(len(p.where))*uint64(p.perPage) < uint64(p.count) {
		p.where = append(p.where, -1)
		page := uint32(len(p.where) - 1)
		f := p.claim()
		clear(p.frames[f].data)
		p.frames[f].page, p.frames[f].used, p.frames[f].dirty = page, true, true
		p.where[page] = int32(f)
	}
	return first
}

func (p *paged[T]) get(i uint32) T {
	f := p.frame(i / p.perPage)
	return f.data[i%p.perPage]
}

func (p *paged[T]) put(i uint32, v T) {
	f := p.frame(i / p.perPage)
	f.dirty = true
	f.data[i%p.perPage] = v
}

// span returns n records from i on, which must lie in one page. The slice is
// good until the next call on this table.
func (p *paged[T]) span(i, n uint32, write bool) []T {
	f := p.frame(i / p.perPage)
	f.dirty = f.dirty || write
	at := i % p.perPage
	return f.data[at : at+n]
}

func (p *paged[T]) frame(page uint32) *frame[T] {
	if at := p.where[page]; at >= 0 {
		f := &p.frames[at]
		f.used = true
		return f
	}
	at := p.claim()
	f := &p.frames[at]
	f.page, f.used, f.dirty = page, true, false
	p.where[page] = int32(at)
	if _, err := p.file.ReadAt(asBytes(f.data), int64(page)*pageBytes); err != nil {
		p.fail(fmt.Errorf("read back spilled metadata: %w", err))
		clear(f.data)
	}
	return f
}

// claim returns a frame that holds no page, after writing out the page that
// was least recently touched when all are taken.
func (p *paged[T]) claim() int {
	if len(p.frames) < p.maxFrames {
		p.frames = append(p.frames, frame[T]{data: make([]T, p.perPage)})
		return len(p.frames) - 1
	}
	for {
		p.hand = (p.hand + 1) % len(p.frames)
		f := &p.frames[p.hand]
		if f.used {
			f.used = false
			continue
		}
		if f.dirty {
			p.writeOut(f)
		}
		p.where[f.page] = -1
		return p.hand
	}
}

func (p *paged[T]) writeOut(f *frame[T]) {
	if p.file == nil {
		file, err := tempFile(p.dir)
		if err != nil {
			p.fail(err)
			return
		}
		p.file = file
	}
	if _, err := p.file.WriteAt(asBytes(f.data), int64(f.page)*pageBytes); err != nil {
		p.fail(fmt.Errorf("spill metadata: %w", err))
	}
	f.dirty = false
}

func (p *paged[T]) fail(err error) {
	if p.err == nil {
		p.err = err
	}
}

func (p *paged[T]) close() {
	if p.file != nil {
		p.file.Close()
	}
	p.frames, p.where = nil, nil
}

// asBytes views pointer-free records as the bytes they occupy.
func asBytes[T any](s []T) []byte {
	var zero T
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(s))), len(s)*int(unsafe.Sizeof(zero)))
}

// tempFile opens a file in dir that has no name: nothing is left behind,
// whatever ends this process.
func tempFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "spool-*")
	if err != nil {
		return nil, fmt.Errorf("create a temporary file: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("unlink a temporary file: %w", err)
	}
	return f, nil
}
