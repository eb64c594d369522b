// Package layout reads OCI image layouts: directories with an oci-layout file,
// an index.json and blobs. It must not know of the store.
package layout

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"manis/image/content"
	"manis/image/fault"
)

// Dir is an open layout directory. Links in it are followed only inside it.
type Dir struct {
	root *os.Root
	path string
}

// Is reports whether path looks like a layout directory.
func Is(path string) bool {
	for _, name := range []string{"oci-layout", "index.json"} {
		if fi, err := os.Stat(path + "/" + name); err != nil || !fi.Mode().IsRegular() {
			return false
		}
	}
	return true
}

// Open opens a layout directory.
func Open(path string) (*Dir, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("open the OCI layout %s: %w", path, err)
	}
	return &Dir{root: root, path: path}, nil
}

// Close the directory.
func (d *Dir) Close() { d.root.Close() }

// Index returns the raw index.json.
func (d *Dir) Index(limit int64) ([]byte, error) {
	f, err := d.root.Open("index.json")
	if err != nil {
		return nil, fmt.Errorf("open the OCI layout %s: %w", d.path, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("index.json of the OCI layout %s is larger than %d bytes: %w", d.path, limit, fault.ErrLimit)
	}
	return b, err
}

// Blob opens a blob, which is not verified. A blob that the layout does not
// have is ErrNotFound.
func (d *Dir) Blob(h v1.Hash) (io.ReadCloser, error) {
	if err := content.CheckDigest(h); err != nil {
		return nil, err
	}
	f, err := d.root.Open("blobs/" + h.Algorithm + "/" + h.Hex)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("blob %s of the OCI layout %s: %w", h, d.path, fault.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("blob %s of the OCI layout %s: %w", h, d.path, err)
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("blob %s of the OCI layout %s is not a file: %w", h, d.path, fault.ErrInvalid)
	}
	return f, nil
}
