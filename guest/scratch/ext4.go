package scratch

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
)

// The ext4 is the plainest one that the kernel is quick with: blocks of 4 KiB in groups of 128 MiB, each with its bitmaps and inodes
// at its beginning; no journal, as nothing outlives the machine; no copies of the superblock; checksums of group descriptors only, so
// that bitmaps and inode tables which are not in use need not be written. So a file system of any size is written with some ten blocks.
const (
	groupBlocks   = 8 * blockBytes // one bitmap block
	inodeBytes    = 256
	inodesOfBlock = blockBytes / inodeBytes
	// bytesPerInode is how many bytes of the disk there are for each file.
	bytesPerInode   = 16 << 10
	maxGroupInodes  = groupBlocks * blockBytes / bytesPerInode
	descriptorBytes = 32

	rootInode  = 2
	firstInode = 11 // of those that are not reserved: lost+found
)

// Feature bits: fs/ext4/ext4.h.
const (
	compat    = 0x8 | 0x20 | 0x200             // ext_attr, dir_index, sparse_super2
	incompat  = 0x2 | 0x40                     // filetype, extents
	readOnly  = 0x2 | 0x8 | 0x10 | 0x20 | 0x40 // large_file, huge_file, uninit_bg, dir_nlink, extra_isize
	inodesNew = 0x1                            // INODE_UNINIT: bitmap and table of inodes were not written
	blocksNew = 0x2                            // BLOCK_UNINIT: nor was the bitmap of blocks
)

// geometry is where everything is.
type geometry struct {
	blocks, groups, groupInodes uint32
	descriptors, table          uint32 // blocks of the group descriptors, and of one group's inodes
}

func newGeometry(bytes uint64) geometry {
	g := geometry{blocks: uint32(bytes / blockBytes)}
	g.groups = (g.blocks + groupBlocks - 1) / groupBlocks
	g.groupInodes = maxGroupInodes
	if g.groups == 1 {
		g.groupInodes = uint32(bytes/bytesPerInode) &^ (inodesOfBlock - 1)
	}
	g.table = g.groupInodes / inodesOfBlock
	// A last group that would be too small for its own inodes is left out.
	if last := g.blocks - (g.groups-1)*groupBlocks; g.groups > 1 && last < g.table+3 {
		g.groups--
		g.blocks = g.groups * groupBlocks
	}
	g.descriptors = (g.groups*descriptorBytes + blockBytes - 1) / blockBytes
	return g
}

// of is how many blocks a group has, where its block bitmap is (the inode bitmap and the inodes follow), and how many
// blocks are in use.
func (g *geometry) of(group uint32) (blocks, bitmap, used uint32) {
	blocks = min(groupBlocks, g.blocks-group*groupBlocks)
	bitmap = group * groupBlocks
	used = 2 + g.table
	if group == 0 {
		bitmap += 1 + g.descriptors
		used += 1 + g.descriptors + 2 // and the two directories
	}
	return blocks, bitmap, used
}

// WriteExt4 makes an empty ext4 of so many bytes, of which it writes only what is not empty. The size is checked by the caller.
func WriteExt4(w io.WriterAt, bytes uint64) error {
	g := newGeometry(bytes)
	id := make([]byte, 32) // UUID, and the seed of directories' hashes
	if _, err := rand.Read(id); err != nil {
		return fmt.Errorf("make an ext4: %w", err)
	}
	at := func(block uint32, content []byte) error {
		full := make([]byte, (len(content)+blockBytes-1)/blockBytes*blockBytes)
		copy(full, content)
		if _, err := w.WriteAt(full, int64(block)*blockBytes); err != nil {
			return fmt.Errorf("write block %d of an ext4: %w", block, err)
		}
		return nil
	}
	_, bitmap, used := g.of(0)
	root := bitmap + 2 + g.table // its directory; that of lost+found follows
	parts := []struct {
		block   uint32
		content []byte
	}{
		{0, g.superblock(id)},
		{1, g.groupDescriptors(id[:16])},
		{bitmap, g.blockBitmap(0)},
		{bitmap + 1, marks(firstInode, g.groupInodes)},
		{bitmap + 2, inodes(root)},
		{root, directory(entry{rootInode, "."}, entry{rootInode, ".."}, entry{firstInode, "lost+found"})},
		{root + 1, directory(entry{firstInode, "."}, entry{rootInode, ".."})},
	}
	if root+2 != used {
		return fmt.Errorf("make an ext4: %d blocks used of its first group, which has %d", used, root+2)
	}
	if last := g.groups - 1; last > 0 {
		_, bitmap, _ := g.of(last)
		parts = append(parts, struct {
			block   uint32
			content []byte
		}{bitmap, g.blockBitmap(last)})
	}
	for _, p := range parts {
		if err := at(p.block, p.content); err != nil {
			return err
		}
	}
	return nil
}

// superblock is the first block: what counts begins at byte 1024.
func (g *geometry) superblock(id []byte) []byte {
	b := make([]byte, blockBytes)
	s := b[1024:2048]
	free := g.blocks
	for i := range g.groups {
		_, _, used := g.of(i)
		free -= used
	}
	for offset, v := range map[int]uint32{
		0x00: g.groups * g.groupInodes, 0x04: g.blocks, 0x0c: free, 0x10: g.groups*g.groupInodes - firstInode,
		0x18: 2, 0x1c: 2, // blocks of 1024<<2
		0x20: groupBlocks, 0x24: groupBlocks, 0x28: g.groupInodes,
		0x4c: 1, 0x54: firstInode, 0x5c: compat, 0x60: incompat, 0x64: readOnly,
		0x100: 0xc, // by default user attributes and ACLs
		0x160: 1,   // hashes are of signed characters
	} {
		binary.LittleEndian.PutUint32(s[offset:], v)
	}
	for offset, v := range map[int]uint16{
		0x36: 0xffff, 0x38: 0xef53, 0x3a: 1 /* clean */, 0x3c: 2 /* read-only after errors */, 0x58: inodeBytes,
		0x15c: 32, 0x15e: 32, // of an inode, beyond 128 bytes
	} {
		binary.LittleEndian.PutUint16(s[offset:], v)
	}
	copy(s[0x68:], id[:16])
	copy(s[0x78:], "manis-scratch")
	copy(s[0xec:], id[16:])
	s[0xfc] = 1 // half MD4
	return b
}

func (g *geometry) groupDescriptors(uuid []byte) []byte {
	b := make([]byte, g.groups*descriptorBytes)
	for i := range g.groups {
		d := b[i*descriptorBytes:][:descriptorBytes]
		blocks, bitmap, used := g.of(i)
		free, directories, flags := g.groupInodes, uint16(0), uint16(inodesNew)
		switch {
		case i == 0:
			free, directories, flags = g.groupInodes-firstInode, 2, 0
		case i < g.groups-1:
			flags |= blocksNew
		}
		binary.LittleEndian.PutUint32(d[0x0:], bitmap)
		binary.LittleEndian.PutUint32(d[0x4:], bitmap+1)
		binary.LittleEndian.PutUint32(d[0x8:], bitmap+2)
		binary.LittleEndian.PutUint16(d[0xc:], uint16(blocks-used))
		binary.LittleEndian.PutUint16(d[0xe:], uint16(free))
		binary.LittleEndian.PutUint16(d[0x10:], directories)
		binary.LittleEndian.PutUint16(d[0x12:], flags)
		binary.LittleEndian.PutUint16(d[0x1c:], uint16(free)) // at the table's end, and all of those that are free
		sum := crc16(0xffff, uuid)
		sum = crc16(sum, binary.LittleEndian.AppendUint32(nil, i))
		binary.LittleEndian.PutUint16(d[0x1e:], crc16(sum, d[:0x1e]))
	}
	return b
}

// crc16 is that of the kernel's lib/crc16.c.
func crc16(sum uint16, b []byte) uint16 {
	for _, c := range b {
		sum ^= uint16(c)
		for range 8 {
			carry := sum & 1
			sum >>= 1
			if carry != 0 {
				sum ^= 0xa001
			}
		}
	}
	return sum
}

// blockBitmap is that of a group whose used blocks are its first.
func (g *geometry) blockBitmap(group uint32) []byte {
	blocks, _, used := g.of(group)
	return marks(used, blocks)
}

// marks is a bitmap: the first ones are used, and what is beyond the end does not exist.
func marks(used, end uint32) []byte {
	b := make([]byte, blockBytes)
	for i := range uint32(groupBlocks) {
		if i < used || i >= end {
			b[i/8] |= 1 << (i % 8)
		}
	}
	return b
}

// inodes is the first block of the inode table: the root directory and lost+found.
func inodes(root uint32) []byte {
	b := make([]byte, blockBytes)
	put := func(number, mode, links, block uint32) {
		i := b[(number-1)*inodeBytes:][:inodeBytes]
		binary.LittleEndian.PutUint16(i[0x0:], uint16(mode))
		binary.LittleEndian.PutUint32(i[0x4:], blockBytes)
		binary.LittleEndian.PutUint16(i[0x1a:], uint16(links))
		binary.LittleEndian.PutUint32(i[0x1c:], blockBytes/512)
		binary.LittleEndian.PutUint32(i[0x20:], 0x80000) // by extents
		e := i[0x28:]                                    // one of one block
		binary.LittleEndian.PutUint16(e[0:], 0xf30a)
		binary.LittleEndian.PutUint16(e[2:], 1)
		binary.LittleEndian.PutUint16(e[4:], 4)
		binary.LittleEndian.PutUint16(e[16:], 1)
		binary.LittleEndian.PutUint32(e[20:], block)
		binary.LittleEndian.PutUint16(i[0x80:], 32)
	}
	put(rootInode, 0o40755, 3, root)
	put(firstInode, 0o40700, 2, root+1)
	return b
}

// entry is one of a directory, itself a directory.
type entry struct {
	inode uint32
	name  string
}

// directory is its one block.
func directory(entries ...entry) []byte {
	b := make([]byte, blockBytes)
	at := 0
	for i, e := range entries {
		length := (8 + len(e.name) + 3) &^ 3
		if i == len(entries)-1 {
			length = blockBytes - at
		}
		binary.LittleEndian.PutUint32(b[at:], e.inode)
		binary.LittleEndian.PutUint16(b[at+4:], uint16(length))
		b[at+6], b[at+7] = byte(len(e.name)), 2
		copy(b[at+8:], e.name)
		at += length
	}
	return b
}
