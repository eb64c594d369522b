package layer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"manis/image/fault"
)

// Types of entries, as the archive spells them.
const (
	Regular  = '0'
	HardLink = '1'
	Symlink  = '2'
	Char     = '3'
	Block    = '4'
	Dir      = '5'
	FIFO     = '6'
)

// Entry is one entry of an archive.
type Entry struct {
	Name, Link string // not cleaned; Link of hard and symbolic links only
	Type       byte   // one of the types above, or one that nobody reads
	Mode       uint16 // permission, setuid, setgid and sticky bits
	UID, GID   uint32
	Size       int64 // of a regular file, in bytes, holes included
	Mtime      int64 // seconds since 1970
	Nsec       uint32
	Major      int64 // of device nodes
	Minor      int64
	Xattrs     []Xattr
}

// Xattr is an extended attribute of an entry, as it came.
type Xattr struct {
	Name  string
	Value []byte
}

// Data takes the content of a regular file.
type Data interface {
	io.Writer
	// Zero stands for a write of n zero bytes.
	Zero(n int64) error
}

const (
	blockSize = 512
	// maxSpecial bounds the headers that are stored as data: PAX records with
	// their extended attributes, long names.
	maxSpecial = 1 << 20
	// maxFragments bounds the map of a sparse file.
	maxFragments = 1 << 20
)

// Reader takes a tar archive apart. It reads what GNU tar, bsdtar, star and
// Go write: V7, ustar, PAX and GNU headers, long names, sparse files in all
// four encodings. It is strict where a lax reader could be led astray.
type Reader struct {
	r     io.Reader
	buf   []byte // for data
	block [blockSize]byte

	entry  Entry
	left   int64      // stored bytes of the current entry not read yet
	pad    int64      // padding behind them
	sparse []fragment // of the current entry, if it is sparse
	seen   bool       // a header was read
	err    error
}

// fragment is a run of stored data in a sparse file.
type fragment struct{ off, len int64 }

// NewReader reads the archive r.
func NewReader(r io.Reader) *Reader {
	return &Reader{r: r, buf: make([]byte, 128<<10)}
}

// Next returns the next entry, or io.EOF. The entry is good until the next
// call. Data that was not taken is skipped.
func (t *Reader) Next() (*Entry, error) {
	if t.err != nil {
		return nil, t.err
	}
	e, err := t.next()
	if err != nil {
		t.err = err
		return nil, err
	}
	return e, nil
}

func (t *Reader) next() (*Entry, error) {
	if err := t.skip(t.left); err != nil {
		return nil, err
	}
	// Some writers leave out the padding of the last entry.
	if err := t.skip(t.pad); errors.Is(err, fault.ErrTruncated) {
		return nil, io.EOF
	} else if err != nil {
		return nil, err
	}
	t.left, t.pad, t.sparse = 0, 0, nil
	var p pax
	var longName, longLink string
	for extra := 0; ; extra++ {
		if extra > 16 {
			return nil, fmt.Errorf("tar archive with more than 16 extended headers in a row: %w", fault.ErrInvalid)
		}
		if err := t.header(); err != nil {
			return nil, err
		}
		kind := t.block[156]
		switch kind {
		case 'x', 'g', 'L', 'K':
			size, err := number(t.block[124:136])
			if err != nil {
				return nil, fmt.Errorf("size of an extended header: %w", err)
			}
			data, err := t.special(size)
			if err != nil {
				return nil, err
			}
			switch kind {
			case 'x':
				if err := p.parse(data); err != nil {
					return nil, err
				}
			case 'L':
				longName = cString(data)
			case 'K':
				longLink = cString(data)
			}
			// Global records ('g') are comments of git and the like.
		default:
			return t.finish(kind, &p, longName, longLink)
		}
	}
}

// header reads a header block and verifies its checksum. Two zero blocks, or
// the plain end of the stream, end the archive.
func (t *Reader) header() error {
	zeroes := 0
	for {
		n, err := io.ReadFull(t.r, t.block[:])
		switch {
		case err == io.EOF && n == 0:
			return io.EOF
		case errors.Is(err, io.ErrUnexpectedEOF):
			return fmt.Errorf("tar archive ends within a header: %w", fault.ErrTruncated)
		case err != nil:
			return err
		}
		if t.block == [blockSize]byte{} {
			if zeroes++; zeroes == 2 {
				return io.EOF
			}
			continue
		}
		if zeroes > 0 {
			return fmt.Errorf("tar archive goes on behind its end mark: %w", fault.ErrInvalid)
		}
		break
	}
	want, err := number(t.block[148:156])
	if err != nil || !checksumFits(&t.block, want) {
		if !t.seen {
			return fmt.Errorf("not a tar archive: %w", fault.ErrInvalid)
		}
		return fmt.Errorf("tar header with a wrong checksum: %w", fault.ErrInvalid)
	}
	t.seen = true
	return nil
}

// checksumFits compares both sums in use: of unsigned bytes, and of signed
// ones as some old systems did.
func checksumFits(b *[blockSize]byte, want int64) bool {
	var unsigned, signed int64
	for i, c := range b {
		if i >= 148 && i < 156 {
			c = ' '
		}
		unsigned += int64(c)
		signed += int64(int8(c))
	}
	return want == unsigned || want == signed
}

// special reads the data of an extended header.
func (t *Reader) special(size int64) ([]byte, error) {
	if size < 0 {
		return nil, fmt.Errorf("extended header of %d bytes: %w", size, fault.ErrInvalid)
	}
	if size > maxSpecial {
		return nil, fmt.Errorf("extended header of %d bytes (at most %d allowed): %w", size, maxSpecial, fault.ErrLimit)
	}
	data := make([]byte, size)
	if err := t.full(data); err != nil {
		return nil, err
	}
	return data, t.skip(-size & (blockSize - 1))
}

func (t *Reader) finish(kind byte, p *pax, longName, longLink string) (*Entry, error) {
	b := &t.block
	e := &t.entry
	*e = Entry{Type: kind, Name: cString(b[0:100]), Link: cString(b[157:257])}
	gnu := bytes.Equal(b[257:265], []byte("ustar  \x00"))
	ustar := !gnu && bytes.Equal(b[257:263], []byte("ustar\x00"))
	if ustar {
		prefix := b[345:500]
		if bytes.Equal(b[508:512], []byte("tar\x00")) { // star's times begin earlier
			prefix = b[345:476]
		}
		if s := cString(prefix); s != "" {
			e.Name = s + "/" + e.Name
		}
	}
	if err := t.numbers(e, p, gnu || ustar); err != nil {
		return e, fmt.Errorf("entry %.200q: %w", e.Name, err)
	}
	override(&e.Name, longName)
	override(&e.Link, longLink)
	override(&e.Name, p.path)
	override(&e.Link, p.link)
	if p.sparse.name != "" {
		e.Name = p.sparse.name
	}
	e.Xattrs = p.xattrs

	switch {
	case kind == 0 && strings.HasSuffix(e.Name, "/"):
		e.Type = Dir // as V7 tar wrote them
	case kind == 0 || kind == '7' || kind == 'S':
		e.Type = Regular
	}
	// Only files have data, and some writers give links their target's size.
	stored := e.Size
	if e.Type != Regular {
		e.Size = 0
		if e.Type >= HardLink && e.Type <= FIFO {
			stored = 0
		}
	}
	t.left, t.pad = stored, -stored&(blockSize-1)
	if kind == 'S' || p.sparse.used() {
		if e.Type != Regular {
			return e, fmt.Errorf("entry %.200q: sparse, but not a file: %w", e.Name, fault.ErrInvalid)
		}
		if err := t.readSparse(kind, p); err != nil {
			return e, fmt.Errorf("entry %.200q: %w", e.Name, err)
		}
	}
	return e, nil
}

func override(s *string, with string) {
	if with != "" {
		*s = with
	}
}

// numbers reads the numeric fields. PAX records win over header fields, which
// then need not even be well-formed.
func (t *Reader) numbers(e *Entry, p *pax, devices bool) error {
	field := func(what string, from, to int, pax *int64) (int64, error) {
		if pax != nil {
			return *pax, nil
		}
		n, err := number(t.block[from:to])
		if err != nil {
			return 0, fmt.Errorf("%s: %w", what, err)
		}
		return n, nil
	}
	mode, err := field("mode", 100, 108, nil)
	if err != nil {
		return err
	}
	e.Mode = uint16(mode & 0o7777)
	uid, err := field("user", 108, 116, p.uid)
	if err != nil {
		return err
	}
	gid, err := field("group", 116, 124, p.gid)
	if err != nil {
		return err
	}
	const most = 1<<32 - 2 // -1 means "no one" to the kernel
	if uid < 0 || uid > most || gid < 0 || gid > most {
		return fmt.Errorf("owner %d:%d: %w", uid, gid, fault.ErrInvalid)
	}
	e.UID, e.GID = uint32(uid), uint32(gid)
	if e.Size, err = field("size", 124, 136, p.size); err != nil {
		return err
	}
	if e.Size < 0 || e.Size > 1<<62 {
		return fmt.Errorf("size %d: %w", e.Size, fault.ErrInvalid)
	}
	if p.mtime != nil {
		e.Mtime, e.Nsec = p.mtime.sec, p.mtime.nsec
	} else if e.Mtime, err = field("time", 136, 148, nil); err != nil {
		return err
	}
	if devices && (e.Type == Char || e.Type == Block) {
		if e.Major, err = field("device", 329, 337, nil); err != nil {
			return err
		}
		if e.Minor, err = field("device", 337, 345, nil); err != nil {
			return err
		}
	}
	return nil
}

// Copy hands the content of the current regular file to w.
func (t *Reader) Copy(w Data) error {
	if t.err != nil {
		return t.err
	}
	if t.sparse == nil {
		return t.copyData(w, t.left)
	}
	at := int64(0)
	for _, f := range t.sparse {
		if err := w.Zero(f.off - at); err != nil {
			return err
		}
		if err := t.copyData(w, f.len); err != nil {
			return err
		}
		at = f.off + f.len
	}
	return w.Zero(t.entry.Size - at)
}

func (t *Reader) copyData(w Data, n int64) error {
	for n > 0 {
		p := t.buf[:min(n, int64(len(t.buf)))]
		k, err := t.r.Read(p)
		if k > 0 {
			t.left -= int64(k)
			n -= int64(k)
			if _, err := w.Write(p[:k]); err != nil {
				return err
			}
		}
		if err == io.EOF && n > 0 {
			t.err = t.cutShort()
			return t.err
		}
		if err != nil && err != io.EOF {
			t.err = err
			return err
		}
	}
	return nil
}

func (t *Reader) cutShort() error {
	return fmt.Errorf("tar archive ends within the data of an entry: %w", fault.ErrTruncated)
}

// full fills p from the archive.
func (t *Reader) full(p []byte) error {
	_, err := io.ReadFull(t.r, p)
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return t.cutShort()
	}
	return err
}

func (t *Reader) skip(n int64) error {
	for n > 0 {
		p := t.buf[:min(n, int64(len(t.buf)))]
		if err := t.full(p); err != nil {
			return err
		}
		n -= int64(len(p))
	}
	return nil
}
