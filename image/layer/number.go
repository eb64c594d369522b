package layer

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
	"strings"

	"manis/image/fault"
)

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// number reads a numeric header field: octal digits, or GNU's base-256 two's
// complement when the highest bit is set.
func number(b []byte) (int64, error) {
	if len(b) > 0 && b[0]&0x80 != 0 {
		return base256(b)
	}
	s := cString(bytes.Trim(b, " \x00"))
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 8, 63)
	if err != nil {
		return 0, fmt.Errorf("bad octal number %.20q: %w", s, fault.ErrInvalid)
	}
	return int64(n), nil
}

func base256(b []byte) (int64, error) {
	var inv byte
	if b[0]&0x40 != 0 {
		inv = 0xff
	}
	var x uint64
	for i, c := range b {
		c ^= inv
		if i == 0 {
			c &= 0x7f
		}
		if x>>56 > 0 {
			return 0, fmt.Errorf("number does not fit 64 bits: %w", fault.ErrInvalid)
		}
		x = x<<8 | uint64(c)
	}
	if x > math.MaxInt64 {
		return 0, fmt.Errorf("number does not fit 64 bits: %w", fault.ErrInvalid)
	}
	if inv == 0xff {
		return ^int64(x), nil
	}
	return int64(x), nil
}

// instant is a PAX time.
type instant struct {
	sec  int64
	nsec uint32
}

// parseTime reads "1700000000.123456789". What is finer than a nanosecond is
// cut off, towards the past as time passes.
func parseTime(s string) (instant, error) {
	bad := fmt.Errorf("bad time %.40q: %w", s, fault.ErrInvalid)
	whole, frac, _ := strings.Cut(s, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return instant{}, bad
	}
	var nsec uint32
	for i := range frac {
		if frac[i] < '0' || frac[i] > '9' {
			return instant{}, bad
		}
	}
	for i := range 9 {
		nsec *= 10
		if i < len(frac) {
			nsec += uint32(frac[i] - '0')
		}
	}
	if strings.HasPrefix(whole, "-") && nsec > 0 {
		if sec == math.MinInt64 {
			return instant{}, bad
		}
		return instant{sec - 1, 1e9 - nsec}, nil
	}
	return instant{sec, nsec}, nil
}
