package node

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// file is one of a release, and its mode when it is installed.
type file struct {
	name string
	mode os.FileMode
}

// files are what a release consists of.
var files = []file{
	{"bin/manis", 0o755},
	{"bin/manisd", 0o755},
	{"bin/containerd-shim-manis-v2", 0o755},
	{"lib/manis/vmlinuz", 0o644},
	{"lib/manis/initramfs", 0o644},
	{"lib/manis/bzImage", 0o644},
	{"lib/manis/initramfs-confidential", 0o644},
}

// Files are the names of what a release consists of, in its directory.
func Files() []string {
	var list []string
	for _, f := range files {
		list = append(list, f.name)
	}
	return list
}

// newPrefix begins the names of directories that are not complete yet.
const newPrefix = ".new-"

func (h *Host) versions() string { return rel(h.Prefix) + "/versions" }
func (h *Host) current() string  { return rel(h.Prefix) + "/current" }

var unfit = regexp.MustCompile(`[^A-Za-z0-9_.]+`)

// Identify names the release in a directory: by its version, and by what is in its files, as builds between two versions
// bear the same one.
func Identify(dir, version string) (string, error) {
	sum := sha256.New()
	for _, f := range files {
		in, err := os.Open(filepath.Join(dir, f.name))
		if err != nil {
			return "", fmt.Errorf("read the release in %s: %w", dir, err)
		}
		fmt.Fprintf(sum, "%s\x00", f.name)
		n, err := io.Copy(sum, in)
		in.Close()
		if err == nil && n == 0 {
			err = errors.New("the file is empty")
		}
		if err != nil {
			return "", fmt.Errorf("read the release in %s: %s: %w", dir, f.name, err)
		}
		fmt.Fprintf(sum, "\x00%d\x00", n)
	}
	version = strings.Trim(unfit.ReplaceAllString(version, "-"), "-._")
	if version == "" {
		version = "unknown"
	}
	// Both together make a label's value, of 63 bytes at most.
	return version[:min(len(version), 48)] + "-" + hex.EncodeToString(sum.Sum(nil))[:12], nil
}

// bring copies a release to its place, unless it is there. Nothing has the place's name before it is complete and on the disk.
func (h *Host) bring(root *os.Root, dir, name string) error {
	place := path.Join(h.versions(), name)
	if complete(root, place) {
		return nil
	}
	if err := root.MkdirAll(h.versions(), 0o755); err != nil {
		return fmt.Errorf("make /%s: %w", h.versions(), err)
	}
	work := path.Join(h.versions(), newPrefix+name)
	if err := root.RemoveAll(work); err != nil {
		return fmt.Errorf("remove what an interrupted installation has left: %w", err)
	}
	for _, f := range files {
		if err := copyFile(root, filepath.Join(dir, f.name), path.Join(work, f.name), f.mode); err != nil {
			root.RemoveAll(work)
			return fmt.Errorf("copy %s to the node: %w", f.name, err)
		}
	}
	err := root.RemoveAll(place) // somebody has taken a file of it away
	if err == nil {
		err = root.Rename(work, place)
	}
	if err != nil {
		root.RemoveAll(work)
		return fmt.Errorf("install %s: %w", name, err)
	}
	h.Log("installed %s in /%s", name, place)
	return nil
}

// complete reports whether all files of a version are there.
func complete(root *os.Root, place string) bool {
	for _, f := range files {
		if fi, err := root.Stat(path.Join(place, f.name)); err != nil || !fi.Mode().IsRegular() || fi.Size() == 0 {
			return false
		}
	}
	return true
}

func copyFile(root *os.Root, from, to string, mode os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := root.MkdirAll(path.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := root.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(mode), out.Sync(), out.Close())
}

// use makes a version the one that new pods get.
func (h *Host) use(root *os.Root, name string) error {
	want := path.Join("versions", name)
	if now, err := root.Readlink(h.current()); err == nil && now == want {
		return nil
	}
	next := rel(h.Prefix) + "/" + newPrefix + "current"
	root.Remove(next)
	err := root.Symlink(want, next)
	if err == nil {
		err = root.Rename(next, h.current())
	}
	if err != nil {
		return fmt.Errorf("make %s the current version: %w", name, err)
	}
	h.Log("new pods get %s", name)
	return nil
}

// inUse is the version that new pods get, "" when there is none.
func (h *Host) inUse(root *os.Root) string {
	link, err := root.Readlink(h.current())
	if err != nil {
		return ""
	}
	return path.Base(link)
}
