package erofs

import (
	"bytes"
	"hash/maphash"
)

// index finds a dirent by directory and name: open addressing over dirent
// numbers, four bytes a slot. The seed is random, so that a crafted layer
// cannot pile its names into one chain; the image does not depend on it.
type index struct {
	seed  maphash.Seed
	slots []uint32
	used  int // slots not free, tombstones included
	live  int
}

const tombstone = ^uint32(0)

func (x *index) start(dir Ino, name []byte) uint64 {
	h := maphash.Bytes(x.seed, name) ^ uint64(dir)*0x9E3779B97F4A7C15
	return (h ^ h>>29) * 0xBF58476D1CE4E5B9 >> 20
}

func (b *Builder) find(dir Ino, name []byte) uint32 {
	x := &b.index
	mask := uint64(len(x.slots) - 1)
	for i := x.start(dir, name) & mask; x.slots[i] != 0; i = (i + 1) & mask {
		if id := x.slots[i]; id != tombstone && b.matches(id, dir, name) {
			return id
		}
	}
	return 0
}

func (b *Builder) matches(id uint32, dir Ino, name []byte) bool {
	d := b.dirents.get(id)
	return d.parent == dir && int(d.nameLen) == len(name) &&
		bytes.Equal(b.names.span(d.name, uint32(d.nameLen), false), name)
}

func (x *index) insert(b *Builder, dir Ino, name []byte, id uint32) {
	if (x.used+1)*4 > len(x.slots)*3 {
		x.rebuild(b)
	}
	mask := uint64(len(x.slots) - 1)
	i := x.start(dir, name) & mask
	for x.slots[i] != 0 {
		i = (i + 1) & mask
	}
	x.slots[i] = id
	x.used++
	x.live++
}

func (x *index) remove(b *Builder, dir Ino, name []byte, id uint32) {
	mask := uint64(len(x.slots) - 1)
	for i := x.start(dir, name) & mask; x.slots[i] != 0; i = (i + 1) & mask {
		if x.slots[i] == id {
			x.slots[i] = tombstone
			x.live--
			return
		}
	}
}

// rebuild drops tombstones, and doubles the table when it is truly full.
func (x *index) rebuild(b *Builder) {
	size := len(x.slots)
	if x.live*2 > size {
		size *= 2
	}
	// The entry being inserted is in the dirents already, but not live here:
	// only what the old table holds is carried over.
	old := x.slots
	x.slots = make([]uint32, size)
	x.used = x.live
	mask := uint64(size - 1)
	for _, id := range old {
		if id == 0 || id == tombstone {
			continue
		}
		d := b.dirents.get(id)
		i := x.start(d.parent, b.name(id, 1)) & mask
		for x.slots[i] != 0 {
			i = (i + 1) & mask
		}
		x.slots[i] = id
	}
}
