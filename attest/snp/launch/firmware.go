package launch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// MaxFirmware bounds a firmware's image, bytes: OVMF's are of 2 to 4 MiB.
const MaxFirmware = 16 << 20

// build is what to do about firmware that was not built for this.
const build = "take OVMF as OvmfPkg/AmdSev/AmdSevX64.dsc of EDK II builds it (OVMF.amdsev.fd of Ubuntu and Fedora)"

// Firmware is an image of OVMF as far as the launch depends on it. It was written by others.
type Firmware struct {
	image []byte
	// reset is where processors start, but for the first one.
	reset uint32
	// hashes is where the table of hashes is; 0: nowhere.
	hashes   uint32
	sections []section
}

// section is an area of memory that the firmware wants to have at its start: addresses and bytes, whole pages.
type section struct {
	base, size uint32
	kind       uint32
}

// Kinds of sections (OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm).
const (
	sectionMemory  = 1
	sectionSecrets = 2
	sectionCPUID   = 3
	sectionSVSM    = 4
	sectionHashes  = 0x10
)

// What names the parts of OVMF's table (OvmfPkg/ResetVector).
var (
	guidFooter   = guid{0x96b582de, 0x1fb2, 0x45f7, 0xbaeaa366c55a082d}
	guidReset    = guid{0x00f771de, 0x1a7e, 0x4fcb, 0x890e68c77e2fb44e}
	guidHashArea = guid{0x7255371f, 0x3a3b, 0x4b04, 0x927b1da6efa8d454}
	guidMetadata = guid{0xdc886566, 0x984a, 0x4798, 0xa75e5585a7bf67cc}
)

const (
	// footerAt is how far from its end an image's table ends.
	footerAt = 32
	// entryBytes are those at the end of an entry: 16 bits with the size of all of it, and its GUID.
	entryBytes = 2 + guidBytes
	// metadataBytes are those before the sections: "ASEV", size, version, number of sections; each of 32 bits.
	metadataBytes = 16
	sectionBytes  = 12
	maxSections   = 64
	// maxAsked bounds what an image may ask for in all, bytes: OVMF asks for less than 1 MiB.
	maxAsked = 64 << 20
	fourGiB  = 1 << 32
)

// ParseFirmware reads an image, which it keeps: the caller does not change it.
func ParseFirmware(image []byte) (*Firmware, error) {
	if len(image) == 0 || len(image) > MaxFirmware || len(image)%pageSize != 0 {
		return nil, fmt.Errorf("it is no firmware: %d bytes are not whole pages of %d, at most %d (was it cut short?)", len(image), pageSize, MaxFirmware)
	}
	f := &Firmware{image: image}
	table, err := f.table()
	if err != nil {
		return nil, err
	}
	for _, p := range []struct {
		name  guid
		parse func(part []byte) error
	}{{guidReset, f.parseReset}, {guidMetadata, f.parseMetadata}, {guidHashArea, f.parseHashes}} {
		part, err := find(table, p.name)
		if err != nil {
			return nil, err
		}
		if err := p.parse(part); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// TakesHashes reports whether the firmware compares what it starts with hashes that were measured.
func (f *Firmware) TakesHashes() bool { return f.hashes != 0 }

// base is the image's address: it ends at 4 GiB.
func (f *Firmware) base() uint64 { return uint64(fourGiB - len(f.image)) }

// table returns the entries of OVMF's table, which are read from their end.
func (f *Firmware) table() ([]byte, error) {
	end := len(f.image) - footerAt - entryBytes
	footer := f.image[end:][:entryBytes]
	if readGUID(footer[2:]) != guidFooter {
		return nil, errors.New("it has no table of OVMF's at its end: it is other firmware, only a part (*_VARS.fd), or was cut short")
	}
	size := int(binary.LittleEndian.Uint16(footer)) - entryBytes
	if size < 0 || size > end {
		return nil, fmt.Errorf("OVMF's table is malformed: %d bytes of entries", size)
	}
	return f.image[end-size : end], nil
}

// find returns an entry's data, nil if there is none. Two of a name are refused: programs differ in which of them they take.
func find(table []byte, name guid) (data []byte, err error) {
	for len(table) > 0 {
		if len(table) < entryBytes {
			return nil, fmt.Errorf("OVMF's table is malformed: %d bytes before its first entry", len(table))
		}
		entry := table[len(table)-entryBytes:]
		size := int(binary.LittleEndian.Uint16(entry))
		if size < entryBytes || size > len(table) {
			return nil, fmt.Errorf("OVMF's table is malformed: an entry of %d bytes where there are %d", size, len(table))
		}
		if readGUID(entry[2:]) == name {
			if data != nil {
				return nil, fmt.Errorf("OVMF's table is malformed: two entries %08x", name.a)
			}
			data = table[len(table)-size : len(table)-entryBytes]
		}
		table = table[:len(table)-size]
	}
	return data, nil
}

func (f *Firmware) parseReset(part []byte) error {
	switch {
	case part == nil:
		return errors.New("it has no reset vector for SEV-ES, and so does not start with SEV-SNP: " + build)
	case len(part) != 4:
		return fmt.Errorf("the entry of the reset vector has %d bytes, not 4", len(part))
	}
	f.reset = binary.LittleEndian.Uint32(part)
	return nil
}

func (f *Firmware) parseMetadata(part []byte) error {
	switch {
	case part == nil:
		return errors.New("it has no SEV metadata, and so does not start with SEV-SNP: " + build)
	case len(part) != 4:
		return fmt.Errorf("the entry of the SEV metadata has %d bytes, not 4", len(part))
	}
	back := binary.LittleEndian.Uint32(part)
	if back < metadataBytes || uint64(back) > uint64(len(f.image)) {
		return fmt.Errorf("the SEV metadata is said to be %d bytes before the end of %d", back, len(f.image))
	}
	b := f.image[len(f.image)-int(back):]
	size, version, count := binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:])
	switch {
	case !bytes.HasPrefix(b, []byte("ASEV")):
		return fmt.Errorf("the SEV metadata begins with %q, not ASEV", b[:4])
	case version != 1:
		return fmt.Errorf("the SEV metadata is of version %d: only 1 is known", version)
	case count > maxSections:
		return fmt.Errorf("the SEV metadata has %d sections, more than %d", count, maxSections)
	case size != metadataBytes+count*sectionBytes || uint64(size) > uint64(len(b)):
		return fmt.Errorf("the SEV metadata has %d bytes for %d sections, where there are %d", size, count, len(b))
	}
	for i := range int(count) {
		d := b[metadataBytes+i*sectionBytes:]
		f.sections = append(f.sections, section{binary.LittleEndian.Uint32(d), binary.LittleEndian.Uint32(d[4:]), binary.LittleEndian.Uint32(d[8:])})
	}
	return f.checkSections()
}

// checkSections refuses what AMD's firmware or OVMF would not start with.
func (f *Firmware) checkSections() error {
	var asked uint64
	number := make(map[uint32]int)
	for i, s := range f.sections {
		end := uint64(s.base) + uint64(s.size)
		if s.base%pageSize != 0 || s.size%pageSize != 0 || s.size == 0 || end > f.base() {
			return fmt.Errorf("section %d of the SEV metadata: %#x bytes at %#x are not whole pages below the firmware", i, s.size, s.base)
		}
		switch s.kind {
		case sectionMemory, sectionSVSM:
		case sectionSecrets, sectionCPUID, sectionHashes:
			if s.size != pageSize || number[s.kind] > 0 {
				return fmt.Errorf("section %d of the SEV metadata: of kind %#x there is one, of a page", i, s.kind)
			}
		default:
			return fmt.Errorf("section %d of the SEV metadata: kind %#x is not known", i, s.kind)
		}
		number[s.kind]++
		for j, o := range f.sections[:i] {
			if uint64(s.base) < uint64(o.base)+uint64(o.size) && uint64(o.base) < end {
				return fmt.Errorf("sections %d and %d of the SEV metadata overlap at %#x", j, i, max(s.base, o.base))
			}
		}
		if asked += uint64(s.size); asked > maxAsked {
			return fmt.Errorf("the sections of the SEV metadata are of more than %d bytes", maxAsked)
		}
	}
	if number[sectionSecrets] == 0 || number[sectionCPUID] == 0 {
		return errors.New("the SEV metadata has no page for secrets, or none for CPUID: " + build)
	}
	return nil
}

// parseHashes comes after the sections: the table of hashes is in one of them.
func (f *Firmware) parseHashes(part []byte) error {
	at := -1
	for i, s := range f.sections {
		if s.kind == sectionHashes {
			at = i
		}
	}
	if at < 0 {
		return nil // what the entry says is of SEV and SEV-ES, or zero
	}
	if len(part) != 8 {
		return fmt.Errorf("there is a page for hashes of the kernel, and the entry that says where in it has %d bytes, not 8", len(part))
	}
	base, size := binary.LittleEndian.Uint32(part), binary.LittleEndian.Uint32(part[4:])
	page := f.sections[at].base
	if base < page || base-page > pageSize-hashAreaBytes || size < hashAreaBytes {
		return fmt.Errorf("the table of hashes, %d bytes at %#x, is not in its page at %#x", size, base, page)
	}
	f.hashes = base
	return nil
}
