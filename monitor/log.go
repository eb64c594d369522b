package monitor

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
	"unicode/utf8"
)

// Defaults of the log: what one container may take of the host's disk.
const (
	defaultLogBytes = 64 << 20
	defaultLogFiles = 2
)

// maxLogLine is where a line without an end is cut in two, as docker does.
const maxLogLine = 16 << 10

// LogDir is where the log of the container in dir is: container.log, and with
// rising age container.log.1 and so on.
func LogDir(dir string) string { return filepath.Join(dir, "log") }

// logFile writes docker's json-file format, one object a line, and rotates.
type logFile struct {
	dir      string
	maxBytes int64
	maxFiles int

	mu   sync.Mutex
	f    *os.File
	size int64
	buf  []byte
}

func openLog(dir string, maxBytes int64, maxFiles int) (*logFile, error) {
	if maxBytes <= 0 {
		maxBytes = defaultLogBytes
	}
	if maxFiles <= 0 {
		maxFiles = defaultLogFiles
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	l := &logFile{dir: dir, maxBytes: maxBytes, maxFiles: maxFiles}
	if err := l.open(os.O_APPEND); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *logFile) open(flag int) error {
	f, err := os.OpenFile(l.path(0), os.O_CREATE|os.O_WRONLY|flag, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return fmt.Errorf("open log: %w", err)
	}
	l.f, l.size = f, fi.Size()
	return nil
}

func (l *logFile) path(age int) string {
	name := filepath.Join(l.dir, "container.log")
	if age > 0 {
		name = fmt.Sprintf("%s.%d", name, age)
	}
	return name
}

func (l *logFile) rotate() error {
	l.f.Close()
	l.f = nil
	for age := l.maxFiles - 1; age > 0; age-- {
		os.Rename(l.path(age-1), l.path(age))
	}
	return l.open(os.O_TRUNC)
}

func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	return err
}

// stream returns the writer for one of the container's streams. It must be
// closed for the last line, which may lack its end.
func (l *logFile) stream(name string) io.WriteCloser { return &logStream{log: l, name: name} }

type logStream struct {
	log     *logFile
	name    string
	partial []byte
}

func (s *logStream) Write(b []byte) (int, error) {
	n := len(b)
	now := time.Now().UTC()
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	for len(b) > 0 {
		end := bytes.IndexByte(b, '\n') + 1
		if end == 0 {
			s.partial = append(s.partial, b...)
			b = nil
			if len(s.partial) < maxLogLine {
				break
			}
		} else {
			s.partial = append(s.partial, b[:end]...)
			b = b[end:]
		}
		for len(s.partial) > 0 {
			part := s.partial[:min(len(s.partial), maxLogLine)]
			s.log.append(s.name, part, now)
			s.partial = s.partial[len(part):]
		}
		s.partial = s.partial[:0]
	}
	return n, s.log.flush()
}

func (s *logStream) Close() error {
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	if len(s.partial) > 0 {
		s.log.append(s.name, s.partial, time.Now().UTC())
		s.partial = nil
	}
	return s.log.flush()
}

// lineOverhead is what the format adds to a line, about, in bytes.
const lineOverhead = 80

func (l *logFile) append(stream string, line []byte, now time.Time) {
	if l.size+int64(len(l.buf)+len(line)+lineOverhead) > l.maxBytes {
		// The next write begins a new file; an error shows at its end.
		l.flush()
	}
	l.buf = append(l.buf, `{"log":`...)
	l.buf = appendString(l.buf, line)
	l.buf = append(l.buf, `,"stream":"`...)
	l.buf = append(l.buf, stream...)
	l.buf = append(l.buf, `","time":"`...)
	l.buf = now.AppendFormat(l.buf, time.RFC3339Nano)
	l.buf = append(l.buf, "\"}\n"...)
}

func (l *logFile) flush() error {
	if len(l.buf) == 0 || l.f == nil {
		l.buf = l.buf[:0]
		return nil
	}
	if l.size > 0 && l.size+int64(len(l.buf)) > l.maxBytes {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	n, err := l.f.Write(l.buf)
	l.size += int64(n)
	l.buf = l.buf[:0]
	if cap(l.buf) > 4*copyBuffer {
		l.buf = nil
	}
	return err
}

// appendString appends a JSON string. Bytes that are not UTF-8 become the
// replacement character, as in docker's logs.
func appendString(dst, s []byte) []byte {
	plain := true
	for _, c := range s {
		if c < 0x20 && c != '\n' && c != '\t' || c == '"' || c == '\\' || c >= utf8.RuneSelf || c == '<' || c == '>' || c == '&' {
			plain = false
			break
		}
	}
	if !plain {
		// Does not fail for a string.
		b, _ := json.Marshal(string(s))
		return append(dst, b...)
	}
	dst = append(dst, '"')
	for _, c := range s {
		switch c {
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, c)
		}
	}
	return append(dst, '"')
}
