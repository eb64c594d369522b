package pod

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"manis/place"
)

// Dir names the directory of a pod, short enough for a socket in it. Who owns the pod and its id there tell it
// from others.
func Dir(places *place.Places, owner, id string) string {
	sum := sha256.Sum256([]byte(strings.Join([]string{owner, id}, "\x00")))
	return filepath.Join(places.Pods(), hex.EncodeToString(sum[:8]))
}

// MakeDir makes it anew.
func MakeDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return fmt.Errorf("make the pod's directory: %w", err)
	}
	// What is there belonged to a pod that nobody knows any more.
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("make the pod's directory: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("make the pod's directory: %w", err)
	}
	return nil
}
