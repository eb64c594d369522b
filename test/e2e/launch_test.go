package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"manis/attest"
)

// TestMeasureLaunch: trust measure writes the launch digest of the guest that is installed into the reference values that a broker reads. Nothing
// here runs with SEV-SNP.
func TestMeasureLaunch(t *testing.T) {
	c := newConfidential(t)
	firmware, err := filepath.Abs("../../attest/snp/launch/testdata/amdsev.fd")
	if err != nil {
		t.Fatal(err)
	}
	measure := func(args ...string) *attest.Reference {
		t.Helper()
		all := append([]string{"trust", "measure", "-o", c.at("reference.json"), "--snp", "--ovmf", firmware}, args...)
		c.ok(all...)
		r, err := attest.ReadReference(c.at("reference.json"))
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	two := measure("--vcpus", "2", "--vcpu-type", "EPYC-Milan", "--min-tcb", "4,0,24,219")
	l := two.SNP.Launch
	if l.VCPUs != 2 || l.VCPUSignature != 0xa00f11 || l.GuestFeatures != 1 || l.Initrd != two.Initrd || l.Cmdline == "" || strings.Contains(l.Cmdline, "lpj=") {
		t.Errorf("got %+v", l)
	}
	if want := (attest.SNPVersion{BootLoader: 4, SNP: 24, Microcode: 219}); two.SNP.MinTCB != want {
		t.Errorf("got %+v", two.SNP.MinTCB)
	}
	if again := measure("--vcpus", "2", "--vcpu-sig", "0xa00f11", "--append", l.Cmdline); again.SNP.Measurement != two.SNP.Measurement {
		t.Errorf("by the signature and the command line: %s, not %s", again.SNP.Measurement, two.SNP.Measurement)
	}
	for _, other := range [][]string{
		{"--vcpus", "1", "--vcpu-type", "EPYC-Milan"},
		{"--vcpus", "2", "--vcpu-type", "EPYC-Genoa"},
		{"--vcpus", "2", "--vcpu-type", "EPYC-Milan", "--guest-features", "0x21"},
		{"--vcpus", "2", "--vcpu-type", "EPYC-Milan", "--append", "quiet"},
	} {
		if r := measure(other...); r.SNP.Measurement == two.SNP.Measurement {
			t.Errorf("%v: the same digest", other)
		}
	}
	c.serve() // which reads them

	b, err := os.ReadFile(c.at("reference.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.at("other.json"), []byte(strings.Replace(string(b), "guestFeatures", "guestFeature", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	c.fails(1, `other.json: json: unknown field "guestFeature"`, "trust", "broker", "--listen", "127.0.0.1:0", "--key", c.at("broker.key"),
		"--owner", c.at("owner.pub"), "--log", c.at("other.log"), "--reference", c.at("other.json"))

	snp := func(path string) []string {
		return []string{"trust", "measure", "--snp", "--vcpus", "1", "--vcpu-type", "EPYC-v4", "--ovmf", path}
	}
	image, err := os.ReadFile(firmware)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.at("cut.fd"), image[:100], 0o600); err != nil {
		t.Fatal(err)
	}
	c.fails(1, "was it cut short", snp(c.at("cut.fd"))...)
	c.fails(1, "no such file", snp(c.at("none.fd"))...)
	c.fails(1, "no ordinary file", snp(c.dir)...)
	c.fails(1, "no ordinary file", snp("/dev/zero")...)

	// A guest that was not copied whole.
	guest := c.at("guest")
	if err := os.CopyFS(guest, os.DirFS(guestDir())); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(guest, "bzImage"), 1<<20); err != nil {
		t.Fatal(err)
	}
	c.setenv("MANIS_GUEST", guest)
	c.fails(1, "bzImage: it is cut short", "trust", "measure")
	if err := os.Truncate(filepath.Join(guest, "initramfs-confidential"), 0); err != nil {
		t.Fatal(err)
	}
	c.fails(1, "initramfs-confidential is empty", "trust", "measure")
}
