// Package archive reads and writes image archives: tar files as "docker save"
// makes them, and OCI layouts packed into tar. Reading works on a stream, so
// the members are first unpacked, under names of our own, into a directory of
// the caller's. It must not know of the store.
package archive

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"manis/image/content"
	"manis/image/fault"
	"manis/image/layer"
)

// Limits of an archive. Zero fields take their default.
type Limits struct {
	Bytes   int64 // of all members together; default 256 GiB
	Members int   // default 100,000
}

// Archive is an unpacked archive.
type Archive struct {
	members map[string]*member
	links   map[string]string // symbolic and hard links: name -> name
	byHash  map[string]*member
}

type member struct {
	path   string // of the unpacked file
	size   int64
	digest v1.Hash
}

// Read unpacks the archive r, compressed or not, into dir. Progress is told of
// the bytes unpacked so far.
func Read(ctx context.Context, r io.Reader, dir string, limits Limits, progress func(n int64)) (*Archive, error) {
	if limits.Bytes == 0 {
		limits.Bytes = 256 << 30
	}
	if limits.Members == 0 {
		limits.Members = 100_000
	}
	raw, err := layer.Decompress(r)
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	a := &Archive{members: map[string]*member{}, links: map[string]string{}, byHash: map[string]*member{}}
	tr := layer.NewReader(raw)
	out := &unpacker{ctx: ctx, left: limits.Bytes, limit: limits.Bytes, sum: sha256.New(), progress: progress}
	for n := 0; ; n++ {
		e, err := tr.Next()
		if err == io.EOF {
			return a, nil
		}
		if err != nil {
			return nil, err
		}
		if n >= limits.Members {
			return nil, fmt.Errorf("archive of more than %d members: %w", limits.Members, fault.ErrLimit)
		}
		// Names are only ever keys of these maps, so they need no further care.
		name := clean(e.Name)
		switch e.Type {
		case layer.Regular:
			m, err := out.unpack(tr, filepath.Join(dir, strconv.Itoa(n)))
			if err != nil {
				return nil, fmt.Errorf("member %.200q: %w", e.Name, err)
			}
			a.members[name] = m
			a.byHash[m.digest.Hex] = m
			delete(a.links, name)
		case layer.Symlink:
			a.links[name] = clean(path.Join(path.Dir(name), e.Link))
		case layer.HardLink:
			a.links[name] = clean(e.Link)
		}
	}
}

func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// find resolves links between members, as old docker archives have them.
func (a *Archive) find(name string) (*member, error) {
	at := clean(name)
	for range 16 {
		if m, ok := a.members[at]; ok {
			return m, nil
		}
		to, ok := a.links[at]
		if !ok {
			return nil, fmt.Errorf("member %.200q of the archive: %w", name, fault.ErrNotFound)
		}
		at = to
	}
	return nil, fmt.Errorf("member %.200q of the archive: links in a circle: %w", name, fault.ErrInvalid)
}

// Has reports whether the archive has a member.
func (a *Archive) Has(name string) bool {
	_, err := a.find(name)
	return err == nil
}

// File returns a small member.
func (a *Archive) File(name string, limit int64) ([]byte, error) {
	m, err := a.find(name)
	if err != nil {
		return nil, err
	}
	if m.size > limit {
		return nil, fmt.Errorf("member %.200q of %d bytes (at most %d allowed): %w", name, m.size, limit, fault.ErrLimit)
	}
	return os.ReadFile(m.path)
}

// Describe returns digest and size of a member, and how it is compressed.
func (a *Archive) Describe(name string) (d v1.Hash, size int64, kind layer.Compression, err error) {
	m, err := a.find(name)
	if err != nil {
		return d, 0, "", err
	}
	f, err := os.Open(m.path)
	if err != nil {
		return d, 0, "", err
	}
	defer f.Close()
	var head [6]byte
	n, err := io.ReadFull(f, head[:])
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return d, 0, "", err
	}
	kind, err = layer.Detect(head[:n])
	return m.digest, m.size, kind, err
}

// Blob opens a member by its digest, under whatever name it is there.
func (a *Archive) Blob(d v1.Hash) (io.ReadCloser, error) {
	m, err := a.blob(d)
	if err != nil {
		return nil, err
	}
	return os.Open(m.path)
}

// Path is where the member with this digest was unpacked to. Its content has
// the digest; the caller may move it away.
func (a *Archive) Path(d v1.Hash) (string, error) {
	m, err := a.blob(d)
	if err != nil {
		return "", err
	}
	return m.path, nil
}

func (a *Archive) blob(d v1.Hash) (*member, error) {
	if err := content.CheckDigest(d); err != nil {
		return nil, err
	}
	m, ok := a.byHash[d.Hex]
	if !ok {
		if wrong, err := a.find("blobs/sha256/" + d.Hex); err == nil {
			return nil, fmt.Errorf("blob %s of the archive has digest %s: %w", d, wrong.digest, fault.ErrDigest)
		}
		return nil, fmt.Errorf("blob %s of the archive: %w", d, fault.ErrNotFound)
	}
	return m, nil
}

// unpacker writes members to files.
type unpacker struct {
	ctx         context.Context
	left, limit int64
	sum         hash.Hash
	file        *os.File
	total       int64
	size        int64
	progress    func(int64)
}

func (u *unpacker) unpack(tr *layer.Reader, to string) (*member, error) {
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fault.Disk(err)
	}
	defer f.Close()
	u.file, u.size = f, 0
	u.sum.Reset()
	if err := tr.Copy(u); err != nil {
		return nil, fault.Disk(err)
	}
	return &member{path: to, size: u.size, digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(u.sum.Sum(nil))}}, nil
}

// Write implements layer.Data.
func (u *unpacker) Write(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	if u.left -= int64(len(p)); u.left < 0 {
		return 0, fmt.Errorf("archive of more than %d bytes: %w", u.limit, fault.ErrLimit)
	}
	n, err := u.file.Write(p)
	u.sum.Write(p[:n])
	u.size += int64(n)
	u.total += int64(n)
	if u.progress != nil {
		u.progress(u.total)
	}
	return n, err
}

// Zero implements layer.Data.
func (u *unpacker) Zero(n int64) error {
	var zeros [32 << 10]byte
	for n > 0 {
		k := min(n, int64(len(zeros)))
		if _, err := u.Write(zeros[:k]); err != nil {
			return err
		}
		n -= k
	}
	return nil
}
