package block

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Device-mapper requests, include/uapi/linux/dm-ioctl.h: _IOWR(0xfd, n, struct dm_ioctl).
const (
	dmDevCreate   = 0xc138fd03
	dmDevRemove   = 0xc138fd04
	dmDevSuspend  = 0xc138fd06
	dmTableLoad   = 0xc138fd09
	dmTableStatus = 0xc138fd0c

	dmReadonlyFlag   = 1 << 0
	dmBufferFull     = 1 << 8
	dmNoFlush        = 1 << 11
	dmSecureData     = 1 << 15
	dmDeferredRemove = 1 << 17

	dmHead   = 312 // sizeof(struct dm_ioctl)
	dmTarget = 40  // sizeof(struct dm_target_spec)
)

// Target is what a mapped device consists of.
type Target struct {
	// Kind is the kernel's name of it: "verity".
	Kind string
	// Line are its parameters, as Documentation/admin-guide/device-mapper has them.
	Line string
	// Bytes is the length of the device, in whole sectors of 512.
	Bytes    uint64
	ReadOnly bool
	// Secret says that Line has a key: the kernel forgets its copies of the request.
	Secret bool
}

// Mapped is a device of the device mapper.
type Mapped struct{ name, path string }

var mappedCount atomic.Uint64

// Map makes a device of one target. Whoever called removes it; what it is made of stays in use until then.
func Map(t Target) (*Mapped, error) {
	control, err := openMapper()
	if err != nil {
		return nil, err
	}
	defer unix.Close(control)
	name := "manis-" + strconv.FormatUint(mappedCount.Add(1), 10)
	head := mapperRequest(name, 0, nil)
	if err := ioctl(control, dmDevCreate, head); err != nil {
		return nil, fmt.Errorf("make %s device: %w", t.Kind, err)
	}
	// dev, as new_encode_dev puts it: minor bits split around the major's.
	number := binary.NativeEndian.Uint64(head[40:])
	minor := number&0xff | number>>12&^0xff
	d := &Mapped{name: name, path: "/dev/dm-" + strconv.FormatUint(minor, 10)}

	flags := uint32(0)
	if t.ReadOnly {
		flags |= dmReadonlyFlag
	}
	secret := flags
	if t.Secret {
		secret |= dmSecureData
	}
	spec := make([]byte, dmTarget, dmTarget+len(t.Line)+8)
	binary.NativeEndian.PutUint64(spec[8:], t.Bytes/512)
	copy(spec[24:], t.Kind)
	spec = append(spec, t.Line...)
	spec = append(spec, make([]byte, 8-len(spec)%8)...)
	load := mapperRequest(name, secret, spec)
	binary.NativeEndian.PutUint32(load[20:], 1) // one target
	err = ioctl(control, dmTableLoad, load)
	if t.Secret {
		clear(spec)
		clear(load)
	}
	if err != nil {
		d.Remove()
		return nil, fmt.Errorf("load %s table (is the disk smaller than its description, or the target not in the guest's kernel?): %w", t.Kind, err)
	}
	if err := ioctl(control, dmDevSuspend, mapperRequest(name, flags, nil)); err != nil {
		d.Remove()
		return nil, fmt.Errorf("start %s device: %w", t.Kind, err)
	}
	return d, nil
}

// Path is where the device is, below /dev.
func (d *Mapped) Path() string { return d.path }

// Remove deletes the device, now or when its last user is gone.
func (d *Mapped) Remove() error {
	control, err := openMapper()
	if err != nil {
		return err
	}
	defer unix.Close(control)
	if err := ioctl(control, dmDevRemove, mapperRequest(d.name, dmDeferredRemove, nil)); err != nil {
		return fmt.Errorf("remove device %s: %w", d.path, err)
	}
	return nil
}

// maxStatus bounds what a target says of itself, bytes.
const maxStatus = 1024

// Status is what the target says of itself. It does not wait for anything to be written.
func (d *Mapped) Status() (string, error) {
	control, err := openMapper()
	if err != nil {
		return "", err
	}
	defer unix.Close(control)
	b := mapperRequest(d.name, dmNoFlush, make([]byte, dmTarget+maxStatus))
	if err := ioctl(control, dmTableStatus, b); err != nil {
		return "", fmt.Errorf("ask device %s for its status: %w", d.path, err)
	}
	if binary.NativeEndian.Uint32(b[28:])&dmBufferFull != 0 || binary.NativeEndian.Uint32(b[20:]) != 1 {
		return "", fmt.Errorf("ask device %s for its status: it is not that of one target", d.path)
	}
	text, _, _ := bytes.Cut(b[dmHead+dmTarget:], []byte{0})
	return string(text), nil
}

func openMapper() (int, error) {
	fd, err := unix.Open("/dev/mapper/control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open device mapper (is it in the guest's kernel?): %w", err)
	}
	return fd, nil
}

// mapperRequest is struct dm_ioctl with data behind it.
func mapperRequest(name string, flags uint32, data []byte) []byte {
	b := make([]byte, dmHead+len(data))
	binary.NativeEndian.PutUint32(b[0:], 4) // interface version 4.0.0
	binary.NativeEndian.PutUint32(b[12:], uint32(len(b)))
	binary.NativeEndian.PutUint32(b[16:], dmHead)
	binary.NativeEndian.PutUint32(b[28:], flags)
	copy(b[48:48+127], name)
	copy(b[dmHead:], data)
	return b
}
