package attest_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"manis/attest"
	"manis/attest/tpm/tpmtest"
)

const firmware = "snp/launch/testdata/amdsev.fd"

// guest writes files of a guest, which nothing starts, and returns their paths.
func guest(t *testing.T) (kernel, initrd string) {
	t.Helper()
	dir := t.TempDir()
	kernel, initrd = filepath.Join(dir, "kernel"), filepath.Join(dir, "initrd")
	for path, content := range map[string]string{kernel: "kernel", initrd: "initial file system"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return kernel, initrd
}

// two is a machine of two processors of the kind EPYC-Milan.
var two = attest.SNPLaunch{Cmdline: "quiet", VCPUs: 2, VCPUSignature: 0xa00f11, GuestFeatures: 1}

// TestMeasureLaunch: the digest is what sev-snp-measure 0.0.13 computes of the same files.
func TestMeasureLaunch(t *testing.T) {
	kernel, initrd := guest(t)
	got, err := attest.MeasureLaunch(kernel, initrd, firmware, two)
	if err != nil {
		t.Fatal(err)
	}
	const want = "41a03a33bb6b18393ca0dd69d14d380b60564e464b57da93ef989696624cea92605ef41f6cce3acfa625a99c0931a23c"
	if got.Measurement != want {
		t.Errorf("got  %s\nwant %s", got.Measurement, want)
	}
	// What it writes is taken as reference values, and says the same.
	r := tpmtest.Reference()
	r.SNP = got
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "reference.json")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	back, err := attest.ReadReference(path)
	if err != nil {
		t.Fatal(err)
	}
	if back.SNP.Measurement != want || *back.SNP.Launch != *got.Launch || back.SNP.Launch.Kernel == "" || !strings.Contains(string(b), `"vcpuSignature":"0xa00f11"`) {
		t.Errorf("got %+v of %s", back.SNP.Launch, b)
	}
}

func TestMeasureLaunchRefuses(t *testing.T) {
	kernel, initrd := guest(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	image, err := os.ReadFile(firmware)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"empty": nil, "short.fd": image[:1000], "zeros.fd": make([]byte, len(image))} {
		if err := os.WriteFile(at(name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(at("huge"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(at("huge"), 8<<30); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(at("pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		kernel, initrd, firmware string
		change                   func(*attest.SNPLaunch)
		want                     string
	}{
		"no firmware":                   {firmware: at("none"), want: "measure the firmware: stat " + at("none") + ": no such file"},
		"a directory for firmware":      {firmware: dir, want: "is no ordinary file (d"},
		"huge firmware":                 {firmware: at("huge"), want: "8589934592 bytes, more than 16777216"},
		"empty firmware":                {firmware: at("empty"), want: "measure the firmware: " + at("empty") + " is empty"},
		"firmware cut short":            {firmware: at("short.fd"), want: at("short.fd") + ": it is no firmware: 1000 bytes"},
		"no OVMF":                       {firmware: at("zeros.fd"), want: at("zeros.fd") + ": it has no table of OVMF's"},
		"no kernel":                     {kernel: at("none"), want: "measure the kernel: stat"},
		"a device for a kernel":         {kernel: "/dev/zero", want: "measure the kernel: /dev/zero is no ordinary file"},
		"a pipe for a kernel":           {kernel: at("pipe"), want: "is no ordinary file (p"},
		"huge kernel":                   {kernel: at("huge"), want: "measure the kernel: " + at("huge") + " has 8589934592 bytes"},
		"empty kernel":                  {kernel: at("empty"), want: "is empty"},
		"a directory for a file system": {initrd: dir, want: "measure the initial file system: " + dir + " is no ordinary file"},
		"huge file system":              {initrd: at("huge"), want: "8589934592 bytes"},
		"any number":                    {change: func(l *attest.SNPLaunch) { l.Cmdline = "lpj=<number>" }, want: "<number>"},
		"two lines":                     {change: func(l *attest.SNPLaunch) { l.Cmdline = "a\nb" }, want: "end of line"},
		"no processors":                 {change: func(l *attest.SNPLaunch) { l.VCPUs = 0 }, want: "0 processors"},
		"a long signature":              {change: func(l *attest.SNPLaunch) { l.VCPUSignature = 1 << 32 }, want: "32 bits"},
		"features without SNP":          {change: func(l *attest.SNPLaunch) { l.GuestFeatures = 0 }, want: "bit 0"},
	} {
		t.Run(name, func(t *testing.T) {
			or := func(path, otherwise string) string {
				if path == "" {
					return otherwise
				}
				return path
			}
			l := two
			if c.change != nil {
				c.change(&l)
			}
			_, err := attest.MeasureLaunch(or(c.kernel, kernel), or(c.initrd, initrd), or(c.firmware, firmware), l)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	// The values of a TPM are of the same files.
	linux := make([]byte, 8<<10)
	copy(linux[0x202:], "HdrS\x0f\x02")
	linux[0x1f1], linux[0x1f5], linux[0x22f] = 1, 2, 0x7f // 1 KiB and 8 KiB; the initial file system below 0x7f000000
	for name, b := range map[string][]byte{"cut": linux, "whole": append(linux, make([]byte, 1<<10)...)} {
		if err := os.WriteFile(at(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		kernel, initrd, firmware string
		memory                   uint64
		want                     string
	}{
		"no kernel":      {at("none"), initrd, firmware, 1 << 29, "measure the kernel: stat"},
		"a kernel cut":   {at("cut"), initrd, firmware, 1 << 29, at("cut") + ": it is cut short: its header says 9216 bytes, and there are 8192"},
		"no memory":      {at("whole"), initrd, firmware, 1 << 10, "1024 bytes of memory"},
		"no EFI program": {at("whole"), initrd, firmware, 1 << 29, "it is no EFI program"},
		"no Linux":       {kernel, initrd, firmware, 1 << 29, "it is no Linux kernel"},
		"a pipe":         {kernel, at("pipe"), firmware, 1 << 29, "measure the initial file system: " + at("pipe") + " is no ordinary file"},
		"no firmware":    {kernel, initrd, at("none"), 1 << 29, "measure the firmware: stat"},
		"huge firmware":  {kernel, initrd, at("huge"), 1 << 29, "more than 16777216"},
		"empty firmware": {kernel, initrd, at("empty"), 1 << 29, "is empty"},
	} {
		if _, err := attest.Measure(c.kernel, c.initrd, c.firmware, "quiet", c.memory); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s, for a TPM: got %v, want %q", name, err, c.want)
		}
	}
}

// TestLaunchCmdline: what tells of the host's clock is not in it.
func TestLaunchCmdline(t *testing.T) {
	if got := attest.LaunchCmdline("quiet tsc_early_khz=2596120 lpj=10384480 tsc=reliable"); got != "quiet tsc=reliable" {
		t.Errorf("got %q", got)
	}
}

func TestReadReference(t *testing.T) {
	kernel, initrd := guest(t)
	values := tpmtest.Reference()
	var err error
	if values.SNP, err = attest.MeasureLaunch(kernel, initrd, firmware, two); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	replace := func(old, new string) string {
		if strings.Count(string(b), old) != 1 {
			t.Fatalf("%q is not once in %s", old, b)
		}
		return strings.Replace(string(b), old, new, 1)
	}
	for name, c := range map[string]struct{ content, want string }{
		"as it should be":         {string(b), ""},
		"nothing":                 {"", "EOF"},
		"half":                    {string(b[:len(b)/2]), "unexpected EOF"},
		"two":                     {string(b) + string(b), "more than one document"},
		"much":                    {string(b) + strings.Repeat(" ", 1<<20), "more than 1048576 bytes"},
		"an unknown member":       {replace(`"minTcb"`, `"minTCBs"`), `unknown field "minTCBs"`},
		"an unknown input":        {replace(`"vcpus"`, `"cpus"`), `unknown field "cpus"`},
		"half a measurement":      {replace(values.SNP.Measurement, values.SNP.Measurement[:48]), "sevSnp.measurement"},
		"half a hash":             {replace(values.SNP.Launch.FirmwareFile, "00"), "sevSnp.launch.firmwareFile"},
		"no processors":           {replace(`"vcpus":2`, `"vcpus":0`), "sevSnp.launch.vcpus"},
		"a signature in decimals": {replace(`"0xa00f11"`, `"10489617"`), "no hexadecimal number"},
		"a signature as a number": {replace(`"0xa00f11"`, `10489617`), "vcpuSignature"},
		"a long signature":        {replace(`"0xa00f11"`, `"0x100000000"`), "sevSnp.launch.vcpuSignature"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "reference.json")
			if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := attest.ReadReference(path)
			if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path)) {
				t.Errorf("got %v, want %q of %s", err, c.want, path)
			}
		})
	}
}
