package jail

import (
	"os"
	"slices"
	"sync/atomic"
)

// lender lends files to one process, which may map them privately and must not write to them.
//
// QEMU opens the file behind a guest's memory for reading and writing even where it maps
// it copy on write (memory-backend-file with share=off; its option rom=off came with
// 8.2). A descriptor open for writing would let a guest that has taken QEMU over change the
// memory of all its siblings, and no permission and no read-only mount makes such an open(2)
// succeed and a write(2) fail. So the open is answered from outside, with a descriptor that is open for
// reading only. That is enough for a private mapping. It is opened by way of the jail's own
// read-only mount, so that it cannot be opened again for writing through /proc either, where the
// jail has one.
type lender struct {
	paths []string // inside the jail
	over  atomic.Bool
}

// asked opens the file that a call wants to open; nil is none that is lent. The path is
// the process's own memory: lying in it gains nothing but another file that is lent.
func (l *lender) asked(n *notification) *os.File {
	if l.over.Load() {
		return nil
	}
	path, ok := n.text(n.args[1], 63)
	if !ok || !slices.Contains(l.paths, path) {
		return nil
	}
	f, err := os.Open(n.proc() + "/root" + path)
	if err != nil {
		return nil
	}
	return f
}

// newLender lends those of the files that are to be lent; nil: there are none.
func newLender(files []File) *lender {
	l := new(lender)
	for _, f := range files {
		if f.Lent {
			l.paths = append(l.paths, f.Inside)
		}
	}
	if l.paths == nil {
		return nil
	}
	return l
}
