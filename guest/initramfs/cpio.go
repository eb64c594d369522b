package initramfs

import (
	"encoding/binary"
	"fmt"
	"io"
)

// File types and bits of a cpio mode, as in stat(2).
const (
	modeRegular = 0o100000
	modeDir     = 0o040000
	modeChar    = 0o020000
	modeSticky  = 0o001000
)

// archive writes a newc cpio (the kernel's Documentation/driver-api/early-userspace/
// buffer-format.rst): every entry is a header of hexadecimal fields, a name and the content, each
// padded to four bytes. The first error sticks and is returned by close.
type archive struct {
	w     io.Writer
	size  int64
	inode uint32
	err   error
}

// entry adds one file. Owner is always root and the time always the epoch.
func (a *archive) entry(name string, mode, devMajor, devMinor uint32, content []byte) {
	a.inode++
	links := uint32(1)
	if mode&modeDir == modeDir {
		links = 2
	}
	a.header(name, a.inode, mode, links, uint32(len(content)), devMajor, devMinor)
	a.write(content)
	a.pad()
}

func (a *archive) header(name string, inode, mode, links, size, devMajor, devMinor uint32) {
	const uid, gid, mtime, onMajor, onMinor, checksum = 0, 0, 0, 0, 0, 0
	fields := [...]uint32{
		inode, mode, uid, gid, links, mtime, size,
		onMajor, onMinor, devMajor, devMinor, uint32(len(name) + 1), checksum,
	}
	text := []byte("070701")
	for _, field := range fields {
		text = fmt.Appendf(text, "%08X", field)
	}
	text = append(text, name...)
	a.write(append(text, 0))
	a.pad()
}

func (a *archive) write(b []byte) {
	if a.err != nil {
		return
	}
	n, err := a.w.Write(b)
	a.size += int64(n)
	a.err = err
}

func (a *archive) pad() {
	a.write(make([]byte, -a.size&3))
}

func (a *archive) close() error {
	a.header("TRAILER!!!", 0, 0, 1, 0, 0, 0)
	if a.err != nil {
		return fmt.Errorf("write initramfs: %w", a.err)
	}
	return nil
}

func le16(b []byte) uint16 { return binary.LittleEndian.Uint16(b) }
func le32(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }
func le64(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }
