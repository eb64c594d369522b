package e2e

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"manis/image/verity"
)

// TestCanary looks for a secret that a broker has released to a running container. The host's files and Manis' own processes do not have
// it: they only carry it, sealed. The machine's memory does, as there is no hardware that would keep it from root on the host; a test that
// did not find it there would not find it anywhere.
func TestCanary(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root reads the memory of others")
	}
	c := newConfidential(t)
	canary := []byte("canary-" + rand.Text())
	if err := os.WriteFile(c.at("greeting"), canary, 0o600); err != nil {
		t.Fatal(err)
	}
	url := c.serve("--test-secret", "greeting="+c.at("greeting"))
	command := []string{"box", "sh", "-c", "read x </run/greeting; cp /run/greeting /copy; echo up; sleep 1000"}
	flags := c.sign("canary", "owner", append([]string{"--calls", "logs", "--secret", "greeting=/run/greeting", "--broker-url", url, "--broker-key", c.at("broker.pub")}, command...)...)
	c.ok(c.runWith(append(flags, "-d", "--name", "canary"), command...)...)
	c.removeAtEnd("canary")
	eventually(t, "the container to have read its secret", func() bool { return c.ok("logs", "canary") == "up" })

	monitor, qemu := c.vm("canary")
	for pid, cmdline := range c.processes() {
		if strings.Contains(cmdline, "broker.key") {
			continue // the owner's, and elsewhere
		}
		has := remembers(t, pid, canary)
		switch {
		case pid == qemu && !has:
			t.Error("QEMU's memory does not have the secret: this test cannot find it")
		case pid != qemu && has:
			t.Errorf("process %d has the secret: %s", pid, clip(cmdline))
		}
	}
	if remembers(t, monitor, canary) {
		t.Error("the monitor has the secret")
	}
	c.ok("stop", "-t", "1", "canary")
	for _, dir := range []string{c.root, c.run, c.tmp} {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			if contains(f, canary) {
				t.Errorf("%s has the secret", path)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// remembers reports whether these bytes are in a process's memory.
func remembers(t *testing.T, pid int, what []byte) bool {
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		var from, to int64
		var access string
		if n, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &access); n != 3 || err != nil {
			continue // the kernel's own, at the end of the addresses
		}
		if strings.HasPrefix(access, "r") && contains(io.NewSectionReader(memory, from, to-from), what) {
			return true
		}
	}
	return false
}

// contains reports whether these bytes are in what can be read.
func contains(r io.Reader, what []byte) bool {
	chunk := make([]byte, 1<<20)
	kept := 0
	for {
		n, err := io.ReadFull(r, chunk[kept:])
		if bytes.Contains(chunk[:kept+n], what) {
			return true
		}
		if err != nil {
			return false
		}
		kept = copy(chunk, chunk[len(chunk)-len(what):])
	}
}

// TestConfidentialImage changes the image on the host under the manifest's root hash: one bit of the data, one of the hash tree, and data
// with a tree that is right for it. The guest, which compares what it reads with the hash, refuses each, and its log says so.
func TestConfidentialImage(t *testing.T) {
	c := newConfidential(t)
	flags := c.sign("image", "owner", "--calls", "logs", "box", "echo", "intact")
	run := c.runWith(append(flags, "--rm", "--audit-bundle", c.at("bundle.json")), "box", "echo", "intact")
	if out := c.ok(run...); out != "intact" {
		t.Fatalf("the container says %q", out)
	}
	images, err := filepath.Glob(filepath.Join(c.root, "images", "rootfs", "*", "image.erofs"))
	if err != nil || len(images) != 1 {
		t.Fatalf("converted images: %q, %v", images, err)
	}
	image := images[0]
	intact, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	var manifest struct {
		Containers []struct {
			Root struct {
				HashOffset int    `json:"hashOffset"`
				Salt       string `json:"salt"`
			} `json:"root"`
		} `json:"containers"`
	}
	if text, err := os.ReadFile(c.at("image.json")); err != nil || json.Unmarshal(text, &manifest) != nil || len(manifest.Containers) != 1 {
		t.Fatalf("the manifest cannot be read: %v", err)
	}
	tree := manifest.Containers[0].Root.HashOffset
	if tree <= 2048 || tree+4096 > len(intact) {
		t.Fatalf("the hash tree is at %d of %d bytes", tree, len(intact))
	}
	if err := os.Chmod(image, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(b []byte){
		// In the superblock, which begins at byte 1024: it is read first.
		"one bit of the data": func(b []byte) { b[1024+100] ^= 1 },
		// The first block of the tree is its root, whose digest the manifest has.
		"one bit of the hash tree":          func(b []byte) { b[tree+5] ^= 1 },
		"other data with a tree of its own": nil,
	} {
		t.Run(name, func(t *testing.T) {
			b := bytes.Clone(intact)
			if change != nil {
				change(b)
			} else {
				b[1024+100] ^= 1
			}
			if err := os.WriteFile(image, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if change == nil {
				rehash(t, image, int64(tree), manifest.Containers[0].Root.Salt)
			}
			r := c.in(t).manis(run...)
			if r.code == 0 || strings.Contains(r.stdout, "intact") || !strings.Contains(r.stderr, "root hash") {
				t.Errorf("it ran: %s", r)
			}
			report := c.in(t).manis("audit", "verify", "--owner-key", c.at("owner.pub"), "--reference", c.at("reference.json"), c.at("bundle.json"))
			if report.code == 0 || !strings.Contains(report.stdout, " fail ") || !strings.Contains(report.stdout, "root hash") {
				t.Errorf("its log: %s", report)
			}
		})
	}
}

// rehash makes the tree of an image's file one of what the file holds now.
func rehash(t *testing.T, image string, data int64, salt string) {
	raw, err := hex.DecodeString(salt)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := verity.Append(t.Context(), f, data, raw, 1); err != nil {
		t.Fatal(err)
	}
}
