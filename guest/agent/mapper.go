package agent

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
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

// mapped is a read-only device that the device mapper makes of another one.
type mapped struct {
	name string
	path string
}

var mappedCount atomic.Uint64

// openMapped makes a device of sectors (512 bytes each) of one target of the device mapper, with the target's parameters.
func openMapped(target, table string, sectors uint64) (*mapped, error) {
	ctl, err := openMapper()
	if err != nil {
		return nil, err
	}
	defer unix.Close(ctl)
	name := "manis-" + strconv.FormatUint(mappedCount.Add(1), 10)
	head := dmRequest(name, 0, nil)
	if err := ioctl(ctl, dmDevCreate, head); err != nil {
		return nil, fmt.Errorf("make %s device: %w", target, err)
	}
	// dev, as new_encode_dev puts it: minor bits split around the major's.
	number := binary.NativeEndian.Uint64(head[40:])
	minor := number&0xff | number>>12&^0xff
	d := &mapped{name: name, path: "/dev/dm-" + strconv.FormatUint(minor, 10)}

	spec := make([]byte, dmTarget, dmTarget+len(table)+8)
	binary.NativeEndian.PutUint64(spec[8:], sectors)
	copy(spec[24:], target)
	spec = append(spec, table...)
	spec = append(spec, make([]byte, 8-len(spec)%8)...)
	load := dmRequest(name, dmReadonlyFlag, spec)
	binary.NativeEndian.PutUint32(load[20:], 1) // one target
	if err := ioctl(ctl, dmTableLoad, load); err != nil {
		d.remove()
		return nil, fmt.Errorf("load %s table: %w", target, err)
	}
	if err := ioctl(ctl, dmDevSuspend, dmRequest(name, dmReadonlyFlag, nil)); err != nil {
		d.remove()
		return nil, fmt.Errorf("start %s device: %w", target, err)
	}
	return d, nil
}

// readAhead is for speed only: its failure does not matter.
func (d *mapped) readAhead(bytes uint64) {
	fd, err := unix.Open(d.path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	unix.IoctlSetInt(fd, unix.BLKRASET, int(bytes/512))
	unix.Close(fd)
}

// remove deletes the device, now or when its last user is gone.
func (d *mapped) remove() error {
	ctl, err := openMapper()
	if err != nil {
		return err
	}
	defer unix.Close(ctl)
	if err := ioctl(ctl, dmDevRemove, dmRequest(d.name, dmDeferredRemove, nil)); err != nil {
		return fmt.Errorf("remove device %s of the device mapper: %w", d.name, err)
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
