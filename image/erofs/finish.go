package erofs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"

	"manis/image/fault"
)

// Summary tells of a finished image.
type Summary struct {
	Size   int64 // bytes, a multiple of BlockSize
	Inodes uint64
}

// Finish writes the metadata and the superblock. The layout is
//
//	superblock | file data | inodes with what is inline | directory blocks
//
// in two passes over the tree: the first gives every inode its place, because
// directory entries name places; the second writes. Both visit the root, then
// directory by directory all children, so that what is listed together is read
// together.
func (b *Builder) Finish(ctx context.Context) (Summary, error) {
	if b.writing != nil {
		return Summary{}, errors.New("a file of this image is still being written")
	}
	if err := errors.Join(b.out.align(), b.out.flush(), b.fault()); err != nil {
		return Summary{}, err
	}
	p := placer{b: b, at: 2 * slotSize} // node 0 would read as "no inode"
	if err := b.walk(ctx, p.place); err != nil {
		return Summary{}, err
	}
	metaStart := b.out.pos()
	dirStart := metaStart + roundUp(p.at, BlockSize)
	end := dirStart + int64(p.dirBlocks)*BlockSize
	if end/BlockSize >= nullBlock {
		return Summary{}, fmt.Errorf("image larger than %d blocks: %w", uint32(nullBlock), fault.ErrLimit)
	}
	w := emitter{
		b: b, meta: newOutput(b.file, metaStart), dirs: newOutput(b.file, dirStart),
		metaStart: metaStart, dirBlock: uint32(dirStart / BlockSize),
	}
	if err := b.walk(ctx, w.emit); err != nil {
		return Summary{}, err
	}
	if err := errors.Join(w.meta.align(), w.meta.flush(), w.dirs.flush(), b.fault()); err != nil {
		return Summary{}, err
	}
	if w.meta.pos() != dirStart || w.dirs.pos() != end {
		return Summary{}, fmt.Errorf("metadata ends at %d and %d, not at %d and %d as laid out", w.meta.pos(), w.dirs.pos(), dirStart, end)
	}
	if err := b.file.Truncate(end); err != nil {
		return Summary{}, fmt.Errorf("set the size of the image: %w", err)
	}
	return Summary{Size: end, Inodes: b.live}, b.writeSuper(uint32(metaStart/BlockSize), uint32(end/BlockSize))
}

// walk visits every inode that has a name: hard links as often as they have
// names.
func (b *Builder) walk(ctx context.Context, visit func(Ino) error) error {
	if err := visit(Root); err != nil {
		return err
	}
	stack := []Ino{Root}
	var below []Ino
	for len(stack) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		dir := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		below = below[:0]
		for id := b.inodes.get(uint32(dir)).child; id != 0; {
			d := b.dirents.get(id)
			if err := visit(d.ino); err != nil {
				return err
			}
			if b.inodes.get(uint32(d.ino)).mode&TypeMask == TypeDir {
				below = append(below, d.ino)
			}
			id = d.next
		}
		slices.Reverse(below)
		stack = append(stack, below...)
		if err := b.fault(); err != nil {
			return err
		}
	}
	return nil
}

// placer is the first pass.
type placer struct {
	b         *Builder
	at        int64 // next free byte of the metadata area
	dirBlocks uint64
}

func (p *placer) place(ino Ino) error {
	n := p.b.inodes.get(uint32(ino))
	if n.nid != 0 {
		return nil // another name of the same file
	}
	if n.mode&TypeMask == TypeDir {
		if err := p.b.sortChildren(ino, &n); err != nil {
			return err
		}
		n.size = uint64(p.b.direntBytes(ino))
		blocks := n.size / BlockSize
		n.layout = layoutInline
		if t := n.size % BlockSize; t == 0 || !n.fitsInline(int(t)) {
			n.layout = layoutPlain
			blocks = (n.size + BlockSize - 1) / BlockSize
		}
		n.block = uint32(p.dirBlocks) // relative to the first directory block
		p.dirBlocks += blocks
	}
	size := inodeSize + int64(n.xattrLen) + n.mapLen()
	off := p.at % BlockSize
	if off+inodeSize > BlockSize {
		p.at, off = roundUp(p.at, BlockSize), 0
	}
	if n.layout == layoutInline {
		// What is inline lies within one block, or the kernel refuses it.
		tail := int64(n.size % BlockSize)
		if (off+size)%BlockSize+tail > BlockSize {
			p.at = roundUp(p.at, BlockSize)
		}
		size += tail
	}
	if p.at>>slotBits >= nullBlock {
		return fmt.Errorf("metadata larger than %d slots: %w", uint32(nullBlock), fault.ErrLimit)
	}
	n.nid = uint32(p.at >> slotBits)
	p.at = roundUp(p.at+size, slotSize)
	p.b.inodes.put(uint32(ino), n)
	return nil
}

// sortChildren relinks the entries of a directory in byte order of their
// names, without the unlinked ones.
func (b *Builder) sortChildren(dir Ino, n *inode) error {
	ids := b.sorted(n.child)
	next := uint32(0)
	for i := len(ids) - 1; i >= 0; i-- {
		d := b.dirents.get(ids[i])
		d.next = next
		b.dirents.put(ids[i], d)
		next = ids[i]
	}
	n.child = next
	b.inodes.put(uint32(dir), *n)
	return b.fault()
}

// sortBytes is how much of a directory's names is sorted in memory at most.
const sortBytes = 16 << 20

// sorted returns the linked entries of a list in the order of their names. The
// names are gathered first: comparing them where they lie would page through
// the tables at random.
func (b *Builder) sorted(id uint32) []uint32 {
	type item struct {
		id, at uint32
		len    uint8
	}
	var items []item
	var names []byte
	for id != 0 {
		d := b.dirents.get(id)
		if d.ino != 0 {
			at := uint32(len(names))
			if len(names) < sortBytes {
				names = append(names, b.names.span(d.name, uint32(d.nameLen), false)...)
			}
			items = append(items, item{id, at, d.nameLen})
		}
		id = d.next
	}
	name := func(x item, i int) []byte {
		if int(x.at) >= sortBytes {
			return b.name(x.id, i)
		}
		return names[x.at : x.at+uint32(x.len)]
	}
	slices.SortFunc(items, func(x, y item) int { return bytes.Compare(name(x, 0), name(y, 1)) })
	ids := make([]uint32, len(items))
	for i, x := range items {
		ids[i] = x.id
	}
	return ids
}

// eachName calls fn for the entries of a sorted directory as they go to disk:
// "." and ".." have their place in the order like any name.
func (b *Builder) eachName(dir Ino, fn func(name []byte, ino Ino)) {
	n := b.inodes.get(uint32(dir))
	dots := []struct {
		name []byte
		ino  Ino
	}{{[]byte("."), dir}, {[]byte(".."), n.parent}}
	for id := n.child; id != 0; {
		d := b.dirents.get(id)
		name := b.name(id, 0)
		for len(dots) > 0 && bytes.Compare(dots[0].name, name) < 0 {
			fn(dots[0].name, dots[0].ino)
			dots = dots[1:]
		}
		fn(name, d.ino)
		id = d.next
	}
	for _, d := range dots {
		fn(d.name, d.ino)
	}
}

// direntBytes is the size of a directory's data: full blocks, then what the
// last one holds.
func (b *Builder) direntBytes(dir Ino) int64 {
	var full, used int64
	b.eachName(dir, func(name []byte, _ Ino) {
		need := int64(direntSize + len(name))
		if used+need > BlockSize {
			full += BlockSize
			used = 0
		}
		used += need
	})
	return full + used
}

// emitter is the second pass.
type emitter struct {
	b         *Builder
	meta      *output
	dirs      *output
	metaStart int64
	dirBlock  uint32 // first directory block
	count     uint32
	scratch   []byte
}

func (w *emitter) emit(ino Ino) error {
	b := w.b
	n := b.inodes.get(uint32(ino))
	at := w.metaStart + int64(n.nid)<<slotBits
	if at < w.meta.pos() {
		return nil // another name of the same file
	}
	if err := w.meta.zero(at - w.meta.pos()); err != nil {
		return err
	}
	var tail []byte
	if n.mode&TypeMask == TypeDir {
		n.block += w.dirBlock
		var err error
		if tail, err = w.emitDir(ino, &n); err != nil {
			return err
		}
	}
	w.count++
	var d [inodeSize]byte
	le := binary.LittleEndian
	le.PutUint16(d[0:], 1|uint16(n.layout)<<1) // 1: extended
	if n.xattrLen > 0 {
		le.PutUint16(d[2:], uint16((n.xattrLen-xattrHeaderSize)/4+1))
	}
	le.PutUint16(d[4:], n.mode)
	le.PutUint64(d[8:], n.size)
	switch n.mode & TypeMask {
	case TypeRegular, TypeSymlink, TypeDir, TypeChar, TypeBlock:
		le.PutUint32(d[16:], n.block)
	}
	if n.layout == layoutChunked {
		le.PutUint32(d[16:], uint32(n.chunk))
	}
	le.PutUint32(d[20:], w.count)
	le.PutUint32(d[24:], n.uid)
	le.PutUint32(d[28:], n.gid)
	le.PutUint64(d[32:], uint64(n.mtime))
	le.PutUint32(d[40:], n.nsec)
	le.PutUint32(d[44:], n.nlink)
	if err := w.meta.write(d[:]); err != nil {
		return err
	}
	spooled := int64(n.xattrLen) + n.mapLen()
	if n.layout == layoutInline && n.mode&TypeMask != TypeDir {
		spooled += int64(n.size % BlockSize)
	}
	if int64(cap(w.scratch)) < spooled {
		w.scratch = make([]byte, spooled)
	}
	body := w.scratch[:spooled]
	if err := b.spool.read(body, n.spool); err != nil {
		return err
	}
	return errors.Join(w.meta.write(body), w.meta.write(tail))
}

// emitDir writes the blocks of a directory and returns what goes inline.
func (w *emitter) emitDir(dir Ino, n *inode) (tail []byte, err error) {
	var heads []byte // dirents, with name offsets relative to the names
	var names []byte
	block := func(last bool) {
		le := binary.LittleEndian
		for i := 0; i < len(heads); i += direntSize {
			le.PutUint16(heads[i+8:], le.Uint16(heads[i+8:])+uint16(len(heads)))
		}
		if last && n.layout == layoutInline {
			tail = append(heads, names...)
			return
		}
		if err == nil {
			err = errors.Join(w.dirs.write(heads), w.dirs.write(names), w.dirs.align())
		}
		heads, names = heads[:0], names[:0]
	}
	b := w.b
	b.eachName(dir, func(name []byte, ino Ino) {
		if len(heads)+len(names)+direntSize+len(name) > BlockSize {
			block(false)
		}
		c := b.inodes.get(uint32(ino))
		heads = binary.LittleEndian.AppendUint64(heads, uint64(c.nid))
		heads = binary.LittleEndian.AppendUint16(heads, uint16(len(names)))
		heads = append(heads, direntType(c.mode), 0)
		names = append(names, name...)
	})
	block(true)
	return tail, err
}

func (b *Builder) writeSuper(metaBlock, blocks uint32) error {
	var block [BlockSize]byte
	s := block[superOffset:]
	le := binary.LittleEndian
	le.PutUint32(s[0:], superMagic)
	le.PutUint32(s[8:], compatChecksum|compatMtime)
	s[12] = blockBits
	le.PutUint16(s[14:], uint16(b.inodes.get(uint32(Root)).nid))
	le.PutUint64(s[16:], b.live)
	le.PutUint32(s[36:], blocks)
	le.PutUint32(s[40:], metaBlock)
	copy(s[48:64], b.opts.UUID[:])
	if b.chunked {
		le.PutUint32(s[80:], incompatChunked)
	}
	// The kernel's crc32c starts from ~0 and is not inverted at the end.
	le.PutUint32(s[4:], ^crc32.Checksum(s, crc32.MakeTable(crc32.Castagnoli)))
	if _, err := b.file.WriteAt(block[:], 0); err != nil {
		return fmt.Errorf("write the superblock: %w", err)
	}
	return nil
}
