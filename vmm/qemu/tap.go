package qemu

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// headerBytes is the size of struct virtio_net_hdr_v1, which precedes each frame of a modern device.
const headerBytes = 12

// equip brings a tap device into the state in which QEMU leaves one after its guest's driver has
// negotiated with it. A saved QEMU that is given the device goes on reading and writing, and asks nothing.
func equip(tap *os.File) error {
	raw, err := tap.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.IoctlSetPointerInt(int(fd), unix.TUNSETVNETHDRSZ, headerBytes)
		if failed == nil {
			failed = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6|unix.TUN_F_TSO_ECN)
		}
		if failed == nil {
			failed = unix.SetNonblock(int(fd), true)
		}
	})
	if err = errors.Join(err, failed); err != nil {
		return fmt.Errorf("prepare the tap device: %w", err)
	}
	return nil
}
