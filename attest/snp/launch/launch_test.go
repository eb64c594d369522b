package launch

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The digests are those of the tests of virtee's sev-snp-measure 0.0.13 (tests/test_guest.py), for the last pages of two builds of
// edk2-stable202405: AmdSev, which takes hashes, and OvmfX64, which does not. What the digests depend on of these pages, but for their
// bytes, is in the images made here; the SHA-384 of the pages themselves are in published.
var published = map[string]struct {
	file string
	page string
	like func() *image
}{
	"AmdSev": {
		"ovmf_AmdSev_suffix.bin",
		"161ace084859674ded7322ad102eb33f49457e0f7845a8f9ad0e03a59eac3e3e360f8b78345363feaeac956ebba2d894",
		amdSev,
	},
	"OvmfX64": {
		"ovmf_OvmfX64_suffix.bin",
		"3c11386e135b00d4065b771e222fda89b2fda0ab0cc364dfbbc7f0e4460c7dc970fcda61ec05a35d81aa2d521f694601",
		ovmfX64,
	},
}

// afterAmdSev is the published digest after the page of AmdSev.
const afterAmdSev = "086e2e9149ebf45abdc3445fba5b2da8270bdbb04094d7a2c37faaa4b24af3aa16aff8c374c2a55c467a50da6d466b74"

// launches are published for processors of the kind EPYC-v4. The kernel and the initial file system are empty files.
var launches = []struct {
	name     string
	build    string
	kernel   bool
	cmdline  string
	vcpus    int
	features uint64
	want     string
}{
	{"default", "AmdSev", true, "", 1, 0x21, "329c8ce0972ae52343b64d34a434a86f245dfd74f5ed7aae15d22efc78fb9683632b9b50e4e1d7fa41179ef98a7ef198"},
	{"SNP alone", "AmdSev", true, "", 1, 0x1, "ddc5224521617a536ee7ce9dd6224d1b58a8d4fda1c741f3ac99fc4bfa04ba6e9fc98646d4a07a9079397fa3852819b5"},
	{"command line", "AmdSev", true, "console=ttyS0 loglevel=7", 1, 0x21, "803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7e1e17895dfe778d0228977"},
	{"command line, SNP alone", "AmdSev", true, "console=ttyS0 loglevel=7", 1, 0x1, "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa"},
	{"four processors", "AmdSev", true, "", 4, 0x21, "4953b1fb416fa874980e8442b3706d345926d5f38879134e00813c5d7abcbe78eafe7b422907be0b4698e2414a631942"},
	{"four processors, SNP alone", "AmdSev", true, "", 4, 0x1, "5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a92441310ba6c4933de877c36e23046ad5"},
	{"no kernel", "AmdSev", false, "", 1, 0x21, "e1e1ca029dd7973ab9513295be68198472dcd4fc834bd9af9b63f6e8a1674dbf281a9278a4a2ebe0eed9f22adbcd0e2b"},
	{"no kernel, SNP alone", "AmdSev", false, "", 1, 0x1, "19358ba9a7615534a9a1e2f0dfc29384dcd4dcb7062ff9c6013b26869a5fc6ecabe033c48dd6f6db5d6d76e7c5df632d"},
	{"no hashes", "OvmfX64", false, "", 1, 0x21, "28797ae0afaba4005a81e629acebfb59e6687949d6be44007cd5506823b0dd66f146aaae26ff291eed7b493d8a64c385"},
	{"no hashes, SNP alone", "OvmfX64", false, "", 1, 0x1, "da0296de8193586a5512078dcd719eccecbd87e2b825ad4148c44f665dc87df21e5b49e21523a9ad993afdb6a30b4005"},
}

// machine is that of a published digest.
func machine(t *testing.T, f *Firmware, kernel bool, cmdline string, vcpus int, features uint64) *Machine {
	t.Helper()
	epyc, err := Signature("EPYC-v4")
	if err != nil {
		t.Fatal(err)
	}
	m := &Machine{Firmware: f, VCPUs: vcpus, Signature: epyc, Features: features}
	if kernel {
		h, err := HashCmdline(cmdline)
		if err != nil {
			t.Fatal(err)
		}
		m.Hashes = &Hashes{Kernel: sha256.Sum256(nil), Initrd: sha256.Sum256(nil), Cmdline: h}
	}
	return m
}

// TestPublished: every step but the hash of the images' bytes.
func TestPublished(t *testing.T) {
	for _, c := range launches {
		t.Run(c.name, func(t *testing.T) {
			p := published[c.build]
			f, err := ParseFirmware(p.like().bytes())
			if err != nil {
				t.Fatal(err)
			}
			var page, d Digest
			if n, err := hex.Decode(page[:], []byte(p.page)); err != nil || n != len(page) {
				t.Fatalf("%d bytes, %v", n, err)
			}
			d.update(pageNormal, f.base(), page)
			if c.build == "AmdSev" && hex.EncodeToString(d[:]) != afterAmdSev {
				t.Errorf("after the firmware: %x", d)
			}
			if d, err = machine(t, f, c.kernel, c.cmdline, c.vcpus, c.features).from(d); err != nil {
				t.Fatal(err)
			}
			if got := hex.EncodeToString(d[:]); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// TestPublishedImages is TestPublished with the images themselves, which are not part of Manis.
func TestPublishedImages(t *testing.T) {
	dir := os.Getenv("MANIS_SNP_FIXTURES")
	if dir == "" {
		t.Skip("MANIS_SNP_FIXTURES does not name the directory tests/fixtures of virtee's sev-snp-measure 0.0.13")
	}
	for _, c := range launches {
		t.Run(c.name, func(t *testing.T) {
			image, err := os.ReadFile(filepath.Join(dir, published[c.build].file))
			if err != nil {
				t.Fatal(err)
			}
			f, err := ParseFirmware(image)
			if err != nil {
				t.Fatal(err)
			}
			d, err := Measure(machine(t, f, c.kernel, c.cmdline, c.vcpus, c.features))
			if err != nil {
				t.Fatal(err)
			}
			if got := hex.EncodeToString(d[:]); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// TestEveryInputCounts: no two machines have one digest.
func TestEveryInputCounts(t *testing.T) {
	seen := make(map[Digest]string)
	for name, change := range map[string]func(i *image, m *Machine){
		"nothing":             func(*image, *Machine) {},
		"firmware's bytes":    func(i *image, _ *Machine) { i.first[0]++ },
		"reset vector":        func(i *image, _ *Machine) { i.reset += 16 },
		"table's place":       func(i *image, _ *Machine) { i.hashes += 16 },
		"section's size":      func(i *image, _ *Machine) { i.sections[0].size -= pageSize },
		"section's kind":      func(i *image, _ *Machine) { i.sections[2].kind, i.sections[3].kind = sectionCPUID, sectionSecrets },
		"kernel":              func(_ *image, m *Machine) { m.Hashes.Kernel[0]++ },
		"initial file system": func(_ *image, m *Machine) { m.Hashes.Initrd[0]++ },
		"command line":        func(_ *image, m *Machine) { m.Hashes.Cmdline[0]++ },
		"no hashes":           func(_ *image, m *Machine) { m.Hashes = nil },
		"processors":          func(_ *image, m *Machine) { m.VCPUs++ },
		"signature":           func(_ *image, m *Machine) { m.Signature++ },
		"features":            func(_ *image, m *Machine) { m.Features |= 1 << 5 },
	} {
		i := amdSev()
		m := machine(t, nil, true, "quiet", 2, 1)
		change(i, m)
		var err error
		if m.Firmware, err = ParseFirmware(i.bytes()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		d, err := Measure(m)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if other, ok := seen[d]; ok {
			t.Errorf("%s and %s: %x", name, other, d)
		}
		seen[d] = name
	}
}

func TestMeasureRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		like   func() *image
		change func(*Machine)
		want   string
	}{
		"no processor":          {amdSev, func(m *Machine) { m.VCPUs = 0 }, "1 to 1024"},
		"too many processors":   {amdSev, func(m *Machine) { m.VCPUs = MaxVCPUs + 1 }, "1 to 1024"},
		"no SNP":                {amdSev, func(m *Machine) { m.Features = 0x20 }, "bit 0"},
		"reserved features":     {amdSev, func(m *Machine) { m.Features = 1<<40 | 1<<11 | 1 }, "0x10000000800 are reserved"},
		"firmware of no hashes": {ovmfX64, func(*Machine) {}, "takes no hashes"},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := ParseFirmware(c.like().bytes())
			if err != nil {
				t.Fatal(err)
			}
			m := machine(t, f, true, "quiet", 1, 1)
			c.change(m)
			if _, err := Measure(m); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	for name, c := range map[string]string{"zero": "a\x00b", "end of line": "quiet\n", "too long": strings.Repeat("a", MaxCmdline+1)} {
		if _, err := HashCmdline(c); err == nil {
			t.Errorf("a command line with %s was taken", name)
		}
	}
}

// TestSignature: sev-snp-measure says of EPYC-v4 that it is 0x800f12; the others follow from family, model and stepping of QEMU's.
func TestSignature(t *testing.T) {
	for name, want := range map[string]uint32{
		"EPYC": 0x800f12, "EPYC-v4": 0x800f12, "EPYC-IBPB": 0x800f12, "EPYC-Rome": 0x830f10, "EPYC-Milan-v2": 0xa00f11,
		"EPYC-Genoa": 0xa10f10, "EPYC-Turin": 0xb00f00,
	} {
		if got, err := Signature(name); err != nil || got != want {
			t.Errorf("%s: %#x, %v, want %#x", name, got, err, want)
		}
	}
	for _, name := range []string{"", "host", "EPYC-v", "EPYC-v0", "EPYC-v12", "-v1", "epyc", "EPYC-Milan-v1-v2"} {
		if got, err := Signature(name); err == nil || !strings.Contains(err.Error(), "EPYC-Milan") {
			t.Errorf("%q: %#x, %v", name, got, err)
		}
	}
}
