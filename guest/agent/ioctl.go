package agent

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl passes the address of arg, or 0.
func ioctl(fd int, request uint, arg []byte) error {
	var p unsafe.Pointer
	if len(arg) > 0 {
		p = unsafe.Pointer(&arg[0])
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(p))
	runtime.KeepAlive(arg)
	if errno != 0 {
		return errno
	}
	return nil
}
