package agent

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	api "manis/api/agent"
)

// Device-mapper requests, include/uapi/linux/dm-ioctl.h: _IOWR(0xfd, n, struct dm_ioctl).
const (
	dmDevCreate  = 0xc138fd03
	dmDevRemove  = 0xc138fd04
	dmDevSuspend = 0xc138fd06
	dmTableLoad  = 0xc138fd09

	dmReadonlyFlag   = 1 << 0
	dmDeferredRemove = 1 << 17

	dmHead   = 312 // sizeof(struct dm_ioctl)
	dmTarget = 40  // sizeof(struct dm_target_spec)
)

// verity is a device whose every block is checked against a root hash when it is
// read.
type verity struct {
	name string
	path string
}

var verityCount atomic.Uint64

// verityTable is the target's parameter line,
// Documentation/admin-guide/device-mapper/verity.rst, and the length of the device in
// sectors.
func verityTable(dev string, v *api.Verity) (string, uint64, error) {
	if v.Algorithm != "" && v.Algorithm != "sha256" {
		return "", 0, fmt.Errorf("hash algorithm %q is not offered, only sha256", v.Algorithm)
	}
	if b, err := hex.DecodeString(v.RootHash); err != nil || len(b) != 32 {
		return "", 0, errors.New("the root hash is not 64 hex digits")
	}
	salt := v.Salt
	if salt == "" {
		salt = "-"
	} else if _, err := hex.DecodeString(salt); err != nil || len(salt) > 512 {
		return "", 0, errors.New("the salt is not hex")
	}
	for _, size := range []uint32{v.DataBlockBytes, v.HashBlockBytes} {
		if size < 512 || size > 4096 || size&(size-1) != 0 {
			return "", 0, fmt.Errorf("a block size of %d bytes is not offered", size)
		}
	}
	if v.HashOffset%uint64(v.HashBlockBytes) != 0 {
		return "", 0, fmt.Errorf("the hash tree's offset %d is not a multiple of the block size", v.HashOffset)
	}
	if v.DataBlocks == 0 || v.DataBlocks > 1<<50 {
		return "", 0, fmt.Errorf("%d data blocks", v.DataBlocks)
	}
	u := func(n uint64) string { return strconv.FormatUint(n, 10) }
	line := strings.Join([]string{
		"1", dev, dev, u(uint64(v.DataBlockBytes)), u(uint64(v.HashBlockBytes)), u(v.DataBlocks),
		u(v.HashOffset / uint64(v.HashBlockBytes)), verityHash(), v.RootHash, salt,
	}, " ")
	return line, v.DataBlocks * uint64(v.DataBlockBytes/512), nil
}

// openVerity makes a checked device out of dev.
func openVerity(dev string, v *api.Verity) (*verity, error) {
	table, sectors, err := verityTable(dev, v)
	if err != nil {
		return nil, fail(codes.InvalidArgument, err)
	}
	ctl, err := openMapper()
	if err != nil {
		return nil, err
	}
	defer unix.Close(ctl)
	name := "manis-" + strconv.FormatUint(verityCount.Add(1), 10)
	head := dmRequest(name, 0, nil)
	if err := ioctl(ctl, dmDevCreate, head); err != nil {
		return nil, fmt.Errorf("make verity device: %w", err)
	}
	// dev, as new_encode_dev puts it: minor bits split around the major's.
	number := binary.NativeEndian.Uint64(head[40:])
	minor := number&0xff | number>>12&^0xff
	d := &verity{name: name, path: "/dev/dm-" + strconv.FormatUint(minor, 10)}

	spec := make([]byte, dmTarget, dmTarget+len(table)+8)
	binary.NativeEndian.PutUint64(spec[8:], sectors)
	copy(spec[24:], "verity")
	spec = append(spec, table...)
	spec = append(spec, make([]byte, 8-len(spec)%8)...)
	load := dmRequest(name, dmReadonlyFlag, spec)
	binary.NativeEndian.PutUint32(load[20:], 1) // one target
	if err := ioctl(ctl, dmTableLoad, load); err != nil {
		d.remove()
		return nil, fmt.Errorf("load verity table (is the disk smaller than its description?): %w", err)
	}
	if err := ioctl(ctl, dmDevSuspend, dmRequest(name, dmReadonlyFlag, nil)); err != nil {
		d.remove()
		return nil, fmt.Errorf("start verity device: %w", err)
	}
	d.readAhead(verityReadAhead)
	return d, nil
}

// verityReadAhead is how much is read, and checked, beyond what is asked for, bytes. The kernel's
// 128 KiB are too much where checking is emulated: a start reads little pieces of
// many files.
const verityReadAhead = 16 << 10

// readAhead is for speed only: its failure does not matter.
func (d *verity) readAhead(bytes uint64) {
	fd, err := unix.Open(d.path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	unix.IoctlSetInt(fd, unix.BLKRASET, int(bytes/512))
	unix.Close(fd)
}

// remove deletes the device, now or when its last user is gone.
func (d *verity) remove() error {
	ctl, err := openMapper()
	if err != nil {
		return err
	}
	defer unix.Close(ctl)
	if err := ioctl(ctl, dmDevRemove, dmRequest(d.name, dmDeferredRemove, nil)); err != nil {
		return fmt.Errorf("remove verity device: %w", err)
	}
	return nil
}

func openMapper() (int, error) {
	fd, err := unix.Open("/dev/mapper/control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open device mapper (is it in the guest's kernel?): %w", err)
	}
	return fd, nil
}

// dmRequest is struct dm_ioctl with data behind it.
func dmRequest(name string, flags uint32, data []byte) []byte {
	size := dmHead + len(data)
	b := make([]byte, max(size, dmHead))
	binary.NativeEndian.PutUint32(b[0:], 4) // interface version 4.0.0
	binary.NativeEndian.PutUint32(b[12:], uint32(size))
	binary.NativeEndian.PutUint32(b[16:], dmHead)
	binary.NativeEndian.PutUint32(b[28:], flags)
	copy(b[48:48+127], name)
	copy(b[dmHead:], data)
	return b
}
