// Package crilog reads the log files that engines of Kubernetes' CRI write for containers: a line is the time, the stream, whether
// the text's line ends there (F) or goes on in the next (P), and the text. The file's writer is the engine, the text the container's.
package crilog

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"manis/cli/journal"
)

// KubeletDir is where the kubelet keeps a link to the log of each container, named POD_NAMESPACE_CONTAINER-ID.log.
const KubeletDir = "/var/log/containers"

// maxLine bounds a line, bytes; engines cut at 16 KiB. What is longer is left out.
const maxLine = 1 << 20

// Find finds the log of a container by its whole id in a directory of links. os.ErrNotExist means that there is none.
func Find(dir, id string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", fmt.Errorf("find the log of container %s: %w", id, err)
	}
	for _, e := range entries {
		if id != "" && strings.HasSuffix(e.Name(), "-"+id+".log") {
			return filepath.Join(dir, e.Name()), nil
		}
	}
	return "", fmt.Errorf("find the log of container %s in %s: %w", id, dir, os.ErrNotExist)
}

// Read gives the records of a file to emit, in order, as far as the query wants them. Files that were rotated away are not read, and
// nothing is followed.
func Read(ctx context.Context, path string, q journal.Query, emit func(*journal.Record) error) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("read a container's log: %w", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return fmt.Errorf("read a container's log: %s is no file", path)
	}
	skip := int64(0)
	if q.Tail >= 0 {
		lines := int64(0)
		err := each(ctx, f, q, func(r *journal.Record) error {
			if strings.HasSuffix(r.Log, "\n") {
				lines++
			}
			return nil
		})
		if err != nil {
			return err
		}
		skip = max(0, lines-int64(q.Tail))
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("read a container's log: %w", err)
		}
	}
	return each(ctx, f, q, func(r *journal.Record) error {
		if skip > 0 {
			if strings.HasSuffix(r.Log, "\n") {
				skip--
			}
			return nil
		}
		return emit(r)
	})
}

// each gives the records that are within the query's times.
func each(ctx context.Context, f io.Reader, q journal.Query, emit func(*journal.Record) error) error {
	lines := bufio.NewReaderSize(f, 64<<10)
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		line, err := readLine(lines)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read a container's log: %w", err)
		}
		r, ok := parse(line)
		if !ok || !q.Since.IsZero() && r.Time.Before(q.Since) || !q.Until.IsZero() && r.Time.After(q.Until) {
			continue
		}
		if err := emit(r); err != nil {
			return err
		}
	}
}

// readLine reads one line without its end; of one that is too long there is nothing. A last line that has no end is still being written.
func readLine(r *bufio.Reader) (string, error) {
	var line []byte
	long := false
	for {
		part, err := r.ReadSlice('\n')
		if long = long || len(line)+len(part) > maxLine; !long {
			line = append(line, part...)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return "", err
		}
		if long {
			return "", nil
		}
		return string(line[:len(line)-1]), nil
	}
}

// parse reads a line; what is none of CRI's is not ok.
func parse(line string) (*journal.Record, bool) {
	stamp, rest, _ := strings.Cut(line, " ")
	stream, rest, _ := strings.Cut(rest, " ")
	tags, text, ok := strings.Cut(rest, " ")
	at, err := time.Parse(time.RFC3339Nano, stamp)
	if !ok || err != nil || stream != "stdout" && stream != "stderr" {
		return nil, false
	}
	// Further tags may follow the first one.
	switch tag, _, _ := strings.Cut(tags, ":"); tag {
	case "F":
		text += "\n"
	case "P":
	default:
		return nil, false
	}
	return &journal.Record{Log: text, Stream: stream, Time: at}, true
}
