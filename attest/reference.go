package attest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// maxReference bounds reference values, bytes.
const maxReference = 1 << 20

// ReadReference reads a file of reference values. What it does not know in them it refuses: it may be what somebody relies on.
func ReadReference(path string) (*Reference, error) {
	fail := func(err error) (*Reference, error) {
		return nil, fmt.Errorf("read the reference values %s: %w", path, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the reference values: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxReference+1))
	if err != nil {
		return fail(err)
	}
	if len(b) > maxReference {
		return fail(fmt.Errorf("it has more than %d bytes", maxReference))
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	r := new(Reference)
	if err := d.Decode(r); err != nil {
		return fail(err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fail(errors.New("there is more than one document"))
	}
	if err := r.Check(); err != nil {
		return fail(err)
	}
	return r, nil
}
