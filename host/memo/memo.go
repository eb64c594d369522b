// Package memo remembers what was found out about a host from one process to
// the next: a JSON file for each subject in a cache directory. What is remembered
// can always be found out again, so nothing here fails: whoever cannot read looks
// anew, and whoever cannot write is slower the next time. The package does not know
// what the files say.
package memo

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
)

// maxSize bounds a file, bytes.
const maxSize = 256 << 10

// Path is where dir keeps what is known of the subject.
func Path(dir, subject string) string { return filepath.Join(dir, subject+".json") }

// Recall stores into v what is remembered and reports whether there was
// anything. An empty dir remembers nothing. v may be changed also where it reports
// false.
func Recall(dir, subject string, v any) bool {
	if dir == "" {
		return false
	}
	f, err := os.Open(Path(dir, subject))
	if err != nil {
		return false
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSize))
	return err == nil && json.Unmarshal(b, v) == nil
}

// Keep remembers v: readers see the old file or the new one, never a part.
func Keep(dir, subject string, v any) {
	if dir == "" {
		return
	}
	b, err := json.Marshal(v)
	if err != nil || os.MkdirAll(dir, 0o700) != nil {
		return
	}
	f, err := os.CreateTemp(dir, subject+".*")
	if err != nil {
		return
	}
	_, err = f.Write(b)
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), Path(dir, subject))
	}
	if err != nil {
		os.Remove(f.Name())
	}
}

// Boot identifies the host's boot: some of what is found out is true until the next.
func Boot() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return string(bytes.TrimSpace(b)), err
}

// Forget removes what is remembered.
func Forget(dir, subject string) {
	if dir != "" {
		os.Remove(Path(dir, subject))
	}
}
