// Package journal reads what a container's monitor kept of its output: files of
// JSON lines in docker's json-file format, rotated by renaming, the newest without
// a number. It reads while they are written. It knows nothing of containers: who
// follows a journal says when its writer has ended.
package journal

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// Name is the file being written; Name.1 is the one before it, and so on.
const Name = "container.log"

// maxFiles bounds the search for rotated files.
const maxFiles = 10_000

// maxLine bounds one line's JSON: the monitor cuts output into far shorter ones.
// Longer ones are damage and are skipped.
const maxLine = 1 << 20

// Record is one line of output, or a part of a long one.
type Record struct {
	// Log is the text with its newline, if it had one.
	Log    string            `json:"log"`
	Stream string            `json:"stream"` // stdout, stderr
	Time   time.Time         `json:"time"`
	Attrs  map[string]string `json:"attrs,omitempty"`
}

// Query says what to read.
type Query struct {
	// Tail is how many lines at the end to begin with; negative: all.
	Tail int
	// Since and Until leave out what is before and after; zero: no limit.
	Since, Until time.Time
	// Ended, when not nil, makes Read follow what is written until Ended is
	// closed: by then the writer has written everything.
	Ended <-chan struct{}
}

// errDone ends a reading early without failing it.
var errDone = errors.New("nothing further is wanted")

// Read gives every record of the journal in dir to emit, in order, and returns
// when it has reached the end, or with Query.Ended when the writer has. A directory
// or file that is not there is an empty journal.
func Read(ctx context.Context, dir string, q Query, emit func(*Record) error) error {
	err := read(ctx, dir, q, emit)
	if errors.Is(err, errDone) {
		return nil
	}
	return err
}

func read(ctx context.Context, dir string, q Query, emit func(*Record) error) error {
	r := &reader{dir: dir, q: q, emit: emit}
	var changes <-chan struct{}
	if q.Ended != nil {
		w, err := watch(dir)
		if err != nil {
			return fmt.Errorf("follow logs: %w", err)
		}
		defer w.close()
		changes = w.changes
		if !q.Until.IsZero() {
			var cancel context.CancelFunc
			ctx, cancel = context.WithDeadlineCause(ctx, q.Until, errDone)
			defer cancel()
		}
	}
	files, err := open(dir, nil)
	if err != nil {
		return err
	}
	defer func() { closeAll(r.files) }()
	r.files = files
	if q.Tail >= 0 {
		if err := r.seekTail(q.Tail); err != nil {
			return err
		}
	}
	for {
		// Whoever has ended before this look has written all of it.
		ended := q.Ended == nil
		select {
		case <-q.Ended:
			ended = true
		default:
		}
		if err := r.drain(ctx); err != nil {
			return err
		}
		if ended {
			return nil
		}
		select {
		case <-changes:
		case <-q.Ended:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// reader holds the files that are yet to be read, oldest first; the last
// one stays open, as more may be written to it.
type reader struct {
	dir   string
	q     Query
	emit  func(*Record) error
	files []*os.File
	// lines reads files[0]; partial is the beginning of a line of it.
	lines   *bufio.Reader
	partial []byte
	skip    bool // the rest of a line that is too long
}

// drain emits everything there is.
func (r *reader) drain(ctx context.Context) error {
	for {
		for len(r.files) > 0 {
			if err := r.drainFile(ctx); err != nil {
				return err
			}
			if len(r.files) == 1 {
				break
			}
			r.next()
		}
		var last *os.File
		if len(r.files) > 0 {
			last = r.files[0]
		}
		newer, err := open(r.dir, last)
		if err != nil {
			return err
		}
		if len(newer) == 0 {
			return nil
		}
		if last != nil {
			// The writer was done with the file before it renamed it, but perhaps
			// after drainFile had seen its end.
			if err := r.drainFile(ctx); err != nil {
				closeAll(newer)
				return err
			}
			r.next()
		}
		r.files = newer
	}
}

func (r *reader) next() {
	r.files[0].Close()
	r.files = r.files[1:]
	r.lines, r.partial, r.skip = nil, nil, false
}

func (r *reader) drainFile(ctx context.Context) error {
	if r.lines == nil {
		r.lines = bufio.NewReaderSize(r.files[0], 64<<10)
	}
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		chunk, err := r.lines.ReadSlice('\n')
		if !r.skip {
			r.partial = append(r.partial, chunk...)
			if len(r.partial) > maxLine {
				r.skip, r.partial = true, nil
			}
		}
		switch {
		case err == nil:
			line := r.partial
			skipped := r.skip
			r.partial, r.skip = r.partial[:0], false
			if skipped {
				continue
			}
			if err := r.line(line); err != nil {
				return err
			}
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF):
			return nil
		default:
			return fmt.Errorf("read logs: %w", err)
		}
	}
}

func (r *reader) line(line []byte) error {
	rec := new(Record)
	if err := json.Unmarshal(line, rec); err != nil {
		return nil // what a crash of the host left; the rest is still good
	}
	if !r.q.Since.IsZero() && rec.Time.Before(r.q.Since) {
		return nil
	}
	if !r.q.Until.IsZero() && rec.Time.After(r.q.Until) {
		return errDone
	}
	return r.emit(rec)
}

// seekTail positions the files at the last n lines.
func (r *reader) seekTail(n int) error {
	for i := len(r.files) - 1; i >= 0; i-- {
		offset, found, err := tailOffset(r.files[i], n)
		if err != nil {
			return fmt.Errorf("read logs: %w", err)
		}
		if _, err := r.files[i].Seek(offset, io.SeekStart); err != nil {
			return fmt.Errorf("read logs: %w", err)
		}
		if n -= found; n == 0 {
			closeAll(r.files[:i])
			r.files = r.files[i:]
			return nil
		}
	}
	return nil
}

// tailOffset finds where the last n complete lines of f begin, and how many there
// are if they are fewer.
func tailOffset(f *os.File, n int) (offset int64, found int, err error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, 0, err
	}
	const block = 64 << 10
	buf := make([]byte, block)
	newlines := 0
	for end > 0 {
		start := max(end-block, 0)
		b := buf[:end-start]
		if _, err := f.ReadAt(b, start); err != nil && !errors.Is(err, io.EOF) {
			return 0, 0, err
		}
		for {
			i := bytes.LastIndexByte(b, '\n')
			if i < 0 {
				break
			}
			if newlines == n {
				return start + int64(i) + 1, n, nil
			}
			newlines++
			b = b[:i]
		}
		end = start
	}
	return 0, newlines, nil
}

// open opens the journal's files that are newer than after (all, if nil or no
// longer there), oldest first.
func open(dir string, after *os.File) ([]*os.File, error) {
	var known os.FileInfo
	if after != nil {
		fi, err := after.Stat()
		if err != nil {
			return nil, fmt.Errorf("open logs: %w", err)
		}
		known = fi
	}
	var files []*os.File
	var infos []os.FileInfo
	// Newest first: a file that is renamed meanwhile turns up a second time, and
	// none is missed.
	for i := range maxFiles {
		name := Name
		if i > 0 {
			name += "." + strconv.Itoa(i)
		}
		f, err := os.Open(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			if i == 0 {
				continue // between a renaming and a creation
			}
			break
		}
		if err != nil {
			closeAll(files)
			return nil, fmt.Errorf("open logs: %w", err)
		}
		fi, err := f.Stat()
		if err != nil {
			f.Close()
			closeAll(files)
			return nil, fmt.Errorf("open logs: %w", err)
		}
		if known != nil && os.SameFile(fi, known) {
			f.Close()
			break
		}
		if slices.ContainsFunc(infos, func(seen os.FileInfo) bool { return os.SameFile(seen, fi) }) {
			f.Close()
			continue
		}
		files = append(files, f)
		infos = append(infos, fi)
	}
	slices.Reverse(files)
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
