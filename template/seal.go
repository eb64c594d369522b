package template

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"manis/host/memo"
)

// sealed is a file and the digest that it must have, "sha256:...".
type sealed struct {
	file *os.File
	want string
}

// verify checks the digests of files. What was verified since the host's boot, as path remembers, and whose
// files have not changed since, is not read again: a change of a file changes its ctime,
// which nobody can set.
func verify(path string, files ...sealed) error {
	seal, err := seal(files)
	if err != nil {
		return err
	}
	if b, err := os.ReadFile(path); err == nil && bytes.Equal(b, seal) {
		return nil
	}
	for _, f := range files {
		got, err := digest(f.file)
		if err != nil {
			return err
		}
		if got != f.want {
			return fmt.Errorf("%s is damaged", filepath.Base(f.file.Name()))
		}
	}
	writeFile(path, seal)
	return nil
}

// seal identifies the files' present content for as long as the host runs.
func seal(files []sealed) ([]byte, error) {
	boot, err := memo.Boot()
	if err != nil {
		return nil, err
	}
	b := bytes.NewBufferString(boot + "\n")
	for _, f := range files {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.file.Fd()), &st); err != nil {
			return nil, fmt.Errorf("stat %s: %w", f.file.Name(), err)
		}
		fmt.Fprintln(b, st.Dev, st.Ino, st.Size, st.Ctim.Nano(), st.Mtim.Nano(), st.Mode, f.want)
	}
	return b.Bytes(), nil
}

// digest hashes a sparse file: of each run of data its place and content. The position of
// f is at the beginning afterwards.
func digest(f *os.File) (string, error) {
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	buf := make([]byte, 256<<10)
	zero := make([]byte, 4096)
	fmt.Fprintln(h, st.Size())
	for at := int64(0); at < st.Size(); {
		from, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break
		}
		if err != nil {
			return "", fmt.Errorf("read %s: %w", f.Name(), err)
		}
		to, err := unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
		if err != nil {
			return "", fmt.Errorf("read %s: %w", f.Name(), err)
		}
		for at = from &^ 4095; at < to; {
			n, err := f.ReadAt(buf[:min(int64(len(buf)), st.Size()-at)], at)
			if err != nil && err != io.EOF {
				return "", fmt.Errorf("read %s: %w", f.Name(), err)
			}
			if n == 0 {
				return "", fmt.Errorf("read %s: it became shorter", f.Name())
			}
			// Where a filesystem stores zeros and where a hole is its own affair.
			for page := range slices.Chunk(buf[:n], 4096) {
				if !bytes.Equal(page, zero[:len(page)]) {
					fmt.Fprintln(h, at)
					h.Write(page)
				}
				at += int64(len(page))
			}
		}
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}

// writeFile replaces a file at once. Its failure costs time only.
func writeFile(path string, b []byte) {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".tmp-")
	if err != nil {
		return
	}
	_, err = tmp.Write(b)
	tmp.Close()
	if err != nil || os.Rename(tmp.Name(), path) != nil {
		os.Remove(tmp.Name())
	}
}
