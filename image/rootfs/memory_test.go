package rootfs

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// TestMain lets this binary be the process whose memory is measured.
func TestMain(m *testing.M) {
	if dir := os.Getenv("MANIS_TEST_BUILD"); dir != "" {
		if err := buildBig(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// big makes an archive of many entries without ever holding it: entries files
// with names and attributes as hard to keep as they come, and one large file.
func big(w io.Writer, entries int, large int64) error {
	out := bufio.NewWriterSize(w, 1<<20)
	head := make([]byte, 512)
	field := func(at int, format string, args ...any) { copy(head[at:], fmt.Sprintf(format, args...)) }
	block := make([]byte, 512)
	entry := func(kind byte, name string, size int64) error {
		clear(head)
		field(0, "%s", name)
		field(100, "0000644\x000000000\x000000000\x00%011o\x0014000000000\x00", size)
		head[156] = kind
		field(257, "ustar\x0000")
		sum := 8 * int(' ')
		for _, c := range head {
			sum += int(c)
		}
		field(148, "%06o\x00 ", sum)
		_, err := out.Write(head)
		return err
	}
	pad := func(p []byte) error {
		if _, err := out.Write(p); err != nil {
			return err
		}
		_, err := out.Write(make([]byte, -len(p)&511))
		return err
	}
	for i := range entries {
		record := fmt.Sprintf("SCHILY.xattr.user.number=%08d\n", i)
		record = fmt.Sprintf("%d %s", len(record)+3, record)
		name := fmt.Sprintf("d%d/directory-%d/a-file-of-the-image-%d", i%7, i/1000, i*7919%entries)
		if err := entry('x', "pax", int64(len(record))); err != nil {
			return err
		}
		if err := pad([]byte(record)); err != nil {
			return err
		}
		copy(block, name)
		if err := entry('0', name, 100); err != nil {
			return err
		}
		if err := pad(block[:100]); err != nil {
			return err
		}
	}
	if err := entry('0', "large", large); err != nil {
		return err
	}
	chunk := make([]byte, 1<<20)
	for i := int64(0); i < large>>20; i++ {
		for j := range chunk {
			chunk[j] = byte(i + int64(j)*j64)
		}
		if _, err := out.Write(chunk); err != nil {
			return err
		}
	}
	if _, err := out.Write(make([]byte, 1024)); err != nil {
		return err
	}
	return out.Flush()
}

const j64 = 31

func buildBig(dir string) error {
	entries, err := strconv.Atoi(os.Getenv("MANIS_TEST_ENTRIES"))
	if err != nil {
		return err
	}
	large := int64(300 << 20)
	sum := sha256.New()
	if err := big(sum, entries, large); err != nil {
		return err
	}
	l := Layer{DiffID: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum.Sum(nil))}, Open: func() (io.ReadCloser, error) {
		r, w := io.Pipe()
		go func() { w.CloseWithError(big(w, entries, large)) }() // ends with its reader
		return r, nil
	}}
	f, err := os.OpenFile(filepath.Join(dir, "image"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	img, err := Build(context.Background(), f, []Layer{l}, Options{TempDir: dir})
	if err != nil {
		return err
	}
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return err
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	fmt.Println(u.Maxrss>>10, img.Inodes, m.HeapSys>>20, m.NumGC)
	return nil
}

// TestMemoryIsBounded converts an image with far more entries and content than
// the memory it may take, in a process of its own.
func TestMemoryIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("converts a large image")
	}
	entries := 400_000
	if s := os.Getenv("MANIS_TEST_ENTRIES"); s != "" { // by hand: millions
		entries, _ = strconv.Atoi(s)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "MANIS_TEST_BUILD="+t.TempDir(), fmt.Sprintf("MANIS_TEST_ENTRIES=%d", entries))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	fields := strings.Fields(string(out))
	rss, err := strconv.Atoi(fields[0])
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("%d entries: %d MiB at most, %s inodes, heap %s MiB, %s collections", entries, rss, fields[1], fields[2], fields[3])
	if rss >= 200 {
		t.Errorf("took %d MiB of memory, promised are less than 200", rss)
	}
}
