package erofs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"manis/image/fault"
)

// Xattr is one extended attribute, with its full name.
type Xattr struct {
	Name  string
	Value []byte
}

// Name spaces that EROFS can express. An ACL's name is all prefix.
var xattrSpaces = []struct {
	prefix string
	index  byte
}{
	{"system.posix_acl_access", 2},
	{"system.posix_acl_default", 3},
	{"user.", 1},
	{"trusted.", 4},
	{"security.", 6},
}

// XattrExpressible reports whether EROFS has a place for an attribute of this
// name. Others (foreign systems' name spaces) no Linux file system would take.
func XattrExpressible(name string) bool {
	_, _, ok := splitXattr(name)
	return ok
}

func splitXattr(name string) (index byte, rest string, ok bool) {
	for _, s := range xattrSpaces {
		if !strings.HasPrefix(name, s.prefix) {
			continue
		}
		rest = name[len(s.prefix):]
		acl := s.index == 2 || s.index == 3
		if acl != (rest == "") || len(rest) > maxNameLen-len(s.prefix) {
			return 0, "", false
		}
		return s.index, rest, true
	}
	return 0, "", false
}

// encodeXattrs builds the inline xattr body, sorted so that the order of the
// source does not show.
func encodeXattrs(xattrs []Xattr) ([]byte, error) {
	type attr struct {
		index byte
		name  string
		value []byte
	}
	attrs := make([]attr, 0, len(xattrs))
	for _, x := range xattrs {
		index, rest, ok := splitXattr(x.Name)
		if !ok {
			return nil, fmt.Errorf("extended attribute %q: %w", x.Name, fault.ErrUnsupported)
		}
		if len(x.Value) > 0xFFFF {
			return nil, fmt.Errorf("extended attribute %q of %d bytes (at most %d fit): %w", x.Name, len(x.Value), 0xFFFF, fault.ErrLimit)
		}
		attrs = append(attrs, attr{index, rest, x.Value})
	}
	slices.SortFunc(attrs, func(a, b attr) int {
		if a.index != b.index {
			return int(a.index) - int(b.index)
		}
		return strings.Compare(a.name, b.name)
	})
	body := bytes.NewBuffer(make([]byte, xattrHeaderSize))
	body.Truncate(xattrHeaderSize)
	for i, a := range attrs {
		if i > 0 && a.index == attrs[i-1].index && a.name == attrs[i-1].name {
			return nil, fmt.Errorf("extended attribute given twice: %w", fault.ErrInvalid)
		}
		var head [xattrEntrySize]byte
		head[0], head[1] = byte(len(a.name)), a.index
		binary.LittleEndian.PutUint16(head[2:], uint16(len(a.value)))
		body.Write(head[:])
		body.WriteString(a.name)
		body.Write(a.value)
		body.Write(make([]byte, -body.Len()&3))
		if body.Len() > maxXattrBodySize {
			return nil, fmt.Errorf("extended attributes of more than %d bytes on one file: %w", maxXattrBodySize, fault.ErrLimit)
		}
	}
	return body.Bytes(), nil
}
