package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// output appends file data to the image. Runs of zeros are left as holes of
// the host file, so they cost no disk.
type output struct {
	file    *os.File
	base    int64 // file offset of buf[0], a multiple of BlockSize
	buf     []byte
	kicked  int64 // up to here write-back has been asked for
	noPunch bool
}

const (
	outputBuffer = 1 << 20
	kickBytes    = 16 << 20
	holeWindow   = 32 << 10
)

var zeros [holeWindow]byte

func newOutput(file *os.File, start int64) *output {
	return &output{file: file, base: start, kicked: start, buf: make([]byte, 0, outputBuffer)}
}

// pos is the offset of the next byte written.
func (o *output) pos() int64 { return o.base + int64(len(o.buf)) }

func (o *output) write(p []byte) error {
	for len(p) > 0 {
		n := copy(o.buf[len(o.buf):cap(o.buf)], p)
		o.buf = o.buf[:len(o.buf)+n]
		p = p[n:]
		if len(o.buf) == cap(o.buf) {
			if err := o.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// zero advances by n bytes of zeros.
func (o *output) zero(n int64) error {
	for n > 0 {
		if len(o.buf) == 0 && n >= BlockSize {
			whole := n / BlockSize * BlockSize
			o.base += whole
			n -= whole
			continue
		}
		room := min(int64(cap(o.buf)-len(o.buf)), n)
		if n > room { // fill up to a block, then jump
			room = min(room, roundUp(o.pos(), BlockSize)-o.pos())
			if room == 0 {
				if err := o.flush(); err != nil {
					return err
				}
				continue
			}
		}
		at := len(o.buf)
		o.buf = o.buf[:at+int(room)]
		clear(o.buf[at:])
		n -= room
		if len(o.buf) == cap(o.buf) {
			if err := o.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// align pads with zeros to the next block.
func (o *output) align() error { return o.zero(roundUp(o.pos(), BlockSize) - o.pos()) }

// flush writes what is buffered. It is called on block boundaries only, or at
// the very end.
func (o *output) flush() error {
	at := 0
	for at < len(o.buf) {
		if isZero(o.buf[at:min(at+holeWindow, len(o.buf))]) {
			at += holeWindow
			continue
		}
		end := at
		for end < len(o.buf) && !isZero(o.buf[end:min(end+holeWindow, len(o.buf))]) {
			end += holeWindow
		}
		end = min(end, len(o.buf))
		if _, err := o.file.WriteAt(o.buf[at:end], o.base+int64(at)); err != nil {
			return fmt.Errorf("write the image: %w", err)
		}
		at = end
	}
	o.base += int64(len(o.buf))
	o.buf = o.buf[:0]
	if o.base-o.kicked >= kickBytes {
		// Start write-back now, so that the final fsync finds little to do.
		_ = unix.SyncFileRange(int(o.file.Fd()), o.kicked, o.base-o.kicked, unix.SYNC_FILE_RANGE_WRITE)
		o.kicked = o.base
	}
	return nil
}

// discard turns n bytes at off, whole blocks, into zeros that cost no disk.
func (o *output) discard(off, n int64) error {
	if n <= 0 {
		return nil
	}
	if end := off + n; end > o.base { // the part still in the buffer
		from := max(off, o.base)
		clear(o.buf[from-o.base : min(end-o.base, int64(len(o.buf)))])
		n = from - off
	}
	if n <= 0 {
		return nil
	}
	if !o.noPunch {
		err := unix.Fallocate(int(o.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
			return fmt.Errorf("free replaced data in the image: %w", err)
		}
		o.noPunch = true
	}
	for n > 0 {
		k := min(n, int64(len(zeros)))
		if _, err := o.file.WriteAt(zeros[:k], off); err != nil {
			return fmt.Errorf("clear replaced data in the image: %w", err)
		}
		off, n = off+k, n-k
	}
	return nil
}

func isZero(p []byte) bool {
	// Looking at the two ends first spares the comparison for nearly all data.
	if len(p) == 0 {
		return true
	}
	if p[0] != 0 || p[len(p)-1] != 0 {
		return false
	}
	for len(p) > len(zeros) {
		if !bytes.Equal(p[:len(zeros)], zeros[:]) {
			return false
		}
		p = p[len(zeros):]
	}
	return bytes.Equal(p, zeros[:len(p)])
}
