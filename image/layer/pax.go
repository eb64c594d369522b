package layer

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"manis/image/fault"
)

// pax collects the extended header records of one entry.
type pax struct {
	path, link     string
	size, uid, gid *int64
	mtime          *instant
	xattrs         []Xattr
	sparse         paxSparse
}

// paxSparse are GNU's records for sparse files, versions 0.0, 0.1 and 1.0.
type paxSparse struct {
	major, minor string
	name         string
	realSize     *int64
	numbers      []int64 // offset, length, offset, length...
	blocks       bool    // 0.0 or 0.1
}

func (s *paxSparse) used() bool { return s.blocks || s.major != "" }

// parse reads records of the form "LENGTH KEY=VALUE\n".
func (p *pax) parse(data []byte) error {
	for len(data) > 0 {
		sp := bytes.IndexByte(data[:min(len(data), 21)], ' ')
		if sp < 0 {
			return paxError("record without a length")
		}
		n, err := strconv.ParseUint(string(data[:sp]), 10, 31)
		if err != nil || int(n) > len(data) || int(n) < sp+3 || data[n-1] != '\n' {
			return paxError("record of a wrong length")
		}
		key, value, ok := bytes.Cut(data[sp+1:n-1], []byte("="))
		if !ok || len(key) == 0 || bytes.IndexByte(key, 0) >= 0 {
			return paxError("record without a key")
		}
		if err := p.record(string(key), value); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

func paxError(what string) error {
	return fmt.Errorf("extended header: %s: %w", what, fault.ErrInvalid)
}

func (p *pax) record(key string, value []byte) error {
	text := func(to *string) error {
		if bytes.IndexByte(value, 0) >= 0 {
			return paxError("zero byte in " + key)
		}
		*to = string(value)
		return nil
	}
	num := func(to **int64) error {
		if len(value) == 0 { // takes the record back
			*to = nil
			return nil
		}
		n, err := strconv.ParseInt(string(value), 10, 64)
		if err != nil || n < 0 {
			return paxError(fmt.Sprintf("%s is %.40q", key, value))
		}
		*to = &n
		return nil
	}
	switch key {
	case "path":
		return text(&p.path)
	case "linkpath":
		return text(&p.link)
	case "size":
		return num(&p.size)
	case "uid":
		return num(&p.uid)
	case "gid":
		return num(&p.gid)
	case "mtime":
		if len(value) == 0 {
			p.mtime = nil
			return nil
		}
		t, err := parseTime(string(value))
		p.mtime = &t
		return err
	}
	if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
		return p.xattr(name, value)
	}
	if name, ok := strings.CutPrefix(key, "GNU.sparse."); ok {
		return p.sparse.record(name, value)
	}
	return nil
}

// xattr records an attribute; a later one of the same name wins.
func (p *pax) xattr(name string, value []byte) error {
	if name == "" {
		return paxError("extended attribute without a name")
	}
	for i := range p.xattrs {
		if p.xattrs[i].Name == name {
			p.xattrs[i].Value = value
			return nil
		}
	}
	if len(p.xattrs) >= maxXattrs {
		return fmt.Errorf("more than %d extended attributes on one entry: %w", maxXattrs, fault.ErrLimit)
	}
	p.xattrs = append(p.xattrs, Xattr{name, value})
	return nil
}

// maxXattrs on one entry: no file system keeps more.
const maxXattrs = 1024

func (s *paxSparse) record(name string, value []byte) error {
	num := func() (int64, error) {
		n, err := strconv.ParseInt(string(value), 10, 64)
		if err != nil || n < 0 {
			return 0, paxError(fmt.Sprintf("GNU.sparse.%s is %.40q", name, value))
		}
		return n, nil
	}
	switch name {
	case "major":
		s.major = string(value)
	case "minor":
		s.minor = string(value)
	case "name":
		if bytes.IndexByte(value, 0) >= 0 {
			return paxError("zero byte in GNU.sparse.name")
		}
		s.name = string(value)
	case "size", "realsize":
		n, err := num()
		s.realSize = &n
		return err
	case "numblocks":
		s.blocks = true
	case "offset", "numbytes": // version 0.0: pairs in order
		if (len(s.numbers)%2 == 0) != (name == "offset") {
			return paxError("sparse map out of order")
		}
		if len(s.numbers) >= 2*maxFragments {
			return fmt.Errorf("sparse map of more than %d fragments: %w", maxFragments, fault.ErrLimit)
		}
		n, err := num()
		s.numbers = append(s.numbers, n)
		s.blocks = true
		return err
	case "map": // version 0.1
		s.blocks, s.numbers = true, nil
		if len(value) == 0 {
			return nil
		}
		for part := range bytes.SplitSeq(value, []byte(",")) {
			n, err := strconv.ParseInt(string(part), 10, 64)
			if err != nil || n < 0 {
				return paxError(fmt.Sprintf("number %.40q in the sparse map", part))
			}
			s.numbers = append(s.numbers, n)
		}
	}
	return nil
}
