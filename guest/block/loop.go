package block

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	loopMajor     = 7
	loopReadOnly  = 1 // LO_FLAGS_READ_ONLY
	loopAutoClear = 4 // LO_FLAGS_AUTOCLEAR
	// loopTime bounds the wait for a device that no other thread takes first.
	loopTime = 5 * time.Second
)

// Loop makes the open file a block device, which ends when nobody uses it any more, and so not before fd is
// closed: struct loop_config of the kernel's include/uapi/linux/loop.h.
func Loop(file int, readOnly bool) (fd int, path string, err error) {
	mode, flags := unix.O_RDWR, uint32(loopAutoClear)
	if readOnly {
		mode, flags = unix.O_RDONLY, loopAutoClear|loopReadOnly
	}
	control, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, "", fmt.Errorf("open loop control: %w", err)
	}
	defer unix.Close(control)
	for deadline := time.Now().Add(loopTime); ; {
		n, err := unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return -1, "", fmt.Errorf("find a free loop device: %w", err)
		}
		path := "/dev/loop" + strconv.Itoa(n)
		fd, err := unix.Open(path, mode|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT {
			err = unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(loopMajor, uint32(n))))
			if err == nil || err == unix.EEXIST {
				fd, err = unix.Open(path, mode|unix.O_CLOEXEC, 0)
			}
		}
		if err != nil {
			return -1, "", fmt.Errorf("open loop device: %w", err)
		}
		config := make([]byte, 304)
		binary.LittleEndian.PutUint32(config[0:], uint32(file))
		binary.LittleEndian.PutUint32(config[4:], 4096) // block size
		binary.LittleEndian.PutUint32(config[8+52:], flags)
		err = ioctl(fd, unix.LOOP_CONFIGURE, config)
		if err == nil {
			return fd, path, nil
		}
		unix.Close(fd)
		if err != unix.EBUSY || time.Now().After(deadline) {
			return -1, "", fmt.Errorf("set up a loop device: %w", err)
		}
	}
}
