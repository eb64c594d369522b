package layer

import (
	"bytes"
	"fmt"
	"strconv"

	"manis/image/fault"
)

func sparseError(what string) error {
	return fmt.Errorf("sparse file: %s: %w", what, fault.ErrInvalid)
}

// readSparse reads the map of a sparse file, wherever its encoding has it,
// and sets the entry's true size. What of the stored data is map is consumed.
func (t *Reader) readSparse(kind byte, p *pax) error {
	var numbers []int64
	var err error
	size := t.entry.Size
	switch {
	case kind == 'S':
		numbers, size, err = t.oldMap()
	case p.sparse.major == "1" && p.sparse.minor == "0":
		numbers, err = t.storedMap()
	case p.sparse.blocks && (p.sparse.major == "" || p.sparse.major == "0"):
		numbers = p.sparse.numbers
	default:
		return fmt.Errorf("sparse file of version %.10q.%.10q: %w", p.sparse.major, p.sparse.minor, fault.ErrUnsupported)
	}
	if err != nil {
		return err
	}
	if kind != 'S' {
		if p.sparse.realSize == nil {
			return sparseError("its size is not given")
		}
		size = *p.sparse.realSize
	}
	t.entry.Size = size
	t.sparse, err = fragments(numbers, size, t.left)
	return err
}

// fragments checks a map: in order, without overlap, within the file, and
// as long in sum as the data that is stored.
func fragments(numbers []int64, size, stored int64) ([]fragment, error) {
	if len(numbers)%2 != 0 {
		return nil, sparseError("half a fragment in its map")
	}
	list := make([]fragment, 0, len(numbers)/2)
	at, sum := int64(0), int64(0)
	for i := 0; i < len(numbers); i += 2 {
		f := fragment{numbers[i], numbers[i+1]}
		if f.off < at || f.len < 0 || f.off > size || f.len > size-f.off {
			return nil, sparseError("its map is out of order or out of the file")
		}
		at = f.off + f.len
		sum += f.len
		if f.len > 0 {
			list = append(list, f)
		}
	}
	if sum != stored {
		return nil, sparseError(fmt.Sprintf("its map names %d bytes, %d are stored", sum, stored))
	}
	return list, nil
}

// oldMap reads the map of GNU's old format: four fragments in the header, and
// more in blocks of 21.
func (t *Reader) oldMap() (numbers []int64, size int64, err error) {
	size, err = number(t.block[483:495])
	if err != nil {
		return nil, 0, fmt.Errorf("size of a sparse file: %w", err)
	}
	if size < 0 {
		return nil, 0, sparseError(fmt.Sprintf("size %d", size))
	}
	take := func(b []byte) error {
		for ; len(b) >= 24; b = b[24:] {
			if b[0] == 0 {
				return nil
			}
			off, err := number(b[0:12])
			if err != nil {
				return fmt.Errorf("sparse map: %w", err)
			}
			n, err := number(b[12:24])
			if err != nil {
				return fmt.Errorf("sparse map: %w", err)
			}
			numbers = append(numbers, off, n)
		}
		return nil
	}
	if err := take(t.block[386:482]); err != nil {
		return nil, 0, err
	}
	more := t.block[482] != 0
	var ext [blockSize]byte
	for more {
		if len(numbers) >= 2*maxFragments {
			return nil, 0, fmt.Errorf("sparse map of more than %d fragments: %w", maxFragments, fault.ErrLimit)
		}
		if err := t.full(ext[:]); err != nil {
			return nil, 0, err
		}
		if err := take(ext[:504]); err != nil {
			return nil, 0, err
		}
		more = ext[504] != 0
	}
	return numbers, size, nil
}

// storedMap reads the map of version 1.0: decimal numbers on lines, first
// their count, in whole blocks before the data.
func (t *Reader) storedMap() ([]int64, error) {
	var pending []byte
	line := func() (int64, error) {
		for {
			if i := bytes.IndexByte(pending, '\n'); i >= 0 {
				n, err := strconv.ParseUint(string(pending[:i]), 10, 63)
				if err != nil {
					return 0, sparseError(fmt.Sprintf("number %.40q in its map", pending[:i]))
				}
				pending = pending[i+1:]
				return int64(n), nil
			}
			if len(pending) > blockSize || t.left < blockSize {
				return 0, sparseError("its map has no end")
			}
			block := make([]byte, blockSize)
			if err := t.full(block); err != nil {
				return 0, err
			}
			t.left -= blockSize
			pending = append(pending, block...)
		}
	}
	count, err := line()
	if err != nil {
		return nil, err
	}
	if count > maxFragments {
		return nil, fmt.Errorf("sparse map of %d fragments (at most %d allowed): %w", count, maxFragments, fault.ErrLimit)
	}
	var numbers []int64
	for range 2 * count {
		n, err := line()
		if err != nil {
			return nil, err
		}
		numbers = append(numbers, n)
	}
	return numbers, nil
}
