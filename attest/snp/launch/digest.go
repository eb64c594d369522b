package launch

import (
	"crypto/sha512"
	"encoding/binary"
)

const pageSize = 4096

// Kinds of pages (PAGE_INFO, PAGE_TYPE).
const (
	pageNormal  = 1
	pageVMSA    = 2
	pageZero    = 3
	pageSecrets = 5
	pageCPUID   = 6
)

// vmsaAddress is where the first states of processors are measured: the page of all ones, within 52 bits.
const vmsaAddress = 0xfffffffff000

// pageInfoBytes is the size of PAGE_INFO: the digest so far, that of the page, 16 bits of this size, kind, IMI, permissions of the three other
// privilege levels, a byte that is zero, and the address.
const pageInfoBytes = 0x70

// update goes on by one page.
func (d *Digest) update(kind byte, address uint64, contents Digest) {
	var info [pageInfoBytes]byte
	copy(info[0x00:], d[:])
	copy(info[0x30:], contents[:])
	binary.LittleEndian.PutUint16(info[0x60:], pageInfoBytes)
	info[0x62] = kind
	binary.LittleEndian.PutUint64(info[0x68:], address)
	*d = sum(info[:])
}

// data goes on by pages with contents.
func (d *Digest) data(address uint64, b []byte) {
	for at := 0; at < len(b); at += pageSize {
		d.update(pageNormal, address+uint64(at), sum(b[at:at+pageSize]))
	}
}

// empty goes on by pages whose contents are not measured.
func (d *Digest) empty(kind byte, base, size uint32) {
	for at := uint32(0); at < size; at += pageSize {
		d.update(kind, uint64(base)+uint64(at), Digest{})
	}
}

func sum(b []byte) Digest { return sha512.Sum384(b) }
