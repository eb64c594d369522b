package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// onDisk puts the writable layer on a disk: an encrypted one in the class confidential, an ordinary one in every other.
var onDisk = []string{"--storage-opt", "type=disk", "--storage-opt", "size=64m"}

const onDiskBytes = 64 << 20

// layer is the file on the host with a container's writable layer.
func (w *world) layer(name string) string {
	return filepath.Join(w.root, "containers", w.field(name, "{{.Id}}"), "scratch.img")
}

// keeping is the command of a container that keeps a file, and says what it is: see test/probe.
func keeping(marker string) []string { return []string{"box", "probe", "keep", "/kept", marker} }

// keep starts a container that keeps a file on an encrypted disk, and one of another class that does so on an ordinary one, and
// returns when both have written it.
func (c *confidential) keep(marker string) (sealed, plain string) {
	c.t.Helper()
	flags := c.sign("keep", "owner", append(append([]string{"--calls", "logs,signal"}, onDisk...), keeping(marker)...)...)
	sealed = c.ok(c.runWith(append(append(flags, "-d"), onDisk...), keeping(marker)...)...)
	c.removeAtEnd(sealed)
	plain = c.up(append(append([]string{}, onDisk...), keeping(marker)...)...)
	c.says(sealed, "one")
	c.says(plain, "one")
	return sealed, plain
}

// says waits until a container's last word is one that begins so.
func (c *confidential) says(name, word string) {
	c.t.Helper()
	eventually(c.t, name+" to say "+word, func() bool {
		lines := strings.Split(c.ok("logs", name), "\n")
		return strings.HasPrefix(lines[len(lines)-1], word)
	})
}

// audited stops a container and returns the report of its log, which has to verify.
func (c *confidential) audited(name string) string {
	c.t.Helper()
	c.ok("stop", "-t", "1", name)
	c.ok("audit", "bundle", "-o", c.at("bundle.json"), name)
	return c.ok("audit", "verify", "--owner-key", c.at("owner.pub"), "--reference", c.at("reference.json"), c.at("bundle.json"))
}

// What a confidential container writes to its disk is not in the file of it on the host, where the same of another class is found.
func TestConfidentialDiskCanary(t *testing.T) {
	c := newConfidential(t)
	marker := "canary-" + rand.Text()
	sealed, plain := c.keep(marker)
	for _, l := range []struct {
		name  string
		found bool
	}{{plain, true}, {sealed, false}} {
		f, err := os.Open(c.layer(l.name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if took := info.Sys().(*syscall.Stat_t).Blocks * 512; info.Size() != onDiskBytes || took < 2<<20 {
			t.Errorf("%s has %d bytes, of which %d are there: nothing was written", f.Name(), info.Size(), took)
		}
		if contains(f, []byte(marker)) != l.found {
			t.Errorf("that %s has what was written is %v", f.Name(), !l.found)
		}
	}
	report := c.audited(sealed)
	if !strings.Contains(report, `disk="67108864"`) || strings.Contains(report, " tamper ") {
		t.Errorf("the log of an encrypted disk that nobody has changed:\n%s", report)
	}

	t.Run("another size", func(t *testing.T) {
		c := &confidential{c.in(t), c.dir}
		flags := []string{"--class", "confidential", "--manifest", c.at("keep.dsse"), "--owner-key", c.at("owner.pub")}
		with := func(size string) []string {
			return append([]string{"--storage-opt", "type=disk", "--storage-opt", size}, keeping(marker)...)
		}
		c.denied("containers[0].root.diskBytes: the manifest says 67108864, the request 68157440", flags, with("size=65m")...)
		c.denied("containers[0].root.diskBytes: the manifest says 67108864, the request 0", flags, keeping(marker)...)
	})
	t.Run("a disk where there is to be none", func(t *testing.T) {
		c := &confidential{c.in(t), c.dir}
		flags := c.sign("memory", "owner", "box", "true")
		c.denied("containers[0].root.diskBytes: the manifest says 0, the request 67108864", flags, append(append([]string{}, onDisk...), "box", "true")...)
	})
}

// A host that changes the disk of a running container, a bit of each block or back to what was there before, gets an error to the container and an
// event into its log. It is never other data, as in another class.
func TestConfidentialDiskTampered(t *testing.T) {
	for name, attack := range map[string]struct {
		change func(c *confidential, container string)
		plain  string // what it makes of an ordinary disk
	}{
		"a bit of each block": {plain: "other", change: func(c *confidential, container string) {
			b, err := os.ReadFile(c.layer(container))
			if err != nil {
				c.t.Fatal(err)
			}
			changed := bytes.Clone(b)
			for at := 0; at < len(b); at += 4096 {
				if block := changed[at:][:4096]; bytes.ContainsFunc(block, func(r rune) bool { return r != 0 }) {
					block[2000] ^= 1
				}
			}
			overwrite(c.t, c.layer(container), b, changed)
		}},
		"back to an older disk": {plain: "one", change: func(c *confidential, container string) {
			old, err := os.ReadFile(c.layer(container))
			if err != nil {
				c.t.Fatal(err)
			}
			c.ok("kill", "--signal", "USR1", container)
			c.says(container, "two")
			b, err := os.ReadFile(c.layer(container))
			if err != nil {
				c.t.Fatal(err)
			}
			overwrite(c.t, c.layer(container), b, old)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			c := newConfidential(t)
			sealed, plain := c.keep("marker-" + rand.Text())
			attack.change(c, plain)
			c.says(plain, attack.plain)
			attack.change(c, sealed)
			c.says(sealed, "read: ") // and why it could not
			said := strings.Split(c.ok("logs", sealed), "\n")
			for i, word := range said {
				if word == "other" || word == "one" && i > 0 {
					t.Errorf("the container was given other data: %q", said)
				}
			}
			if report := c.audited(sealed); !strings.Contains(report, " tamper ") {
				t.Errorf("the log has no change of the disk:\n%s", report)
			}
		})
	}
}

// overwrite makes one content of a file another one, in the blocks that differ.
func overwrite(t testing.TB, path string, from, to []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for at := 0; at < len(to); at += 4096 {
		if block := to[at:][:4096]; !bytes.Equal(block, from[at:][:4096]) {
			if _, err := f.WriteAt(block, int64(at)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// What a disk has on it when the machine starts has no effect, be it of the container's own last run, of another one, or a header that says that
// nothing is encrypted. A container of another class takes the disk that it is given.
func TestConfidentialDiskAtStart(t *testing.T) {
	c := newConfidential(t)
	marker := "canary-" + rand.Text()
	command := []string{"box", "sh", "-c", "cat /planted 2>/dev/null || echo empty; echo " + marker + " >/planted; sync; cat /planted; sleep 1000"}
	flags := append(c.sign("start", "owner", append(append([]string{"--calls", "logs"}, onDisk...), command...)...), onDisk...)

	// A disk of another container, with the file.
	donor := c.up(append(append([]string{}, onDisk...), command...)...)
	c.says(donor, marker)
	c.ok("stop", "-t", "1", donor)
	other, err := os.ReadFile(c.layer(donor))
	if err != nil {
		t.Fatal(err)
	}
	plant := func(t *testing.T, flags []string, disk []byte) (name string) {
		c := c.in(t)
		name = c.ok(append(append([]string{"create"}, flags...), command...)...)
		c.removeAtEnd(name)
		if err := os.WriteFile(c.layer(name), disk, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	t.Run("of another class", func(t *testing.T) {
		c := &confidential{c.in(t), c.dir}
		name := plant(t, onDisk, other)
		c.ok("start", name)
		// Otherwise, that a confidential container does not use it means nothing.
		eventually(t, "the file of the planted disk", func() bool { return c.ok("logs", name) == marker+"\n"+marker })
	})

	first := c.ok(c.runWith(append(flags, "-d"), command...)...)
	c.removeAtEnd(first)
	c.says(first, marker)
	c.ok("stop", "-t", "1", first)
	own, err := os.ReadFile(c.layer(first))
	if err != nil {
		t.Fatal(err)
	}
	for name, disk := range map[string][]byte{
		"of another container": other, "of its own last run": own, "a header without a cipher": nullCipher(t, other),
	} {
		t.Run(name, func(t *testing.T) {
			c := &confidential{c.in(t), c.dir}
			name := plant(t, flags, disk)
			c.ok("start", name)
			c.says(name, marker)
			if got := c.ok("logs", name); got != "empty\n"+marker {
				t.Errorf("it says %q", got)
			}
			after, err := os.ReadFile(c.layer(name))
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Count(after, []byte(marker)) > bytes.Count(disk, []byte(marker)) || bytes.Equal(after, disk) {
				t.Error("what was written is on the disk as it is, or nowhere")
			}
			if report := c.audited(name); !strings.Contains(report, `disk="67108864"`) || strings.Contains(report, " tamper ") {
				t.Errorf("its log:\n%s", report)
			}
		})
	}
	t.Run("a smaller one", func(t *testing.T) {
		c := &confidential{c.in(t), c.dir}
		name := plant(t, flags, make([]byte, 1<<20))
		if r := c.manis("start", name); r.code == 0 || !strings.Contains(r.stderr, "fewer than the 67108864") {
			t.Errorf("it starts: %s", r)
		}
		c.ok("audit", "bundle", "-o", c.at("bundle.json"), name)
		r := c.manis("audit", "verify", "--owner-key", c.at("owner.pub"), "--reference", c.at("reference.json"), c.at("bundle.json"))
		if r.code == 0 || !strings.Contains(r.stdout, " fail ") || !strings.Contains(r.stdout, "fewer than the 67108864") {
			t.Errorf("its log: %s", r)
		}
	})
}

// nullCipher is a disk with a LUKS header that says that what follows is not encrypted, which is this content as far as there is room.
func nullCipher(t testing.TB, content []byte) []byte {
	const payload = 2 << 20
	disk := make([]byte, len(content))
	copy(disk[payload:], content)
	copy(disk, "LUKS\xba\xbe\x00\x01")
	copy(disk[8:], "cipher_null")
	copy(disk[40:], "ecb")
	copy(disk[72:], "sha256")
	binary.BigEndian.PutUint32(disk[104:], payload/512)
	binary.BigEndian.PutUint32(disk[108:], 32)
	binary.BigEndian.PutUint32(disk[164:], 1000)
	copy(disk[168:], "6d616e69-7300-4000-8000-000000000000")
	for i := range 8 { // key slots that are not in use
		slot := disk[208+48*i:]
		binary.BigEndian.PutUint32(slot, 0xdead)
		binary.BigEndian.PutUint32(slot[40:], uint32(8+256*i))
		binary.BigEndian.PutUint32(slot[44:], 4000)
	}
	tool, err := exec.LookPath("cryptsetup")
	if err != nil {
		return disk // only the control is missing
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(tool, "luksDump", path).CombinedOutput(); err != nil || !bytes.Contains(out, []byte("cipher_null")) {
		t.Errorf("cryptsetup does not take the header for one without a cipher: %v\n%s", err, out)
	}
	return disk
}
