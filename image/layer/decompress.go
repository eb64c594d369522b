// Package layer reads image layers: it undoes their compression and takes the
// tar archive apart, entry by entry, within limits. All that it reads is
// foreign and hostile. It must not know where layers come from, nor how they
// are put on top of each other.
package layer

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"manis/image/fault"
	"manis/image/inflate"
)

// maxZstdWindow bounds what a zstd frame may ask a decoder to remember: 32 MiB
// is more than any level of the reference tool uses without "--ultra".
const maxZstdWindow = 32 << 20

var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
	xzMagic   = []byte{0xfd, '7', 'z', 'X', 'Z', 0}
	bz2Magic  = []byte("BZh")
)

// Compression names how a stream is compressed.
type Compression string

// The compressions that layers come in.
const (
	Plain Compression = "none"
	Gzip  Compression = "gzip"
	Zstd  Compression = "zstd"
)

// Detect tells the compression of a stream from its first bytes. The media
// type is not asked: registries are known to get it wrong.
func Detect(head []byte) (Compression, error) {
	switch {
	case bytes.HasPrefix(head, gzipMagic):
		return Gzip, nil
	case bytes.HasPrefix(head, zstdMagic), len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}):
		return Zstd, nil // or a skippable frame before one
	case bytes.HasPrefix(head, xzMagic):
		return "", fmt.Errorf("xz compression: %w", fault.ErrUnsupported)
	case bytes.HasPrefix(head, bz2Magic):
		return "", fmt.Errorf("bzip2 compression: %w", fault.ErrUnsupported)
	}
	return Plain, nil
}

// Decompress returns the uncompressed content of r. A goroutine works ahead of
// the reader by a few buffers; Close stops it and waits for it. Close does not
// close r.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 256<<10)
	head, err := br.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	kind, err := Detect(head)
	if err != nil {
		return nil, err
	}
	switch kind {
	case Gzip:
		z, err := inflate.NewReader(br)
		if err != nil {
			return nil, explain(err)
		}
		return newReadAhead(z, func() {}), nil
	case Zstd:
		z, err := zstd.NewReader(br, zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, explain(err)
		}
		return newReadAhead(z, z.Close), nil
	}
	return newReadAhead(br, func() {}), nil
}

// explain gives a decompressor's error the kind it is of. Errors of the
// source pass as they are.
func explain(err error) error {
	switch {
	case err == nil || err == io.EOF:
		return err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("compressed data ends too early: %w", fault.ErrTruncated)
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return fmt.Errorf("zstd window larger than %d MiB: %w", maxZstdWindow>>20, fault.ErrLimit)
	case errors.Is(err, inflate.ErrChecksum), errors.Is(err, inflate.ErrHeader), errors.Is(err, inflate.ErrCorrupt):
		return fmt.Errorf("%w: %w", err, fault.ErrInvalid)
	}
	return fmt.Errorf("decompress: %w", err)
}

const (
	aheadBuffers = 4
	aheadSize    = 256 << 10
)

// readAhead runs a reader in a goroutine of its own, so that decompression
// and what is done with its result share two processors.
type readAhead struct {
	full   chan filled
	free   chan []byte
	stop   chan struct{}
	once   sync.Once
	done   sync.WaitGroup
	cur    filled
	rest   []byte
	closed func()
}

type filled struct {
	data []byte
	err  error
}

func newReadAhead(r io.Reader, closed func()) *readAhead {
	a := &readAhead{
		full: make(chan filled, aheadBuffers), free: make(chan []byte, aheadBuffers),
		stop: make(chan struct{}), closed: closed,
	}
	for range aheadBuffers {
		a.free <- make([]byte, aheadSize)
	}
	a.done.Go(func() {
		defer close(a.full)
		for {
			select {
			case <-a.stop:
				return
			case buf := <-a.free:
				n, err := fill(r, buf)
				a.full <- filled{buf[:n], explain(err)}
				if err != nil {
					return
				}
			}
		}
	})
	return a
}

// fill reads until buf is full. Unlike io.ReadFull it passes on the reader's
// own error: io.EOF is the plain end, anything else a complaint.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var k int
		k, err = r.Read(buf[n:])
		n += k
	}
	return n, err
}

// Read implements io.Reader.
func (a *readAhead) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.cur.err != nil {
			return 0, a.cur.err
		}
		if a.cur.data != nil {
			a.free <- a.cur.data[:cap(a.cur.data)]
			a.cur.data = nil
		}
		next, ok := <-a.full
		if !ok {
			return 0, io.ErrClosedPipe
		}
		a.cur, a.rest = next, next.data
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// Close stops the goroutine and waits for it.
func (a *readAhead) Close() error {
	a.once.Do(func() {
		close(a.stop)
		for range a.full {
		}
		a.done.Wait()
		a.closed()
	})
	return nil
}
