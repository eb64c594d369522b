package erofs

import (
	"fmt"
	"os"
)

// spool holds the small pieces that belong beside inodes in the metadata area
// (xattrs, file tails, symlink targets, chunk maps) until it is written. It is
// append-only, and a piece is known by its offset.
type spool struct {
	dir  string
	file *os.File
	base int64 // bytes already in the file
	buf  []byte
}

const spoolBuffer = 256 << 10

func newSpool(dir string) *spool {
	return &spool{dir: dir, buf: make([]byte, 0, spoolBuffer)}
}

// size is the offset that the next piece gets.
func (s *spool) size() int64 { return s.base + int64(len(s.buf)) }

// add appends p.
func (s *spool) add(p []byte) error {
	for len(p) > 0 {
		n := copy(s.buf[len(s.buf):cap(s.buf)], p)
		s.buf = s.buf[:len(s.buf)+n]
		p = p[n:]
		if len(s.buf) == cap(s.buf) {
			if err := s.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *spool) flush() error {
	if s.file == nil {
		f, err := tempFile(s.dir)
		if err != nil {
			return err
		}
		s.file = f
	}
	if _, err := s.file.WriteAt(s.buf, s.base); err != nil {
		return fmt.Errorf("write the metadata spool: %w", err)
	}
	s.base += int64(len(s.buf))
	s.buf = s.buf[:0]
	return nil
}

// read fills p from offset at.
func (s *spool) read(p []byte, at int64) error {
	if len(p) == 0 {
		return nil
	}
	if at >= s.base {
		if at+int64(len(p)) > s.size() {
			return fmt.Errorf("read the metadata spool: offset %d is past its end", at)
		}
		copy(p, s.buf[at-s.base:])
		return nil
	}
	if at+int64(len(p)) > s.base { // straddles what is still buffered
		if err := s.flush(); err != nil {
			return err
		}
	}
	if _, err := s.file.ReadAt(p, at); err != nil {
		return fmt.Errorf("read the metadata spool: %w", err)
	}
	return nil
}

func (s *spool) close() {
	if s.file != nil {
		s.file.Close()
	}
}
