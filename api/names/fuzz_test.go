package names

import (
	"bytes"
	"testing"
)

// FuzzRead reads what a guest sends in the place of queries. What is read is what was written.
func FuzzRead(f *testing.F) {
	for _, frame := range []*Frame{{Number: 1, Message: []byte("query")}, {Number: 1<<32 - 1, TCP: true, Message: []byte{}}} {
		var b bytes.Buffer
		if err := Write(&b, frame); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Add([]byte{0, 0, 0, 1, 0, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		for {
			before := r.Len()
			frame, err := Read(r)
			if err != nil {
				return
			}
			var again bytes.Buffer
			if err := Write(&again, frame); err != nil {
				t.Fatal(err)
			}
			if at := len(b) - before; !bytes.HasPrefix(b[at:], again.Bytes()) {
				t.Errorf("%x was read from %x", again.Bytes(), b[at:])
			}
		}
	})
}
