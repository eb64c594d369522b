// Package block makes block devices of others inside the guest: targets of the device mapper, and loop devices, by the
// kernel's ioctls. It knows neither images, containers nor keys. It is linked into every agent, so it is small.
package block

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl passes the address of arg.
func ioctl(fd int, request uint, arg []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(unsafe.Pointer(&arg[0])))
	runtime.KeepAlive(arg)
	if errno != 0 {
		return errno
	}
	return nil
}
