package erofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Mountable finds out by the superblock of an image, whoever has made it, whether every guest's kernel (6.1 and later) mounts it from one disk. The
// error says what it has that the kernel does not read. What else is wrong with it, the guest finds. The id is the image's UUID.
func Mountable(image io.ReaderAt) (id [16]byte, err error) {
	s := make([]byte, superSize)
	if _, err := image.ReadAt(s, superOffset); err != nil {
		return id, fmt.Errorf("read the superblock: %w", err)
	}
	le := binary.LittleEndian
	incompat := le.Uint32(s[80:])
	switch {
	case le.Uint32(s) != superMagic:
		return id, errors.New("it is no EROFS image")
	case s[12] != blockBits:
		return id, fmt.Errorf("it has blocks of 2^%d bytes, not of %d", s[12], BlockSize)
	case incompat&^incompatChunked != 0:
		return id, fmt.Errorf("it is compressed, on several devices, or newer than Linux 6.1 reads (features %#x)", incompat)
	}
	copy(id[:], s[48:])
	return id, nil
}
