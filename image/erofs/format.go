package erofs

// On-disk constants of EROFS, from Documentation/filesystems/erofs.rst and
// fs/erofs/erofs_fs.h of Linux 6.1. Nothing newer than 6.1 is written.
const (
	// BlockSize is the only block size written: the page size of every guest.
	BlockSize = 4096
	blockBits = 12

	superOffset = 1024
	superMagic  = 0xE0F5E1E2
	superSize   = 128

	compatChecksum   = 0x1 // the superblock carries a crc32c
	compatMtime      = 0x2 // inode times are modification times
	incompatChunked  = 0x4 // some files are chunk-based
	slotSize         = 32  // a node number counts slots of this size
	slotBits         = 5
	inodeSize        = 64 // the extended inode, the only kind written
	direntSize       = 12
	xattrHeaderSize  = 12
	xattrEntrySize   = 4
	maxNameLen       = 255
	maxXattrBodySize = xattrHeaderSize + 4*(0xFFFF-1)

	layoutPlain   = 0
	layoutInline  = 2
	layoutChunked = 4

	nullBlock = 0xFFFFFFFF // a hole in a chunk map
)

// Mode bits of an inode, as in stat(2).
const (
	TypeMask    = 0o170000
	TypeFIFO    = 0o010000
	TypeChar    = 0o020000
	TypeDir     = 0o040000
	TypeBlock   = 0o060000
	TypeRegular = 0o100000
	TypeSymlink = 0o120000
	TypeSocket  = 0o140000
)

// direntType maps a mode to the file type a directory entry carries.
func direntType(mode uint16) uint8 {
	switch mode & TypeMask {
	case TypeRegular:
		return 1
	case TypeDir:
		return 2
	case TypeChar:
		return 3
	case TypeBlock:
		return 4
	case TypeFIFO:
		return 5
	case TypeSocket:
		return 6
	case TypeSymlink:
		return 7
	}
	return 0
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }
