package attest

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"

	"manis/attest/snp/launch"
)

// The most that files of a guest have, bytes. More is a mistake, which would otherwise take the memory or never end.
const (
	maxKernel   = 512 << 20
	maxInitrd   = 4 << 30
	maxFirmware = launch.MaxFirmware
)

// copyFile writes an ordinary file of 1 to most bytes to w. what names it in errors.
func copyFile(w io.Writer, what, path string, most int64) (size int64, err error) {
	fail := func(format string, args ...any) (int64, error) {
		return 0, fmt.Errorf("measure %s: %w", what, fmt.Errorf(format, args...))
	}
	// Before it is opened: a pipe would wait for its other end.
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return fail("%w", err)
	case !info.Mode().IsRegular():
		return fail("%s is no ordinary file (%s)", path, info.Mode())
	case info.Size() == 0:
		return fail("%s is empty", path)
	case info.Size() > most:
		return fail("%s has %d bytes, more than %d", path, info.Size(), most)
	}
	f, err := os.Open(path)
	if err != nil {
		return fail("%w", err)
	}
	defer f.Close()
	if size, err = io.Copy(w, io.LimitReader(f, most+1)); err != nil {
		return fail("%w", err)
	}
	if size != info.Size() {
		return fail("%s has changed meanwhile", path)
	}
	return size, nil
}

func readFile(what, path string, most int64) ([]byte, error) {
	var b bytes.Buffer
	_, err := copyFile(&b, what, path, most)
	return b.Bytes(), err
}

// hashFile returns the SHA-256 of a file, and its size.
func hashFile(what, path string, most int64) (digest []byte, size int64, err error) {
	h := sha256.New()
	if size, err = copyFile(h, what, path, most); err != nil {
		return nil, 0, err
	}
	return h.Sum(nil), size, nil
}
