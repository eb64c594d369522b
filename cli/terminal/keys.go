package terminal

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// ErrDetached is what a KeyReader returns when its sequence was typed.
var ErrDetached = errors.New("detached")

// DefaultDetachKeys is docker's sequence.
const DefaultDetachKeys = "ctrl-p,ctrl-q"

// ParseKeys reads a sequence of keys as docker writes it: single characters or
// ctrl-X, separated by commas, where X is a letter or one of @ [ \ ] ^ _.
func ParseKeys(s string) ([]byte, error) {
	var keys []byte
	for _, key := range strings.Split(s, ",") {
		switch {
		case len(key) == 1:
			keys = append(keys, key[0])
		case len(key) == 6 && strings.HasPrefix(key, "ctrl-"):
			c := key[5]
			switch {
			case c >= 'a' && c <= 'z':
				keys = append(keys, c-'a'+1)
			case c >= '@' && c <= '_':
				keys = append(keys, c-'@')
			default:
				return nil, fmt.Errorf("invalid detach keys %q: no such key as %q", s, key)
			}
		default:
			return nil, fmt.Errorf("invalid detach keys %q: %q is neither a character nor ctrl-X (such as %q)", s, key, DefaultDetachKeys)
		}
	}
	return keys, nil
}

// KeyReader passes a terminal's input on until a sequence of keys is typed; from
// then on it returns ErrDetached. The beginning of the sequence is held back
// until it is clear that it is not one.
type KeyReader struct {
	in      io.Reader
	keys    []byte
	matched int
	pending []byte
	err     error
	buf     []byte
}

// NewKeyReader reads from in. With no keys it passes everything on.
func NewKeyReader(in io.Reader, keys []byte) *KeyReader {
	return &KeyReader{in: in, keys: keys, buf: make([]byte, 4096)}
}

func (r *KeyReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(r.pending) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		n, err := r.in.Read(r.buf)
		r.scan(r.buf[:n])
		if err != nil && r.err == nil {
			r.err = err
			// What was held back is input after all.
			r.pending = append(r.pending, r.keys[:r.matched]...)
			r.matched = 0
		}
	}
	n := copy(p, r.pending)
	r.pending = r.pending[n:]
	return n, nil
}

func (r *KeyReader) scan(input []byte) {
	r.pending = r.pending[:0]
	if len(r.keys) == 0 {
		r.pending = append(r.pending, input...)
		return
	}
	for _, b := range input {
		// Fall back to the longest beginning of the sequence that what was
		// typed ends with, releasing what no longer belongs to one.
		for r.matched > 0 && b != r.keys[r.matched] {
			shorter := r.border(r.matched)
			r.pending = append(r.pending, r.keys[:r.matched-shorter]...)
			r.matched = shorter
		}
		if b == r.keys[r.matched] {
			r.matched++
		} else {
			r.pending = append(r.pending, b)
		}
		if r.matched == len(r.keys) {
			r.err = ErrDetached
			return
		}
	}
}

// border is the length of the longest proper beginning of keys[:n] that is also
// its end.
func (r *KeyReader) border(n int) int {
	for k := n - 1; k > 0; k-- {
		if string(r.keys[:k]) == string(r.keys[n-k:n]) {
			return k
		}
	}
	return 0
}
