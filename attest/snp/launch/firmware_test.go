package launch

import (
	"bytes"
	"encoding/binary"
	"os"
	"slices"
	"strings"
	"testing"
)

// image is firmware like OVMF, of as few pages as it takes: what AMD's firmware and QEMU look at, and nothing that runs.
type image struct {
	first    [16]byte // of its bytes
	reset    uint32
	hashes   uint32
	area     uint32 // bytes that are said to be at hashes
	sections []section
	// pages of the image, 1 if 0.
	pages int
	// change is done to the parts before they are put together: entries from the first to the last, and the metadata.
	change func(entries map[guid][]byte, metadata *[]byte)
	// again names an entry that is there twice, without is one that is not there.
	again, without guid
}

// amdSev asks for what OvmfPkg/AmdSev/AmdSevX64.dsc of edk2-stable202405 asks for.
func amdSev() *image {
	return &image{reset: 0x80b004, hashes: 0x810c00, area: 0x400, sections: []section{
		{0x800000, 0x9000, sectionMemory}, {0x80a000, 0x3000, sectionMemory}, {0x80d000, 0x1000, sectionSecrets}, {0x80e000, 0x1000, sectionCPUID},
		{0x80f000, 0x1000, sectionSVSM}, {0x810000, 0x1000, sectionHashes}, {0x811000, 0xf000, sectionMemory},
	}}
}

// ovmfX64 asks for what OvmfPkg/OvmfPkgX64.dsc of edk2-stable202405 asks for.
func ovmfX64() *image {
	return &image{reset: 0x80b004, sections: []section{
		{0x800000, 0x9000, sectionMemory}, {0x80a000, 0x3000, sectionMemory}, {0x80d000, 0x1000, sectionSecrets}, {0x80e000, 0x1000, sectionCPUID},
		{0x80f000, 0x1000, sectionSVSM}, {0x810000, 0x10000, sectionMemory},
	}}
}

func (i *image) bytes() []byte {
	le := binary.LittleEndian
	metadata := []byte("ASEV")
	metadata = le.AppendUint32(metadata, uint32(metadataBytes+len(i.sections)*sectionBytes))
	metadata = le.AppendUint32(metadata, 1)
	metadata = le.AppendUint32(metadata, uint32(len(i.sections)))
	for _, s := range i.sections {
		metadata = le.AppendUint32(le.AppendUint32(le.AppendUint32(metadata, s.base), s.size), s.kind)
	}
	const metadataAt = 0x800 // before the end
	order := []guid{{0xe47a6535, 0x984a, 0x4798, 0x865e4685a7bf8ec2}, guidMetadata, guidHashArea, guidReset}
	entries := map[guid][]byte{
		order[0]:     {0xd0, 9, 0, 0}, // of TDX
		guidMetadata: le.AppendUint32(nil, metadataAt),
		guidHashArea: le.AppendUint32(le.AppendUint32(nil, i.hashes), i.area),
		guidReset:    le.AppendUint32(nil, i.reset),
	}
	if i.change != nil {
		i.change(entries, &metadata)
	}
	var table []byte
	for _, name := range order {
		if name == i.without {
			continue
		}
		data := entries[name]
		entry := name.append(le.AppendUint16(slices.Clone(data), uint16(len(data)+entryBytes)))
		table = append(table, entry...)
		if name == i.again {
			table = append(table, entry...)
		}
	}
	table = guidFooter.append(le.AppendUint16(table, uint16(len(table)+entryBytes)))
	b := make([]byte, pageSize*max(i.pages, 1))
	copy(b, i.first[:])
	copy(b[len(b)-metadataAt:], metadata)
	copy(b[len(b)-footerAt-len(table):], table)
	return b
}

func TestParseFirmwareRefuses(t *testing.T) {
	le := binary.LittleEndian
	word := func(b []byte, at int, v uint32) { le.PutUint32(b[at:], v) }
	for name, c := range map[string]struct {
		image  func(*image)
		change func([]byte) []byte
		want   string
	}{
		"as it should be":      {nil, nil, ""},
		"larger":               {func(i *image) { i.pages = 512 }, nil, ""},
		"empty":                {nil, func([]byte) []byte { return nil }, "0 bytes"},
		"cut short":            {nil, func(b []byte) []byte { return b[:len(b)-1] }, "cut short"},
		"without its end":      {func(i *image) { i.pages = 2 }, func(b []byte) []byte { return b[:pageSize] }, "cut short"},
		"huge":                 {func(i *image) { i.pages = MaxFirmware/pageSize + 1 }, nil, "at most"},
		"zeros":                {nil, func(b []byte) []byte { return make([]byte, len(b)) }, "no table of OVMF's"},
		"table before it":      {nil, func(b []byte) []byte { le.PutUint16(b[pageSize-50:], 0xffff); return b }, "malformed: 65517 bytes"},
		"no table":             {nil, func(b []byte) []byte { le.PutUint16(b[pageSize-50:], 17); return b }, "malformed: -1 bytes"},
		"entry of nothing":     {nil, func(b []byte) []byte { le.PutUint16(b[pageSize-68:], 0); return b }, "an entry of 0 bytes"},
		"entry before it":      {nil, func(b []byte) []byte { le.PutUint16(b[pageSize-68:], 4000); return b }, "an entry of 4000 bytes"},
		"half an entry":        {nil, func(b []byte) []byte { le.PutUint16(b[pageSize-50:], le.Uint16(b[pageSize-50:])-10); return b }, "malformed"},
		"no reset vector":      {func(i *image) { i.without = guidReset }, nil, "no reset vector"},
		"two reset vectors":    {func(i *image) { i.again = guidReset }, nil, "two entries 00f771de"},
		"long reset vector":    {func(i *image) { i.change = func(e map[guid][]byte, _ *[]byte) { e[guidReset] = make([]byte, 5) } }, nil, "5 bytes, not 4"},
		"no metadata":          {func(i *image) { i.without = guidMetadata }, nil, "no SEV metadata"},
		"two metadata":         {func(i *image) { i.again = guidMetadata }, nil, "two entries dc886566"},
		"short metadata entry": {func(i *image) { i.change = func(e map[guid][]byte, _ *[]byte) { e[guidMetadata] = nil } }, nil, "0 bytes, not 4"},
		"metadata outside":     {func(i *image) { i.change = func(e map[guid][]byte, _ *[]byte) { word(e[guidMetadata], 0, pageSize+1) } }, nil, "4097 bytes before the end"},
		"metadata at the end":  {func(i *image) { i.change = func(e map[guid][]byte, _ *[]byte) { word(e[guidMetadata], 0, 15) } }, nil, "15 bytes before the end"},
		"metadata elsewhere":   {func(i *image) { i.change = func(e map[guid][]byte, _ *[]byte) { word(e[guidMetadata], 0, 0x900) } }, nil, "not ASEV"},
		"another version":      {func(i *image) { i.change = func(_ map[guid][]byte, m *[]byte) { word(*m, 8, 2) } }, nil, "version 2"},
		"many sections":        {func(i *image) { i.change = func(_ map[guid][]byte, m *[]byte) { word(*m, 12, 1<<30) } }, nil, "1073741824 sections, more than 64"},
		"another length":       {func(i *image) { i.change = func(_ map[guid][]byte, m *[]byte) { word(*m, 4, 17) } }, nil, "17 bytes for 7 sections"},
		"unaligned":            {func(i *image) { i.sections[0].base++ }, nil, "section 0"},
		"of no pages":          {func(i *image) { i.sections[0].size = 0 }, nil, "section 0"},
		"half a page":          {func(i *image) { i.sections[0].size = 0x800 }, nil, "section 0"},
		"over the end":         {func(i *image) { i.sections[0].base = 0xfffff000; i.sections[0].size = 0xfffff000 }, nil, "section 0"},
		"over the firmware":    {func(i *image) { i.sections[0].base = 0xfffff000; i.sections[0].size = 0x1000 }, nil, "below the firmware"},
		"overlapping":          {func(i *image) { i.sections[0].size = 0xb000 }, nil, "sections 0 and 1 of the SEV metadata overlap at 0x80a000"},
		"unknown kind":         {func(i *image) { i.sections[0].kind = 7 }, nil, "kind 0x7 is not known"},
		"two pages of secrets": {func(i *image) { i.sections[2].kind, i.sections[3].kind = sectionSecrets, sectionSecrets }, nil, "section 3"},
		"long secrets":         {func(i *image) { i.sections[1].kind, i.sections[2].kind = sectionSecrets, sectionMemory }, nil, "of a page"},
		"no secrets":           {func(i *image) { i.sections[2].kind = sectionMemory }, nil, "no page for secrets"},
		"no CPUID":             {func(i *image) { i.sections[3].kind = sectionMemory }, nil, "none for CPUID"},
		"much":                 {func(i *image) { i.sections[6].size = 0x8000000 }, nil, "more than 67108864 bytes"},
		"no table of hashes":   {func(i *image) { i.without = guidHashArea }, nil, "0 bytes, not 8"},
		"table at zero":        {func(i *image) { i.hashes = 0 }, nil, "not in its page"},
		"table before page":    {func(i *image) { i.hashes = 0x80fff0 }, nil, "not in its page"},
		"table over the page":  {func(i *image) { i.hashes = 0x810f60 }, nil, "not in its page"},
		"small table":          {func(i *image) { i.area = hashAreaBytes - 1 }, nil, "not in its page"},
	} {
		t.Run(name, func(t *testing.T) {
			i := amdSev()
			if c.image != nil {
				c.image(i)
			}
			b := i.bytes()
			if c.change != nil {
				b = c.change(b)
			}
			f, err := ParseFirmware(b)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if err == nil && (!f.TakesHashes() || f.reset != i.reset || !slices.Equal(f.sections, i.sections) || f.base()+uint64(len(b)) != fourGiB) {
				t.Errorf("got %+v", f)
			}
		})
	}
}

// TestDistribution: what Debian has in its package ovmf is said to be the wrong build, as what it is wrong with.
func TestDistribution(t *testing.T) {
	found := false
	for _, file := range []string{"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/ovmf/OVMF.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"} {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		found = true
		f, err := ParseFirmware(b)
		if err == nil {
			_, err = Measure(machine(t, f, true, "quiet", 1, 1))
		}
		if err == nil {
			t.Logf("%s starts with SEV-SNP and takes hashes", file)
		} else if !strings.Contains(err.Error(), "AmdSevX64.dsc") && !strings.Contains(err.Error(), "_VARS.fd") {
			t.Errorf("%s: %v", file, err)
		}
	}
	if !found {
		t.Skip("OVMF is not installed: apt-get install ovmf")
	}
}

// FuzzFirmware: whatever is taken for firmware can be measured, or is said not to take hashes.
func FuzzFirmware(f *testing.F) {
	f.Add(amdSev().bytes())
	f.Add(ovmfX64().bytes())
	f.Add((&image{without: guidMetadata}).bytes())
	f.Add((&image{again: guidReset, sections: amdSev().sections[2:4]}).bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		firmware, err := ParseFirmware(b)
		if err != nil {
			return
		}
		m := &Machine{Firmware: firmware, Hashes: new(Hashes), VCPUs: 2, Features: 1}
		if _, err := Measure(m); (err == nil) != firmware.TakesHashes() {
			t.Errorf("with hashes: %v", err)
		}
		m.Hashes = nil
		if _, err := Measure(m); err != nil {
			t.Errorf("without hashes: %v", err)
		}
		if !bytes.Equal(b, before) {
			t.Error("the image was changed")
		}
	})
}

// TestImage: the file that tests elsewhere take for firmware is amdSev.
func TestImage(t *testing.T) {
	b, err := os.ReadFile("testdata/amdsev.fd")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, amdSev().bytes()) {
		t.Error("testdata/amdsev.fd is not what amdSev makes")
	}
}
