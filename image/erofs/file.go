package erofs

import (
	"encoding/binary"
	"errors"
	"fmt"

	"manis/image/fault"
)

// MaxFileSize is the largest file a guest could read: the page cache's limit
// is higher, but 16 TiB is where ext4 ends and every block number still fits.
const MaxFileSize = 1 << 44

const (
	minChunk     = 64 << 10 // smallest run of zeros worth a hole
	maxMapChunks = 1 << 16
)

// File writes the data of one regular file, front to back.
type File struct {
	b     *Builder
	ino   Ino
	n     inode
	size  int64
	at    int64 // bytes written, holes included
	tail  []byte
	tailN int64 // length of the tail held back for the metadata area

	chunk   int64 // chunk size in bytes; 0: too small for holes
	chunks  []uint32
	open    bool  // the current chunk has blocks
	pending int64 // zeros of the current chunk not written yet
}

// Create makes a regular file of size bytes. Until its data is complete and
// the File closed, nothing else may be created.
func (b *Builder) Create(attr Attr, xattrs []Xattr, size int64) (*File, error) {
	if size < 0 || size > MaxFileSize {
		return nil, fmt.Errorf("file of %d bytes (at most %d fit): %w", size, int64(MaxFileSize), fault.ErrLimit)
	}
	attr.Mode = attr.Mode&^TypeMask | TypeRegular
	ino, n, err := b.create(attr, xattrs)
	if err != nil {
		return nil, err
	}
	n.size = uint64(size)
	if n.block, err = b.nextBlock(); err != nil {
		return nil, err
	}
	f := &File{b: b, ino: ino, n: n, size: size}
	if t := size % BlockSize; t > 0 && n.fitsInline(int(t)) {
		f.tailN = t
		f.tail = make([]byte, 0, t)
	}
	if size >= 2*minChunk {
		f.chunk = minChunk
		for size/f.chunk >= maxMapChunks {
			f.chunk *= 2
		}
	}
	b.writing = f
	return f, nil
}

// Write appends data.
func (f *File) Write(p []byte) (int, error) {
	total := len(p)
	if int64(total) > f.size-f.at {
		return 0, fmt.Errorf("file is longer than its %d bytes: %w", f.size, fault.ErrInvalid)
	}
	if f.chunk == 0 {
		n := f.body(p)
		if err := f.b.out.write(p[:n]); err != nil {
			return 0, err
		}
		f.tail = append(f.tail, p[n:]...)
		f.at += int64(total)
		return total, nil
	}
	for len(p) > 0 {
		left := f.chunk - f.at%f.chunk
		n := int(min(left, int64(len(p)), holeWindow))
		part := p[:n]
		if !f.open && isZero(part) {
			if err := f.skip(int64(n)); err != nil {
				return 0, err
			}
		} else if err := f.put(part); err != nil {
			return 0, err
		}
		p = p[n:]
	}
	return total, nil
}

// body is how much of p lies before the tail.
func (f *File) body(p []byte) int {
	return int(max(0, min(int64(len(p)), f.size-f.tailN-f.at)))
}

// Zero appends n bytes of zeros without anyone having to make them.
func (f *File) Zero(n int64) error {
	if n < 0 || n > f.size-f.at {
		return fmt.Errorf("file is longer than its %d bytes: %w", f.size, fault.ErrInvalid)
	}
	if f.chunk == 0 {
		for n > 0 {
			k := min(n, int64(len(zeros)))
			if _, err := f.Write(zeros[:k]); err != nil {
				return err
			}
			n -= k
		}
		return nil
	}
	for n > 0 {
		k := min(n, f.chunk-f.at%f.chunk)
		if f.open {
			for left := k; left > 0; {
				w := min(left, int64(len(zeros)))
				if err := f.put(zeros[:w]); err != nil {
					return err
				}
				left -= w
			}
		} else if err := f.skip(k); err != nil {
			return err
		}
		n -= k
	}
	return nil
}

// put writes data into the current chunk, which p does not cross.
func (f *File) put(p []byte) error {
	if !f.open {
		if err := f.openChunk(); err != nil {
			return err
		}
	}
	n := f.body(p)
	if err := f.b.out.write(p[:n]); err != nil {
		return err
	}
	f.tail = append(f.tail, p[n:]...)
	f.at += int64(len(p))
	return f.endChunk()
}

// openChunk gives the current chunk its blocks, with the zeros seen so far.
func (f *File) openChunk() error {
	blk, err := f.b.nextBlock()
	if err != nil {
		return err
	}
	f.chunks = append(f.chunks, blk)
	f.open = true
	lead := f.pending
	f.pending = 0
	// Zeros that reach into the tail belong to it.
	start := f.at - lead
	body := max(0, min(lead, f.size-f.tailN-start))
	if err := f.b.out.zero(body); err != nil {
		return err
	}
	f.tail = append(f.tail, zeros[:lead-body]...)
	return nil
}

// skip advances by n zeros within the current chunk.
func (f *File) skip(n int64) error {
	f.pending += n
	f.at += n
	return f.endChunk()
}

func (f *File) endChunk() error {
	if f.at%f.chunk != 0 && f.at != f.size {
		return nil
	}
	if !f.open {
		f.chunks = append(f.chunks, nullBlock)
	}
	f.open, f.pending = false, 0
	return nil
}

// Close completes the file and returns its inode, ready for Link. It fails
// when less than the announced size was written.
func (f *File) Close() (Ino, error) {
	b := f.b
	b.writing = nil
	if f.at != f.size {
		return 0, fmt.Errorf("file ends after %d of %d bytes: %w", f.at, f.size, fault.ErrTruncated)
	}
	n := f.n
	holes := false
	for _, c := range f.chunks {
		holes = holes || c == nullBlock
	}
	switch {
	case holes:
		n.layout, n.block = layoutChunked, 0
		for c := f.chunk / BlockSize; c > 1; c /= 2 {
			n.chunk++
		}
		b.chunked = true
		// The last chunk was the last thing written, so its tail follows.
		if err := errors.Join(b.out.write(f.tail), b.out.align()); err != nil {
			return 0, err
		}
		m := make([]byte, 0, 4*len(f.chunks))
		for _, c := range f.chunks {
			m = binary.LittleEndian.AppendUint32(m, c)
		}
		if err := b.spool.add(m); err != nil {
			return 0, err
		}
	case f.tailN > 0:
		n.layout = layoutInline
		if err := b.spool.add(f.tail); err != nil {
			return 0, err
		}
	default:
		if err := b.out.align(); err != nil {
			return 0, err
		}
	}
	b.inodes.put(uint32(f.ino), n)
	return f.ino, b.fault()
}

// Abandon drops a file whose data did not arrive.
func (f *File) Abandon() { f.b.writing = nil }

// mapLen is the length in bytes of the chunk map of a chunk-based inode.
func (n *inode) mapLen() int64 {
	if n.mode&TypeMask != TypeRegular || n.layout != layoutChunked {
		return 0
	}
	size := int64(BlockSize) << n.chunk
	return (int64(n.size) + size - 1) / size * 4
}

// eachChunk calls fn with offset and length in the image of each chunk that
// is not a hole.
func eachChunk(n inode, m []byte, fn func(at, length int64) error) error {
	size := int64(BlockSize) << n.chunk
	for i := int64(0); i*4 < int64(len(m)); i++ {
		blk := binary.LittleEndian.Uint32(m[i*4:])
		if blk == nullBlock {
			continue
		}
		length := min(size, roundUp(int64(n.size)-i*size, BlockSize))
		if err := fn(int64(blk)*BlockSize, length); err != nil {
			return err
		}
	}
	return nil
}
