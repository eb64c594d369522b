package wire

import (
	"encoding/binary"
	"io"
)

// frames joins the two writes that yamux makes of each data frame, its head and
// its body, into one: on a virtio-serial port each write is a request to the device, and
// each read on the other side an interrupt.
type frames struct {
	io.ReadWriteCloser
	held []byte
}

// A yamux head: version, type, flags, stream, length, big endian.
const (
	headSize = 12
	typeData = 0
)

// MaxFrame is the most that one stream writes at once, so that a frame with its head
// fits into the 32 KiB that a virtio-serial port takes in one piece.
const MaxFrame = 32<<10 - headSize

// Write is called by the session's one sending goroutine only.
func (f *frames) Write(b []byte) (int, error) {
	if len(f.held) == 0 && len(b) == headSize && b[1] == typeData && binary.BigEndian.Uint32(b[8:]) > 0 {
		f.held = append(f.held, b...)
		return len(b), nil
	}
	if len(f.held) == 0 {
		return f.ReadWriteCloser.Write(b)
	}
	f.held = append(f.held, b...)
	n, err := f.ReadWriteCloser.Write(f.held)
	f.held = f.held[:0]
	if err != nil {
		return max(0, n-headSize), err
	}
	return len(b), nil
}
