package pod

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"manis/bundle"
	"manis/vmm"
)

// attach gives the machine the block devices of a container.
func (p *Pod) attach(ctx context.Context, m *member, disks []bundle.Disk) error {
	for _, d := range disks {
		if err := p.attachOne(ctx, m, d); err != nil {
			return fmt.Errorf("device %s: %w", d.Device.Path, err)
		}
	}
	return nil
}

func (p *Pod) attachOne(ctx context.Context, m *member, d bundle.Disk) error {
	f, err := openDisk(d.Major, d.Minor, d.ReadOnly)
	if err != nil {
		return err
	}
	defer f.Close()
	d.Device.Disk, err = p.plug(ctx, m, vmm.Disk{File: f, ReadOnly: d.ReadOnly})
	return err
}

// openDisk opens the block device of this number.
func openDisk(major, minor uint32, readOnly bool) (*os.File, error) {
	name, err := diskName(major, minor)
	if err != nil {
		return nil, err
	}
	flags := os.O_RDWR
	if readOnly {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile("/dev/"+name, flags|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK || st.Rdev != unix.Mkdev(major, minor) {
		f.Close()
		return nil, fmt.Errorf("/dev/%s is not the block device %d:%d of this host", name, major, minor)
	}
	return f, nil
}

// diskName is the name that the kernel gives to a block device.
func diskName(major, minor uint32) (string, error) {
	path := fmt.Sprintf("/sys/dev/block/%d:%d/uevent", major, minor)
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if name, ok := strings.CutPrefix(lines.Text(), "DEVNAME="); ok {
			return name, nil
		}
	}
	return "", fmt.Errorf("%s names no device", path)
}
