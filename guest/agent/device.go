package agent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	api "manis/api/agent"
)

// deviceTimeout bounds the wait for a device that the host says is there.
// Hot-plug takes up to 0.2 s under emulation.
const deviceTimeout = 10 * time.Second

var errNoDevice = errors.New("the device did not appear")

// awaitDevice returns what find finds, and asks it again after each of the
// kernel's device events while it finds nothing.
func awaitDevice(find func() (string, error)) (string, error) {
	if dev, err := find(); dev != "" || err != nil {
		return dev, err
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return "", os.NewSyscallError("socket", err)
	}
	events := os.NewFile(uintptr(fd), "uevents")
	defer events.Close()
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return "", os.NewSyscallError("bind", err)
	}
	deadline := time.Now().Add(deviceTimeout)
	if err := events.SetReadDeadline(deadline); err != nil {
		return "", err
	}
	buf := make([]byte, 8192)
	for {
		// Asked again after the subscription, so that no event is missed.
		if dev, err := find(); dev != "" || err != nil {
			return dev, err
		}
		// A full queue loses events, but not the wake-up.
		if _, err := events.Read(buf); errors.Is(err, os.ErrDeadlineExceeded) {
			return "", errNoDevice
		} else if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return "", fmt.Errorf("wait for device: %w", err)
		}
	}
}

// findDisk returns the device name ("vda") of the virtio disk with this serial.
func findDisk(serial string) (string, error) {
	// The kernel cuts serials to this length.
	if len(serial) > 20 {
		return "", fmt.Errorf("serial %q is longer than 20 bytes", serial)
	}
	if serial == "" {
		return "", errors.New("empty serial")
	}
	names, err := readDir("/sys/block")
	if err != nil {
		return "", err
	}
	for _, n := range names {
		if !strings.HasPrefix(n, "vd") {
			continue
		}
		if b, err := readFile("/sys/block/"+n+"/serial", 64); err == nil && trim(b) == serial {
			return n, nil
		}
	}
	return "", nil
}

// awaitDisk returns the path of the disk with this serial, /dev/vda.
func awaitDisk(serial string) (string, error) {
	dev, err := awaitDevice(func() (string, error) { return findDisk(serial) })
	if err != nil {
		return "", fmt.Errorf("find disk %q: %w", serial, err)
	}
	return "/dev/" + dev, nil
}

// numberDisks gives nodes of disks the numbers that these have here.
func numberDisks(devices []*api.Device) error {
	for _, d := range devices {
		if d.Disk == "" {
			continue
		}
		path, err := awaitDisk(d.Disk)
		if err != nil {
			return fmt.Errorf("device %s: %w", d.Path, err)
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return fmt.Errorf("device %s: stat %s: %w", d.Path, path, err)
		}
		d.Major, d.Minor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	return nil
}

// readDir returns the names in a directory.
func readDir(path string) ([]string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var names []string
	buf := make([]byte, 8192)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return names, nil
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

func trim(b []byte) string { return string(bytes.TrimSpace(b)) }

// readNumber reads a file that holds one decimal number.
func readNumber(path string) (uint64, error) {
	b, err := readFile(path, 64)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(trim(b), 10, 64)
}
