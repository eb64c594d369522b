package network

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"

	"gvisor.dev/gvisor/pkg/buffer"
)

const (
	lengthBytes   = 4 // QEMU's stream framing: the length of the frame, big endian
	ethernetBytes = 14
	// maxFrameBytes is what QEMU itself sends at most (its NET_BUFSIZE): more is not from a sane QEMU.
	maxFrameBytes = 4096 + 65536
	// readBufferBytes holds many small frames, so that one read of the socket takes them all.
	readBufferBytes = 64 << 10
)

// FramingError is a frame length that QEMU cannot have sent; there is no way to find the next frame after it.
type FramingError struct {
	Length uint32 // bytes, as claimed
}

func (e *FramingError) Error() string {
	return fmt.Sprintf("frame of %d bytes where QEMU sends at most %d", e.Length, maxFrameBytes)
}

// frameReader takes Ethernet frames off QEMU's stream.
type frameReader struct {
	r      *bufio.Reader
	length [lengthBytes]byte
}

func newFrameReader(r io.Reader) *frameReader {
	return &frameReader{r: bufio.NewReaderSize(r, readBufferBytes)}
}

// next returns the next frame, which the caller releases, or io.EOF after the last.
func (f *frameReader) next() (*buffer.View, error) {
	if _, err := io.ReadFull(f.r, f.length[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(f.length[:])
	if n > maxFrameBytes {
		return nil, &FramingError{Length: n}
	}
	v := buffer.NewViewSize(int(n))
	if _, err := io.ReadFull(f.r, v.AsSlice()); err != nil {
		v.Release()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return v, nil
}
