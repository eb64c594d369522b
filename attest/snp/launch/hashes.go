package launch

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"strings"
)

// Hashes are what the firmware compares with what QEMU hands it to start (-kernel, -initrd and -append, with kernel-hashes=on).
type Hashes struct {
	// Kernel and Initrd are SHA-256 of the whole files: QEMU leaves the kernel's header alone for such machines.
	Kernel, Initrd [sha256.Size]byte
	// Cmdline is the SHA-256 of HashCmdline.
	Cmdline [sha256.Size]byte
}

// MaxCmdline bounds a command line, bytes: what the kernel takes on x86.
const MaxCmdline = 2047

// HashCmdline is the hash of the kernel's command line as QEMU is given it, with a zero after it.
func HashCmdline(cmdline string) ([sha256.Size]byte, error) {
	switch {
	case len(cmdline) > MaxCmdline:
		return [sha256.Size]byte{}, errors.New("the command line is longer than the kernel takes")
	case strings.ContainsAny(cmdline, "\x00\n"):
		return [sha256.Size]byte{}, errors.New("the command line has a zero byte or an end of line in it")
	}
	return sha256.Sum256(append([]byte(cmdline), 0)), nil
}

// What names the table of the hashes and its entries (QEMU, target/i386/sev.c).
var (
	guidHashes  = guid{0x9438d606, 0x4f22, 0x4cc9, 0xb479a793d411fd21}
	guidKernel  = guid{0x4de79437, 0xabd2, 0x427f, 0xb835d5b172d2045b}
	guidInitrd  = guid{0x44baf731, 0x3a2f, 0x4bd7, 0x9af141e29169781d}
	guidCmdline = guid{0x97d02dd8, 0xbd20, 0x4c94, 0xaa78e7714d36ab2a}
)

// Sizes of the table, bytes: of an entry, of all, and of what QEMU writes, with zeros.
const (
	hashEntryBytes = guidBytes + 2 + sha256.Size
	hashTableBytes = guidBytes + 2 + 3*hashEntryBytes
	hashAreaBytes  = (hashTableBytes + 15) &^ 15
)

// page is a page with the table in it at an offset, which is at most pageSize-hashAreaBytes.
func (h *Hashes) page(offset uint32) []byte {
	b := append(make([]byte, 0, pageSize), make([]byte, offset)...)
	b = binary.LittleEndian.AppendUint16(guidHashes.append(b), hashTableBytes)
	for _, e := range []struct {
		name guid
		hash [sha256.Size]byte
	}{{guidCmdline, h.Cmdline}, {guidInitrd, h.Initrd}, {guidKernel, h.Kernel}} {
		b = binary.LittleEndian.AppendUint16(e.name.append(b), hashEntryBytes)
		b = append(b, e.hash[:]...)
	}
	return b[:pageSize]
}
