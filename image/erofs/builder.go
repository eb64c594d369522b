// Package erofs writes EROFS file system images: uncompressed, read-only, for
// any kernel from Linux 5.15 on. A Builder is a file system under
// construction: entries are created, linked, replaced and unlinked in any
// order, file data goes straight to the image file, and Finish lays the
// metadata behind it. The same calls give the same bytes. The package knows
// nothing of layers, archives or verity, and nothing of who calls it.
package erofs

import (
	"errors"
	"fmt"
	"hash/maphash"
	"os"

	"manis/image/fault"
)

// Ino names an inode of a Builder. Zero is none.
type Ino uint32

// Attr is what stat(2) tells of an inode.
type Attr struct {
	Mode  uint16 // type and permission bits
	UID   uint32
	GID   uint32
	Rdev  uint32 // of device nodes, from Device
	Mtime int64  // seconds since 1970, may be negative
	Nsec  uint32
}

// Entry is what a directory holds under one name.
type Entry struct {
	Ino  Ino
	Mode uint16
	Tag  uint16 // as last given to Link, Replace or Retag

	dirent uint32
}

// IsDir reports whether the entry is a directory.
func (e Entry) IsDir() bool { return e.Mode&TypeMask == TypeDir }

// Options tune a Builder.
type Options struct {
	// TempDir takes spilled metadata; empty means the image's own directory.
	TempDir string
	// UUID of the file system.
	UUID [16]byte
	// CacheBytes bounds the metadata kept in memory; 0 means 32 MiB. The name
	// index comes on top, with 6 to 11 bytes an entry.
	CacheBytes int
}

// Root is the root directory of every Builder.
const Root Ino = 1

// MaxDepth is how deep directories may nest. A path of PATH_MAX bytes cannot
// name anything deeper.
const MaxDepth = 2048

type inode struct {
	size     uint64
	mtime    int64
	spool    int64 // xattr body, then chunk map or tail
	nsec     uint32
	uid, gid uint32
	block    uint32 // first data block, or the device number
	nlink    uint32
	child    uint32 // directories: first dirent
	parent   Ino    // directories
	nid      uint32 // place in the metadata area, once known
	xattrLen uint32
	mode     uint16
	depth    uint16 // directories
	layout   uint8
	chunk    uint8 // chunk size as a power of two of blocks
}

type dirent struct {
	parent  Ino
	ino     Ino // 0 when unlinked
	next    uint32
	name    uint32
	tag     uint16
	nameLen uint8
	_       uint8
}

// A Builder is not safe for concurrent use.
type Builder struct {
	opts    Options
	file    *os.File
	out     *output
	spool   *spool
	inodes  *paged[inode]
	dirents *paged[dirent]
	names   *paged[byte]
	index   index
	writing *File
	live    uint64 // linked inodes
	chunked bool
	nameBuf [2][maxNameLen]byte
}

// NewBuilder starts an image in file, which must be empty and open for reading
// and writing. The file stays the caller's; Close frees all else.
func NewBuilder(file *os.File, opts Options) (*Builder, error) {
	if opts.CacheBytes == 0 {
		opts.CacheBytes = 32 << 20
	}
	b := &Builder{
		opts: opts, file: file,
		out:     newOutput(file, BlockSize), // block 0 is the superblock's
		spool:   newSpool(opts.TempDir),
		inodes:  newPaged[inode](opts.TempDir, opts.CacheBytes/2),
		dirents: newPaged[dirent](opts.TempDir, opts.CacheBytes/4),
		names:   newPaged[byte](opts.TempDir, opts.CacheBytes/4),
	}
	b.index.seed = maphash.MakeSeed()
	b.index.slots = make([]uint32, 1<<12)
	b.inodes.grow(1)
	b.inodes.put(uint32(Root), inode{mode: TypeDir | 0o755, nlink: 2, parent: Root})
	b.live = 1
	return b, nil
}

// Close frees buffers and temporary files. It does not close the image file.
func (b *Builder) Close() {
	b.spool.close()
	b.inodes.close()
	b.dirents.close()
	b.names.close()
	b.index.slots = nil
}

// fault returns the first error of the paged tables.
func (b *Builder) fault() error {
	return errors.Join(b.inodes.err, b.dirents.err, b.names.err)
}

// Written is how many bytes of file data the image takes so far, holes included.
func (b *Builder) Written() int64 { return b.out.pos() }

// Stat returns the attributes of ino.
func (b *Builder) Stat(ino Ino) Attr {
	n := b.inodes.get(uint32(ino))
	a := Attr{Mode: n.mode, UID: n.uid, GID: n.gid, Mtime: n.mtime, Nsec: n.nsec}
	if t := n.mode & TypeMask; t == TypeChar || t == TypeBlock {
		a.Rdev = n.block
	}
	return a
}

// Depth is how many directories lie above the directory ino.
func (b *Builder) Depth(ino Ino) int { return int(b.inodes.get(uint32(ino)).depth) }

// Parent of the directory ino; the root's is the root.
func (b *Builder) Parent(ino Ino) Ino { return b.inodes.get(uint32(ino)).parent }

// Lookup finds name in dir.
func (b *Builder) Lookup(dir Ino, name []byte) (Entry, bool) {
	id := b.find(dir, name)
	if id == 0 {
		return Entry{}, false
	}
	return b.entry(id), true
}

func (b *Builder) entry(id uint32) Entry {
	d := b.dirents.get(id)
	return Entry{Ino: d.ino, Mode: b.inodes.get(uint32(d.ino)).mode, Tag: d.tag, dirent: id}
}

// Children calls fn for each entry of dir, in no useful order, until it
// returns an error. fn may unlink what it is given, and anything below.
func (b *Builder) Children(dir Ino, fn func(Entry) error) error {
	for id := b.inodes.get(uint32(dir)).child; id != 0; {
		d := b.dirents.get(id)
		if d.ino != 0 {
			if err := fn(b.entry(id)); err != nil {
				return err
			}
		}
		id = d.next
	}
	return b.fault()
}

// Name of an entry.
func (b *Builder) Name(e Entry) string { return string(b.name(e.dirent, 0)) }

// Node makes an inode that has no data: a directory, device, FIFO or socket.
// It belongs to the image once Link gives it a name.
func (b *Builder) Node(attr Attr, xattrs []Xattr) (Ino, error) {
	ino, n, err := b.create(attr, xattrs)
	if err != nil {
		return 0, err
	}
	switch attr.Mode & TypeMask {
	case TypeDir:
		n.nlink = 2
	case TypeChar, TypeBlock:
		n.block = attr.Rdev
	case TypeFIFO, TypeSocket:
	default:
		return 0, fmt.Errorf("mode %#o is not of a node without data: %w", attr.Mode, fault.ErrInvalid)
	}
	b.inodes.put(uint32(ino), n)
	return ino, b.fault()
}

// Symlink makes a symbolic link.
func (b *Builder) Symlink(attr Attr, xattrs []Xattr, target []byte) (Ino, error) {
	attr.Mode = attr.Mode&^TypeMask | TypeSymlink
	ino, n, err := b.create(attr, xattrs)
	if err != nil {
		return 0, err
	}
	if len(target) == 0 || len(target) >= BlockSize {
		return 0, fmt.Errorf("symlink target of %d bytes (1 to %d fit): %w", len(target), BlockSize-1, fault.ErrInvalid)
	}
	n.size = uint64(len(target))
	// The target is spooled in both layouts, for Readlink.
	if err := b.spool.add(target); err != nil {
		return 0, err
	}
	if n.fitsInline(len(target)) {
		n.layout = layoutInline
	} else {
		if n.block, err = b.nextBlock(); err != nil {
			return 0, err
		}
		if err := errors.Join(b.out.write(target), b.out.align()); err != nil {
			return 0, err
		}
	}
	b.inodes.put(uint32(ino), n)
	return ino, b.fault()
}

// Readlink returns the target of a symbolic link.
func (b *Builder) Readlink(ino Ino) ([]byte, error) {
	n := b.inodes.get(uint32(ino))
	if n.mode&TypeMask != TypeSymlink {
		return nil, fmt.Errorf("read link: %w", fault.ErrInvalid)
	}
	p := make([]byte, n.size)
	return p, errors.Join(b.spool.read(p, n.spool+int64(n.xattrLen)), b.fault())
}

// SetAttr gives a directory other permissions, owner, time and xattrs.
func (b *Builder) SetAttr(dir Ino, attr Attr, xattrs []Xattr) error {
	n := b.inodes.get(uint32(dir))
	if n.mode&TypeMask != TypeDir || attr.Mode&TypeMask != TypeDir {
		return fmt.Errorf("set attributes of other than a directory: %w", fault.ErrInvalid)
	}
	if err := n.setXattrs(b.spool, xattrs); err != nil {
		return err
	}
	n.setAttr(attr)
	b.inodes.put(uint32(dir), n)
	return b.fault()
}

func (n *inode) setAttr(a Attr) {
	n.mode, n.uid, n.gid, n.mtime, n.nsec = a.Mode, a.UID, a.GID, a.Mtime, a.Nsec
}

func (n *inode) setXattrs(s *spool, xattrs []Xattr) error {
	n.spool, n.xattrLen = s.size(), 0
	if len(xattrs) == 0 {
		return nil
	}
	body, err := encodeXattrs(xattrs)
	if err != nil {
		return err
	}
	n.xattrLen = uint32(len(body))
	return s.add(body)
}

// inlineLimit is the longest tail kept beside its inode. A longer one would
// waste more of the metadata block than its own data block.
const inlineLimit = BlockSize / 2

func (n *inode) fitsInline(tail int) bool {
	limit := inlineLimit
	if n.mode&TypeMask == TypeSymlink {
		limit = BlockSize // looked up without another read
	}
	return tail <= limit && inodeSize+int(n.xattrLen)+tail <= BlockSize
}

func (b *Builder) create(attr Attr, xattrs []Xattr) (Ino, inode, error) {
	if b.writing != nil {
		return 0, inode{}, errors.New("a file of this image is still being written")
	}
	if attr.Nsec >= 1e9 {
		return 0, inode{}, fmt.Errorf("%d nanoseconds in a time: %w", attr.Nsec, fault.ErrInvalid)
	}
	if b.inodes.count == nullBlock {
		return 0, inode{}, fmt.Errorf("more than %d inodes: %w", b.inodes.count, fault.ErrLimit)
	}
	var n inode
	n.setAttr(attr)
	if err := n.setXattrs(b.spool, xattrs); err != nil {
		return 0, n, err
	}
	return Ino(b.inodes.grow(1)), n, b.fault()
}

// nextBlock is the block number that the next data written gets.
func (b *Builder) nextBlock() (uint32, error) {
	blk := b.out.pos() / BlockSize
	if blk >= nullBlock-1 {
		return 0, fmt.Errorf("image larger than %d blocks: %w", uint32(nullBlock), fault.ErrLimit)
	}
	return uint32(blk), nil
}

// Link gives ino the free name in dir.
func (b *Builder) Link(dir Ino, name []byte, ino Ino, tag uint16) error {
	if len(name) == 0 || len(name) > maxNameLen {
		return fmt.Errorf("file name of %d bytes (1 to %d fit): %w", len(name), maxNameLen, fault.ErrInvalid)
	}
	if b.names.count > nullBlock-2*pageBytes || b.dirents.count == nullBlock-1 {
		return fmt.Errorf("more names than one image can hold: %w", fault.ErrLimit)
	}
	if b.find(dir, name) != 0 {
		return fmt.Errorf("link %q: exists already: %w", name, fault.ErrInvalid)
	}
	if err := b.addLink(dir, ino); err != nil {
		return err
	}
	id := b.dirents.grow(1)
	p := b.inodes.get(uint32(dir))
	b.dirents.put(id, dirent{parent: dir, ino: ino, next: p.child, name: b.storeName(name), nameLen: uint8(len(name)), tag: tag})
	p.child = id
	b.inodes.put(uint32(dir), p)
	b.index.insert(b, dir, name, id)
	return b.fault()
}

// Replace puts ino in the place of an entry that is not a directory, or is an
// empty one.
func (b *Builder) Replace(e Entry, ino Ino, tag uint16) error {
	d := b.dirents.get(e.dirent)
	if err := b.addLink(d.parent, ino); err != nil {
		return err
	}
	if err := b.dropLink(d.parent, d.ino); err != nil {
		return err
	}
	d.ino, d.tag = ino, tag
	b.dirents.put(e.dirent, d)
	return b.fault()
}

// Retag sets the tag of an entry.
func (b *Builder) Retag(e Entry, tag uint16) {
	d := b.dirents.get(e.dirent)
	d.tag = tag
	b.dirents.put(e.dirent, d)
}

// Unlink removes an entry that is not a directory, or is an empty one. What
// has no name left gives its disk space back.
func (b *Builder) Unlink(e Entry) error {
	d := b.dirents.get(e.dirent)
	if err := b.dropLink(d.parent, d.ino); err != nil {
		return err
	}
	b.index.remove(b, d.parent, b.name(e.dirent, 0), e.dirent)
	d.ino = 0
	b.dirents.put(e.dirent, d)
	return b.fault()
}

// addLink counts one more name, in dir, for ino.
func (b *Builder) addLink(dir, ino Ino) error {
	n := b.inodes.get(uint32(ino))
	if n.mode&TypeMask == TypeDir {
		if n.parent != 0 {
			return fmt.Errorf("a directory cannot have two names: %w", fault.ErrInvalid)
		}
		p := b.inodes.get(uint32(dir))
		if p.depth+1 >= MaxDepth {
			return fmt.Errorf("directories nested more than %d deep: %w", MaxDepth, fault.ErrLimit)
		}
		p.nlink++
		b.inodes.put(uint32(dir), p)
		n.parent, n.depth = dir, p.depth+1
		b.live++
	} else {
		if n.nlink == 0 {
			b.live++
		}
		n.nlink++
	}
	b.inodes.put(uint32(ino), n)
	return nil
}

// dropLink counts one name, in dir, less for ino.
func (b *Builder) dropLink(dir, ino Ino) error {
	n := b.inodes.get(uint32(ino))
	if n.mode&TypeMask == TypeDir {
		p := b.inodes.get(uint32(dir))
		p.nlink--
		b.inodes.put(uint32(dir), p)
		b.live--
		return nil
	}
	n.nlink--
	b.inodes.put(uint32(ino), n)
	if n.nlink > 0 {
		return nil
	}
	b.live--
	return b.discard(n)
}

// discard frees the data blocks of an inode.
func (b *Builder) discard(n inode) error {
	if t := n.mode & TypeMask; t != TypeRegular && t != TypeSymlink {
		return nil
	}
	switch n.layout {
	case layoutPlain:
		return b.out.discard(int64(n.block)*BlockSize, roundUp(int64(n.size), BlockSize))
	case layoutInline:
		return b.out.discard(int64(n.block)*BlockSize, int64(n.size)/BlockSize*BlockSize)
	}
	m := make([]byte, n.mapLen())
	if err := b.spool.read(m, n.spool+int64(n.xattrLen)); err != nil {
		return err
	}
	return eachChunk(n, m, func(at, length int64) error { return b.out.discard(at, length) })
}

func (b *Builder) storeName(name []byte) uint32 {
	n := uint32(len(name))
	if left := b.names.perPage - b.names.count%b.names.perPage; left < n {
		b.names.grow(left) // a name never crosses a page
	}
	at := b.names.grow(n)
	copy(b.names.span(at, n, true), name)
	return at
}

// name returns the name of a dirent, in scratch buffer i.
func (b *Builder) name(id uint32, i int) []byte {
	d := b.dirents.get(id)
	n := copy(b.nameBuf[i][:], b.names.span(d.name, uint32(d.nameLen), false))
	return b.nameBuf[i][:n]
}

// Device packs a device number as the kernel's new_encode_dev does.
func Device(major, minor int64) (uint32, error) {
	if major < 0 || major >= 1<<12 || minor < 0 || minor >= 1<<20 {
		return 0, fmt.Errorf("device number %d:%d: %w", major, minor, fault.ErrInvalid)
	}
	return uint32(minor)&0xff | uint32(major)<<8 | uint32(minor)&^0xff<<12, nil
}
