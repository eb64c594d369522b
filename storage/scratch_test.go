package storage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

func needMkfs(t testing.TB) {
	t.Helper()
	if _, err := findMkfs(); err != nil {
		t.Skip(err)
	}
}

// fsck fails the test unless the disk holds a clean ext4.
func fsck(t testing.TB, disk string) {
	t.Helper()
	tool, err := exec.LookPath("e2fsck")
	if err != nil {
		tool = "/sbin/e2fsck"
	}
	if out, err := exec.Command(tool, "-fn", disk).CombinedOutput(); err != nil {
		t.Errorf("e2fsck %s: %v\n%s", disk, err, out)
	}
}

func allocated(t testing.TB, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func TestScratchDisk(t *testing.T) {
	needMkfs(t)
	for _, size := range []int64{MinScratchSize, 100<<20 + 1, 1 << 30, DefaultScratchSize, 64 << 30, 4 << 40} {
		t.Run(fmt.Sprint(size>>20, " MiB"), func(t *testing.T) {
			dir := t.TempDir()
			disk := filepath.Join(dir, "disk")
			err := NewBlanks(filepath.Join(dir, "cache")).Clone(t.Context(), size, disk)
			if errors.Is(err, syscall.EFBIG) {
				t.Skip("the file system of the temporary folder has no files of this size")
			}
			if err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(disk)
			if err != nil || info.Size() < size || info.Size() >= size+scratchStep {
				t.Fatalf("disk of %d bytes: %v, %v", size, info.Size(), err)
			}
			if info.Mode().Perm() != 0o600 {
				t.Errorf("mode %v, want 0600", info.Mode())
			}
			if size <= DefaultScratchSize {
				fsck(t, disk)
				if got := allocated(t, disk); got > 1<<20 {
					t.Errorf("an empty disk takes %d bytes", got)
				}
			}
			if _, err := os.Stat(disk + ".partial"); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("left over: %v", err)
			}
		})
	}
}

func TestScratchSizeRefused(t *testing.T) {
	b := NewBlanks(t.TempDir())
	for _, size := range []int64{-1, 0, MinScratchSize - 1, MaxScratchSize + 1} {
		if err := b.Clone(t.Context(), size, filepath.Join(t.TempDir(), "disk")); err == nil {
			t.Errorf("size %d: no error", size)
		}
	}
}

func TestBlankIsReproducible(t *testing.T) {
	needMkfs(t)
	var sums [2][32]byte
	for i := range sums {
		dir := t.TempDir()
		disk := filepath.Join(dir, "disk")
		if err := NewBlanks(filepath.Join(dir, "cache")).Clone(t.Context(), 64<<20, disk); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(disk)
		if err != nil {
			t.Fatal(err)
		}
		sums[i] = sha256.Sum256(content)
	}
	if sums[0] != sums[1] {
		t.Error("two blanks of one size differ")
	}
}

func TestCloneNeverReplaces(t *testing.T) {
	needMkfs(t)
	dir := t.TempDir()
	b := NewBlanks(filepath.Join(dir, "cache"))
	disk := filepath.Join(dir, "disk")
	if err := os.WriteFile(disk, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(disk+".partial", []byte("left over"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.Clone(t.Context(), MinScratchSize, disk); !errors.Is(err, os.ErrExist) {
		t.Errorf("onto an existing file: %v", err)
	}
	if got, _ := os.ReadFile(disk); string(got) != "precious" {
		t.Error("the existing file was changed")
	}
}

func TestDamagedBlankIsMadeAgain(t *testing.T) {
	needMkfs(t)
	dir := t.TempDir()
	cache := filepath.Join(dir, "cache")
	b := NewBlanks(cache)
	if err := b.Clone(t.Context(), MinScratchSize, filepath.Join(dir, "1")); err != nil {
		t.Fatal(err)
	}
	blanks, _ := filepath.Glob(filepath.Join(cache, "ext4-*"))
	if len(blanks) != 1 {
		t.Fatalf("blanks %v", blanks)
	}
	for name, damage := range map[string]func() error{
		"truncated": func() error { return os.Truncate(blanks[0], 4096) },
		"emptied": func() error {
			os.Remove(blanks[0])
			return os.WriteFile(blanks[0], make([]byte, MinScratchSize), 0o600)
		},
		"removed": func() error { return os.RemoveAll(cache) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		disk := filepath.Join(dir, name)
		if err := b.Clone(t.Context(), MinScratchSize, disk); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		fsck(t, disk)
	}
}

func TestNoMkfs(t *testing.T) {
	defer func(dirs []string) { sbin = dirs }(sbin)
	sbin = nil
	t.Setenv("PATH", t.TempDir())
	if err := NewBlanks(t.TempDir()).Clone(t.Context(), MinScratchSize, filepath.Join(t.TempDir(), "disk")); !errors.Is(err, ErrNoMkfs) {
		t.Errorf("error %v, want ErrNoMkfs", err)
	}
}

func TestMkfsThatFails(t *testing.T) {
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "mkfs.ext4"), []byte("#!/bin/sh\necho no good >&2\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	cache := t.TempDir()
	err := NewBlanks(cache).Clone(t.Context(), MinScratchSize, filepath.Join(t.TempDir(), "disk"))
	if err == nil || !bytes.Contains([]byte(err.Error()), []byte("no good")) {
		t.Errorf("error %v, want what mkfs said", err)
	}
	if left, _ := filepath.Glob(filepath.Join(cache, "*")); len(left) != 1 { // the lock
		t.Errorf("left over: %v", left)
	}
}

func TestManyClonesAtOnce(t *testing.T) {
	needMkfs(t)
	dir := t.TempDir()
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			b := NewBlanks(filepath.Join(dir, "cache"))
			if err := b.Clone(t.Context(), MinScratchSize, filepath.Join(dir, fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	first, err := os.ReadFile(filepath.Join(dir, "0"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 16 {
		if other, _ := os.ReadFile(filepath.Join(dir, fmt.Sprint(i))); !bytes.Equal(first, other) {
			t.Errorf("disk %d differs", i)
		}
	}
}

func TestCopySparse(t *testing.T) {
	dir := t.TempDir()
	src, err := os.Create(filepath.Join(dir, "src"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	const size = 64 << 20
	src.Truncate(size)
	for _, at := range []int64{0, 30<<20 + 17, size - 5} {
		src.WriteAt([]byte("data!"), at)
	}
	dst, err := os.Create(filepath.Join(dir, "dst"))
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if err := copySparse(t.Context(), dst, src); err != nil {
		t.Fatal(err)
	}
	sum := func(f *os.File) (s [32]byte) {
		h := sha256.New()
		f.Seek(0, io.SeekStart)
		io.Copy(h, f)
		return [32]byte(h.Sum(nil))
	}
	if sum(src) != sum(dst) {
		t.Error("the copy differs")
	}
	if got := allocated(t, dst.Name()); got > 1<<20 {
		t.Errorf("the copy takes %d bytes", got)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := copySparse(ended, dst, src); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that ended: %v", err)
	}
}

func BenchmarkClone(b *testing.B) {
	needMkfs(b)
	dir := b.TempDir()
	blanks := NewBlanks(filepath.Join(dir, "cache"))
	disk := filepath.Join(dir, "disk")
	if err := blanks.Clone(b.Context(), DefaultScratchSize, disk); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		os.Remove(disk)
		if err := blanks.Clone(b.Context(), DefaultScratchSize, disk); err != nil {
			b.Fatal(err)
		}
	}
}
