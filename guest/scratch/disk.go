// Package scratch makes the writable layer of a confidential container on a disk of its host, whom nothing is believed:
//
//   - dm-crypt over the disk, AES-256 in XTS mode, with a key that is made here and is nowhere else;
//   - dm-integrity over that, with an HMAC-SHA-256 of each block and its place. These tags are in the machine's memory, not on the
//     disk, so a block is right only if it is the last one that was written there: an older one, with the tag of its time,
//     is noticed like any other change;
//   - an empty ext4, made here.
//
// Nothing that is on the disk before is ever read: there is no header, and a block that was not written yet has no tag.
// What is lost with the key, which ends with the machine, is lost for everybody.
//
// The host still sees which blocks are written and when, and whether one has the same content again as before.
package scratch

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"manis/guest/block"
)

// MountOptions are those of the ext4. Blocks of inode tables that are not in use were never written, so nothing may
// look ahead into them.
const MountOptions = "noinit_itable,inode_readahead_blks=0,errors=remount-ro"

// Sizes of a disk, bytes: a multiple of unit.
const (
	MinBytes = 16 << 20
	MaxBytes = 1 << 40
	unit     = 1 << 20
)

const (
	// blockBytes is what is encrypted, checked and written as one.
	blockBytes = 4096
	// tagBytes is what is kept of an HMAC.
	tagBytes = 16
	// journalSectors is the least that dm-integrity has, though in mode D it writes none; headBytes is room for it, for the
	// superblock before it, and for what the last buffer of tags is rounded up by.
	journalSectors = 512
	headBytes      = 1 << 20
	// tagShare is the part of the machine's memory that tags may take.
	tagShare = 4
)

// Disk is an encrypted disk in use.
type Disk struct {
	crypt, integrity *block.Mapped
}

// Make encrypts the first bytes of a disk and makes an ext4 there.
func Make(disk string, bytes uint64) (*Disk, error) {
	if err := checkSize(bytes); err != nil {
		return nil, err
	}
	has, err := size(disk)
	if err != nil {
		return nil, err
	}
	if has < bytes {
		return nil, fmt.Errorf("the disk has %d bytes, fewer than the %d that it should have", has, bytes)
	}
	d := new(Disk)
	key, err := newKey(64)
	if err != nil {
		return nil, err
	}
	d.crypt, err = block.Map(block.Target{
		Kind: "crypt", Bytes: bytes, Secret: true,
		Line: strings.Join([]string{"aes-xts-plain64", key, "0", disk, "0", "1", "sector_size:" + strconv.Itoa(blockBytes)}, " "),
	})
	if err != nil {
		return nil, err
	}
	if err := d.check(bytes); err != nil {
		return nil, errors.Join(err, d.Remove())
	}
	if err := makeExt4(d.Path(), bytes); err != nil {
		return nil, errors.Join(err, d.Remove())
	}
	return d, nil
}

func checkSize(bytes uint64) error {
	if bytes < MinBytes || bytes > MaxBytes || bytes%unit != 0 {
		return fmt.Errorf("a disk of %d bytes: want %d MiB to %d GiB, in whole MiB", bytes, MinBytes>>20, MaxBytes>>30)
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("read the machine's memory: %w", err)
	}
	if memory := info.Totalram * uint64(info.Unit); tagMemory(bytes) > memory/tagShare {
		return fmt.Errorf("a disk of %d MiB needs %d MiB of memory, more than a quarter of the machine's %d: make it smaller, or give the machine more (-m)",
			bytes>>20, tagMemory(bytes)>>20, memory>>20)
	}
	return nil
}

// tagMemory is what the tags of a disk take, bytes.
func tagMemory(bytes uint64) uint64 {
	return (bytes/blockBytes*tagBytes + headBytes + blockBytes - 1) / blockBytes * blockBytes
}

// check puts dm-integrity over the encrypted disk.
func (d *Disk) check(bytes uint64) error {
	// All of it is taken now: later there might be none, while what is in memory waits for being written.
	tags, err := unix.MemfdCreate("tags", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make memory for tags: %w", err)
	}
	defer unix.Close(tags)
	if err := unix.Fallocate(tags, 0, 0, int64(tagMemory(bytes))); err != nil {
		return fmt.Errorf("take %d MiB of memory for tags: %w", tagMemory(bytes)>>20, err)
	}
	loop, path, err := block.Loop(tags, false)
	if err != nil {
		return err
	}
	defer unix.Close(loop) // it stays as long as the device that is made of it
	key, err := newKey(32)
	if err != nil {
		return err
	}
	d.integrity, err = block.Map(block.Target{
		Kind: "integrity", Bytes: bytes, Secret: true,
		Line: strings.Join([]string{
			d.crypt.Path(), "0", strconv.Itoa(tagBytes), "D", "4",
			"block_size:" + strconv.Itoa(blockBytes), "meta_device:" + path, "journal_sectors:" + strconv.Itoa(journalSectors),
			"internal_hash:hmac(sha256):" + key,
		}, " "),
	})
	return err
}

// newKey is a key of so many random bytes, hex.
func newKey(bytes int) (string, error) {
	b := make([]byte, bytes)
	defer clear(b)
	if _, err := rand.Read(b); err != nil {
		return "", fmt.Errorf("make a key: %w", err)
	}
	return hex.EncodeToString(b), nil
}

// size is that of a block device, bytes.
func size(disk string) (uint64, error) {
	f, err := os.Open(disk)
	if err != nil {
		return 0, fmt.Errorf("open the disk: %w", err)
	}
	defer f.Close()
	n, err := f.Seek(0, 2)
	if err != nil {
		return 0, fmt.Errorf("size of the disk %s: %w", disk, err)
	}
	return uint64(n), nil
}

func makeExt4(path string, bytes uint64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("open the encrypted disk: %w", err)
	}
	defer f.Close()
	if err := WriteExt4(f, bytes); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("make an ext4 on the encrypted disk: %w", err)
	}
	return nil
}

// Path is the device with the ext4.
func (d *Disk) Path() string { return d.integrity.Path() }

// Mismatches is how many blocks were read so far that were not what had been written there.
func (d *Disk) Mismatches() (uint64, error) {
	status, err := d.integrity.Status()
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(status, " ")
	n, err := strconv.ParseUint(first, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("dm-integrity says %q of itself, which has no count of mismatches", status)
	}
	return n, nil
}

// Remove gives the disk back, now or when nobody uses it any more.
func (d *Disk) Remove() error {
	var failed error
	if d.integrity != nil {
		failed = d.integrity.Remove()
	}
	return errors.Join(failed, d.crypt.Remove())
}
