package shim

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// noteName is the file, in the bundle of a pod's first container, that tells the one who cleans up after a killed shim
// what that had. Its writer holds a lock on it for as long as it lives.
const noteName = "manis.json"

// note is what is written there.
type note struct {
	PID   int    `json:"pid"`
	Dir   string `json:"dir"`             // the pod's directory; empty: it has none yet
	Group string `json:"group,omitempty"` // its control group
}

// notebook is a shim's note of itself.
type notebook struct{ file *os.File }

// openNotebook begins the note of this process in a bundle.
func openNotebook(bundle string) (*notebook, error) {
	path := filepath.Join(bundle, noteName)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("note what the pod has: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("note what the pod has: %s belongs to another process: %w", path, err)
	}
	n := &notebook{f}
	return n, n.write(&note{PID: os.Getpid()})
}

// write replaces what it says.
func (n *notebook) write(what *note) error {
	b, err := json.Marshal(what)
	if err == nil {
		// It only grows: a reader finds the old or the new, with spaces behind it.
		_, err = n.file.WriteAt(append(b, '\n'), 0)
	}
	if err != nil {
		return fmt.Errorf("note what the pod has: %w", err)
	}
	return nil
}

// tear takes it away.
func (n *notebook) tear() {
	os.Remove(n.file.Name())
	n.file.Close()
}
