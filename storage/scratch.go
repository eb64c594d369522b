package storage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// Sizes of scratch disks in bytes. They are rounded up to whole MinScratchStep, so that odd sizes do not each
// fill the cache with a blank of their own.
const (
	DefaultScratchSize = 10 << 30
	MinScratchSize     = 16 << 20
	MaxScratchSize     = 16<<40 - 1<<30 // ext4 with 32-bit block numbers
	scratchStep        = 1 << 20
)

// ErrNoMkfs is returned when the host has no mkfs.ext4.
var ErrNoMkfs = errors.New("mkfs.ext4 not found: install the package e2fsprogs")

// Blanks makes scratch disks: sparse raw files with an empty ext4, for the writable layer of a container. An
// empty file system of each size is made once and kept; a disk is a copy of the few blocks of it that are not
// empty. The bytes depend on nothing but the size and the version of e2fsprogs.
type Blanks struct{ dir string }

// NewBlanks keeps blanks in dir, which is made when first needed and may be removed at any time.
func NewBlanks(dir string) *Blanks { return &Blanks{dir: dir} }

func checkScratchSize(size int64) error {
	if size < MinScratchSize || size > MaxScratchSize {
		return fmt.Errorf("a disk of %d bytes: want %d MiB to %d TiB", size, MinScratchSize>>20, int64(MaxScratchSize)>>40)
	}
	return nil
}

// Clone makes a scratch disk of size bytes at dst, readable by its owner only. It fails if dst exists; a file
// that an interrupted Clone left at dst+".partial" is replaced. The disk is not synced: it is worth nothing
// before its container has run.
func (b *Blanks) Clone(ctx context.Context, size int64, dst string) error {
	if err := checkScratchSize(size); err != nil {
		return err
	}
	size = (size + scratchStep - 1) / scratchStep * scratchStep
	blank, err := b.open(ctx, size)
	if err != nil {
		return fmt.Errorf("make a blank disk of %d MiB: %w", size>>20, err)
	}
	defer blank.Close()
	if err := cloneFile(ctx, blank, dst); err != nil {
		return fmt.Errorf("make scratch disk %s: %w", dst, err)
	}
	return nil
}

// MakeEmpty makes a sparse file without a file system at dst, readable by its owner only, for machines that make their own.
// It fails if dst exists.
func MakeEmpty(size int64, dst string) error {
	if err := checkScratchSize(size); err != nil {
		return err
	}
	f, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("make an empty disk: %w", err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("make an empty disk of %d MiB: %w", size>>20, err), os.Remove(dst))
	}
	return nil
}

// open returns the blank of a size, and makes it if it is not there.
func (b *Blanks) open(ctx context.Context, size int64) (*os.File, error) {
	path := filepath.Join(b.dir, fmt.Sprintf("ext4-%s-%dm", recipe(), size>>20))
	if f, err := openBlank(path, size); err == nil {
		return f, nil
	}
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := lockFile(ctx, filepath.Join(b.dir, "lock"))
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if f, err := openBlank(path, size); err == nil {
		return f, nil // made by who had the lock before
	}
	if err := b.make(ctx, size, path); err != nil {
		return nil, err
	}
	return openBlank(path, size)
}

// openBlank opens a blank and looks whether it is one, so that a damaged cache mends itself.
func openBlank(path string, size int64) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	const magicAt, magic = 1024 + 56, 0xef53 // of ext4's superblock
	var found [2]byte
	info, err := f.Stat()
	if err == nil {
		_, err = f.ReadAt(found[:], magicAt)
	}
	if err == nil && (info.Size() != size || binary.LittleEndian.Uint16(found[:]) != magic) {
		err = fmt.Errorf("%s is not a blank disk", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// make runs mkfs on a new file and gives it its name when it is complete. The lock is held, so whatever else
// is unfinished in the folder is left over from a process that died.
func (b *Blanks) make(ctx context.Context, size int64, path string) error {
	const unfinished = "new-"
	stale, _ := filepath.Glob(filepath.Join(b.dir, unfinished+"*"))
	for _, p := range stale {
		os.RemoveAll(p)
	}
	work, err := os.MkdirTemp(b.dir, unfinished)
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	disk := filepath.Join(work, "disk")
	f, err := os.OpenFile(disk, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	if err := mkfs(ctx, work, disk, size); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(disk, path); err != nil {
		return err
	}
	return syncDir(b.dir)
}

// The recipe of the file system. Everything is said, so that the host's mke2fs.conf does not matter.
//
//   - inode tables and journal are not written: the file is new, hence zero, and marked as such, so that the
//     kernel does not zero them in the background after the first mount;
//   - one backup of the superblock (sparse_super2) and all bitmaps together (-G 512) keep the blank at four
//     pieces of 132 KiB for 10 GiB, which is what a clone costs;
//   - the journal is small: it is there for a VM that is killed, not for throughput;
//   - no blocks are reserved for root: who fills the disk is the container.
const (
	scratchFeatures = "none,has_journal,ext_attr,dir_index,filetype,extent,flex_bg,sparse_super2,large_file," +
		"huge_file,dir_nlink,extra_isize,metadata_csum"
	scratchID     = "6d616e69-7300-4000-8000-000000000000"
	scratchConfig = "[defaults]\n[fs_types]\next4 = {\n}\nfloppy = {\n}\nsmall = {\n}\nbig = {\n}\nhuge = {\n}\n"
	zeroed        = "assume_storage_prezeroed=1"
	lazy          = "lazy_itable_init=1,lazy_journal_init=1" // before e2fsprogs 1.47
)

func scratchArgs(disk string, size int64, zeroes string) []string {
	journal := "16" // MiB
	if size < 256<<20 {
		journal = "4"
	}
	return []string{
		"-q", "-F", "-O", scratchFeatures, "-b", "4096", "-I", "256", "-i", "16384", "-G", "512", "-m", "0",
		"-J", "size=" + journal, "-U", scratchID, "-L", "manis-scratch",
		"-E", "hash_seed=" + scratchID + ",root_owner=0:0,nodiscard,num_backup_sb=1," + zeroes, disk,
	}
}

// recipe names the blanks made by this recipe and no other.
var recipe = sync.OnceValue(func() string {
	sum := sha256.Sum256([]byte(scratchConfig + strings.Join(scratchArgs("", DefaultScratchSize, zeroed), " ")))
	return hex.EncodeToString(sum[:4])
})

func mkfs(ctx context.Context, work, disk string, size int64) error {
	tool, err := findMkfs()
	if err != nil {
		return err
	}
	config := filepath.Join(work, "mke2fs.conf")
	if err := os.WriteFile(config, []byte(scratchConfig), 0o600); err != nil {
		return err
	}
	run := func(zeroes string) (string, error) {
		cmd := exec.CommandContext(ctx, tool, scratchArgs(disk, size, zeroes)...)
		// The time stamp is fixed, or no two blanks would be the same.
		cmd.Env = append(os.Environ(), "MKE2FS_CONFIG="+config, "E2FSPROGS_FAKE_TIME=1", "SOURCE_DATE_EPOCH=1", "LC_ALL=C")
		out, err := cmd.CombinedOutput()
		return string(bytes.TrimSpace(out)), err
	}
	out, err := run(zeroed)
	if err != nil && strings.Contains(out, "assume_storage_prezeroed") {
		out, err = run(lazy)
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", tool, err, out)
	}
	return nil
}

var sbin = []string{"/usr/sbin", "/sbin", "/usr/local/sbin"}

// findMkfs also looks where ordinary users have no path to.
func findMkfs() (string, error) {
	if p, err := exec.LookPath("mkfs.ext4"); err == nil {
		return p, nil
	}
	for _, dir := range sbin {
		p := filepath.Join(dir, "mkfs.ext4")
		if info, err := os.Stat(p); err == nil && info.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", ErrNoMkfs
}
