package attest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"unicode/utf16"
)

// ReferenceFormat is the version of reference values.
const ReferenceFormat = "manis.reference/1"

// Reference are the values of a machine as it should be. All digests are SHA-256, hex.
type Reference struct {
	Format string `json:"format"`
	// MemoryBytes is the machine's: where QEMU puts the initial file system is in the kernel's header, and in its digest.
	MemoryBytes uint64 `json:"memoryBytes"`
	// Kernel is the Authenticode digest of the kernel's image as QEMU hands it to the firmware, Initrd that of the initial file system's file.
	Kernel string `json:"kernel"`
	Initrd string `json:"initrd"`
	// Cmdline is the kernel's command line; a word NAME=<number> stands for any decimal number: what a host's
	// clock is like.
	Cmdline string `json:"cmdline"`
	// FirmwareFile is the digest of the firmware's file, for people: the firmware measures itself unpacked, in
	// PCR 0. Firmware is that PCR, taken from the evidence of a boot that was trusted; empty: any firmware that
	// leaves everything else as it should be.
	FirmwareFile string `json:"firmwareFile"`
	Firmware     string `json:"firmware,omitempty"`
	// SNP and TDX are for evidence of these kinds; nil: it is refused.
	SNP *SNPReference `json:"sevSnp,omitempty"`
	TDX *TDXReference `json:"tdx,omitempty"`
}

// anyNumber stands in a reference's command line for a number.
const anyNumber = "<number>"

// hostWords are those of a command line that tell of the host's clock.
var hostWords = []string{"tsc_early_khz=", "lpj="}

// initrdWord is what OVMF adds to the command line where there is an initial file system.
const initrdWord = " initrd=initrd"

// Measure computes the reference values of a guest from its files. cmdline is as it is given to the VMM, memory the
// machine's, bytes.
func Measure(kernel, initrd, firmware, cmdline string, memory uint64) (*Reference, error) {
	r := &Reference{Format: ReferenceFormat, MemoryBytes: memory}
	digest, size, err := hashFile("the initial file system", initrd, maxInitrd)
	if err != nil {
		return nil, err
	}
	r.Initrd = hex.EncodeToString(digest)
	if digest, _, err = hashFile("the firmware", firmware, maxFirmware); err != nil {
		return nil, err
	}
	r.FirmwareFile = hex.EncodeToString(digest)
	image, err := readFile("the kernel", kernel, maxKernel)
	if err != nil {
		return nil, err
	}
	if image, err = loaded(image, uint64(size), memory); err != nil {
		return nil, fmt.Errorf("measure the kernel %s: %w", kernel, err)
	}
	if digest, err = authenticode(image); err != nil {
		return nil, fmt.Errorf("measure the kernel %s: %w", kernel, err)
	}
	r.Kernel = hex.EncodeToString(digest)
	words := strings.Split(cmdline, " ")
	for i, w := range words {
		if name := hostWord(w); name != "" {
			words[i] = name + anyNumber
		}
	}
	r.Cmdline = strings.Join(words, " ") + initrdWord
	return r, nil
}

// hostWord returns the name of a word of a command line that tells of the host's clock, with its =, and "" for others.
func hostWord(word string) string {
	for _, h := range hostWords {
		if strings.HasPrefix(word, h) {
			return h
		}
	}
	return ""
}

// Check says what is wrong with r by itself.
func (r *Reference) Check() error {
	if r.Format != ReferenceFormat {
		return fmt.Errorf("reference values: format %q is not %q", r.Format, ReferenceFormat)
	}
	for what, v := range map[string]string{"kernel": r.Kernel, "initrd": r.Initrd} {
		if b, err := hex.DecodeString(v); err != nil || len(b) != sha256.Size {
			return fmt.Errorf("reference values: %s: %q is not a SHA-256 in hex", what, v)
		}
	}
	if b, err := hex.DecodeString(r.Firmware); r.Firmware != "" && (err != nil || len(b) != sha256.Size) {
		return fmt.Errorf("reference values: firmware: %q is not a SHA-256 in hex", r.Firmware)
	}
	if r.Cmdline == "" {
		return errors.New("reference values: no command line")
	}
	return r.checkHardware()
}

// matchesCmdline reports whether a command line is the reference's, and names the first word that is not.
func (r *Reference) matchesCmdline(cmdline string) error {
	want, got := strings.Split(r.Cmdline, " "), strings.Split(cmdline, " ")
	for i := range max(len(want), len(got)) {
		switch {
		case i >= len(want):
			return fmt.Errorf("the word %.100q is too many", got[i])
		case i >= len(got):
			return fmt.Errorf("the word %.100q is missing", want[i])
		}
		if want[i] == got[i] {
			continue
		}
		name, isNumber := strings.CutSuffix(want[i], anyNumber)
		value, hasName := strings.CutPrefix(got[i], name)
		if !isNumber || !hasName || !isDecimal(value) {
			return fmt.Errorf("the word %.100q should be %.100q", got[i], want[i])
		}
	}
	return nil
}

func isDecimal(s string) bool {
	return len(s) > 0 && len(s) <= 20 && strings.Trim(s, "0123456789") == ""
}

// KernelPCR is PCR 4 of a machine that has booted the reference's kernel directly.
func (r *Reference) KernelPCR() []byte { return replay(r.kernelEvents()...) }

func (r *Reference) kernelEvents() [][]byte {
	kernel, _ := hex.DecodeString(r.Kernel)
	calling := sha256.Sum256([]byte("Calling EFI Application from Boot Option"))
	return [][]byte{kernel, calling[:], separator()}
}

// BootPCR is PCR 9 of a machine with the reference's initial file system and this command line.
func (r *Reference) BootPCR(cmdline string) []byte { return replay(r.bootEvents(cmdline)...) }

func (r *Reference) bootEvents(cmdline string) [][]byte {
	initrd, _ := hex.DecodeString(r.Initrd)
	options := sha256.Sum256(utf16le(cmdline + "\x00"))
	return [][]byte{options[:], initrd}
}

// SecureBootPCR is PCR 7 of firmware without secure boot and without any key.
func SecureBootPCR() []byte { return replay(secureBootEvents()...) }

func secureBootEvents() [][]byte {
	// EFI_GLOBAL_VARIABLE and EFI_IMAGE_SECURITY_DATABASE_GUID of the UEFI specification, as they lie in memory.
	global := []byte{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}
	database := []byte{0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f}
	var events [][]byte
	for _, v := range []struct {
		guid []byte
		name string
		data []byte
	}{{global, "SecureBoot", []byte{0}}, {global, "PK", nil}, {global, "KEK", nil}, {database, "db", nil}, {database, "dbx", nil}} {
		events = append(events, variable(v.guid, v.name, v.data))
	}
	return append(events, separator())
}

// variable is the digest of a UEFI_VARIABLE_DATA.
func variable(guid []byte, name string, data []byte) []byte {
	b := append([]byte(nil), guid...)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(name)))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(data)))
	b = append(append(b, utf16le(name)...), data...)
	d := sha256.Sum256(b)
	return d[:]
}

func separator() []byte {
	d := sha256.Sum256(make([]byte, 4))
	return d[:]
}

func utf16le(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

// Of QEMU (hw/i386/x86.c, x86_load_linux, since 2.x): where it puts the command line and the boot sector in memory, what it
// leaves free at the end of the memory below 4 GiB, and how much of a q35 machine's lies there.
const (
	qemuCmdline  = 0x20000
	qemuSetup    = 0x10000
	qemuACPIData = 0x28000
	qemuLowMost  = 0xb0000000
	qemuLow      = 0x80000000
)

// loaded is a kernel's image with what a boot loader fills into its header (Documentation/x86/boot.rst of Linux),
// as QEMU does it before the firmware measures the image.
func loaded(image []byte, initrd, memory uint64) ([]byte, error) {
	if len(image) < 0x264 || string(image[0x202:0x206]) != "HdrS" || binary.LittleEndian.Uint16(image[0x206:]) < 0x20c {
		return nil, errors.New("it is no Linux kernel of protocol 2.12 or later")
	}
	sectors := int(image[0x1f1])
	if sectors == 0 {
		sectors = 4
	}
	// The rest is counted in units of 16 bytes.
	if size := uint64(sectors+1)*512 + 16*uint64(binary.LittleEndian.Uint32(image[0x1f4:])); uint64(len(image)) < size {
		return nil, fmt.Errorf("it is cut short: its header says %d bytes, and there are %d", size, len(image))
	}
	b := bytes.Clone(image)
	low := memory
	if low <= qemuACPIData {
		return nil, fmt.Errorf("a machine with %d bytes of memory has no place for it", memory)
	}
	if low >= qemuLowMost {
		low = qemuLow
	}
	last := uint64(binary.LittleEndian.Uint32(b[0x22c:]))
	const anywhereBelow4G = 1 << 1 // XLF_CAN_BE_LOADED_ABOVE_4G
	if binary.LittleEndian.Uint16(b[0x236:])&anywhereBelow4G != 0 {
		last = 1<<32 - 1
	}
	if last >= low-qemuACPIData {
		last = low - qemuACPIData - 1
	}
	if initrd > last {
		return nil, errors.New("the initial file system does not fit into the memory")
	}
	b[0x210] = 0xb0
	b[0x211] |= 0x80
	binary.LittleEndian.PutUint16(b[0x224:], qemuCmdline-qemuSetup-0x200)
	binary.LittleEndian.PutUint32(b[0x228:], qemuCmdline)
	binary.LittleEndian.PutUint32(b[0x218:], uint32((last-initrd)&^4095))
	binary.LittleEndian.PutUint32(b[0x21c:], uint32(initrd))
	return b, nil
}

// authenticode is the digest of a PE image by which firmware measures it: of everything but the checksum, the
// entry of the certificates in the data directories, and the certificates (Microsoft, "Windows Authenticode Portable
// Executable Signature Format").
func authenticode(b []byte) ([]byte, error) {
	short := errors.New("it is no EFI program (the class confidential boots the kernel's bzImage)")
	if len(b) < 0x40 || !bytes.HasPrefix(b, []byte("MZ")) {
		return nil, short
	}
	pe := int64(binary.LittleEndian.Uint32(b[0x3c:]))
	size := int64(len(b))
	if pe+24+112 > size || string(b[pe:pe+4]) != "PE\x00\x00" {
		return nil, short
	}
	optional := pe + 24
	directories, count := optional+112, optional+108 // PE32+
	if binary.LittleEndian.Uint16(b[optional:]) != 0x20b {
		return nil, short
	}
	checksum := optional + 64
	h := sha256.New()
	h.Write(b[:checksum])
	if binary.LittleEndian.Uint32(b[count:]) <= 4 {
		h.Write(b[checksum+4:])
		return h.Sum(nil), nil
	}
	entry := directories + 4*8
	if entry+8 > size {
		return nil, short
	}
	certificates := int64(binary.LittleEndian.Uint32(b[entry+4:]))
	if certificates > size-entry-8 {
		return nil, short
	}
	h.Write(b[checksum+4 : entry])
	h.Write(b[entry+8 : size-certificates])
	return h.Sum(nil), nil
}

// Events are the digests by which a machine of these values, with this command line, manifest and owner, extends its
// PCRs, but for the firmware's own.
func (r *Reference) Events(cmdline string, manifest []byte, owner string) map[int][][]byte {
	return map[int][][]byte{
		PCRKernel:     r.kernelEvents(),
		PCRSecureBoot: secureBootEvents(),
		PCRBoot:       r.bootEvents(cmdline),
		PCRManifest:   {ManifestEvent(manifest, owner)},
	}
}
