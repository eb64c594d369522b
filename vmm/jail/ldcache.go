package jail

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
)

// maxLoaderCache bounds what is read of the loader's cache; a large desktop has 300 KB.
const maxLoaderCache = 16 << 20

// loaderCache maps a shared library's name to the paths that the dynamic
// loader's cache has for it, one for each architecture and hardware level.
type loaderCache map[string][]string

// readLoaderCache reads /etc/ld.so.cache. A system without one (musl) has an
// empty cache.
func readLoaderCache(path string) (loaderCache, error) {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if info.Size() > maxLoaderCache {
		return nil, errors.New(path + " is unreasonably large")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parseLoaderCache(b)
}

// parseLoaderCache understands the format "glibc-ld.so.cache1.1" (glibc 2.2 and
// later, sysdeps/generic/dl-cache.h): a header of 48 bytes, then entries of 24
// bytes with offsets of name and path, relative to the header. The older format may
// stand before it and is skipped.
func parseLoaderCache(b []byte) (loaderCache, error) {
	const magic = "glibc-ld.so.cache1.1"
	start := bytes.Index(b, []byte(magic))
	if start < 0 {
		return nil, errors.New("library cache has an unknown format")
	}
	b = b[start:]
	const header, entry = 48, 24
	if len(b) < header {
		return nil, errors.New("library cache is truncated")
	}
	n := uint64(binary.NativeEndian.Uint32(b[len(magic):]))
	if header+n*entry > uint64(len(b)) {
		return nil, errors.New("library cache is truncated")
	}
	cache := make(loaderCache, n)
	for i := range n {
		e := b[header+i*entry:]
		name, ok1 := cstringAt(b, binary.NativeEndian.Uint32(e[4:]))
		path, ok2 := cstringAt(b, binary.NativeEndian.Uint32(e[8:]))
		if !ok1 || !ok2 {
			return nil, errors.New("library cache is damaged")
		}
		cache[name] = append(cache[name], path)
	}
	return cache, nil
}

func cstringAt(b []byte, off uint32) (string, bool) {
	if uint64(off) >= uint64(len(b)) {
		return "", false
	}
	b = b[off:]
	end := bytes.IndexByte(b[:min(len(b), 4096)], 0)
	if end < 0 {
		return "", false
	}
	return string(b[:end]), true
}
