package scratch

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// What is written is an ext4 to the tool that checks them, and takes next to nothing, whatever its size.
func TestExt4IsClean(t *testing.T) {
	tool, err := exec.LookPath("e2fsck")
	if err != nil {
		if tool = "/sbin/e2fsck"; func() error { _, err := os.Stat(tool); return err }() != nil {
			t.Skip("e2fsck is not installed (package e2fsprogs)")
		}
	}
	for name, bytes := range map[string]uint64{
		"least": MinBytes, "odd": 17 << 20, "less than a group": 100 << 20, "one group": 128 << 20,
		"a last group too small for its inodes": 129 << 20, "a last group that just does": 131 << 20,
		"two groups": 256 << 20, "one GiB": 1 << 30, "two blocks of descriptors": 20<<30 + 5<<20, "many": 300 << 30,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk")
			f, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := f.Truncate(int64(bytes)); err != nil {
				t.Fatal(err)
			}
			w := &counter{File: f}
			if err := WriteExt4(w, bytes); err != nil {
				t.Fatal(err)
			}
			if most := int64(12+bytes>>30) * blockBytes; w.written > most {
				t.Errorf("%d bytes were written, more than %d", w.written, most)
			}
			if out, err := exec.Command(tool, "-f", "-n", path).CombinedOutput(); err != nil {
				t.Errorf("e2fsck: %v\n%s", err, out)
			}
			// The positive control: one bit of a bitmap's descriptor.
			if bytes == MinBytes {
				b := make([]byte, 1)
				f.ReadAt(b, blockBytes)
				b[0] ^= 1
				f.WriteAt(b, blockBytes)
				var exit *exec.ExitError
				if err := exec.Command(tool, "-f", "-n", path).Run(); !errors.As(err, &exit) {
					t.Errorf("e2fsck does not mind a changed descriptor: %v", err)
				}
			}
		})
	}
}

type counter struct {
	*os.File
	written int64
}

func (c *counter) WriteAt(b []byte, at int64) (int, error) {
	c.written += int64(len(b))
	return c.File.WriteAt(b, at)
}

func TestSizes(t *testing.T) {
	for bytes, ok := range map[uint64]bool{
		MinBytes: true, 0: false, MinBytes - unit: false, MinBytes + 1: false, MaxBytes + unit: false, 1 << 63: false,
	} {
		if err := checkSize(bytes); (err == nil) != ok {
			t.Errorf("%d bytes: %v", bytes, err)
		}
	}
	if got := tagMemory(10 << 30); got != 41<<20 {
		t.Errorf("the tags of 10 GiB take %d bytes", got)
	}
}
