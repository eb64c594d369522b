package netns

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tapName is how the taps are called; the kernel puts a number in.
const tapName = "manis%d"

// maxTapMTU is the largest MTU of a tap, bytes.
const maxTapMTU = 65521

// makeTap makes a tap device in the thread's network namespace, which lives as long as its descriptor,
// and brings it up. Nothing of the namespace's own stack is to be sent by it.
func makeTap(h *netlink.Handle, mtu int) (_ *os.File, index int, err error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("open /dev/net/tun, for a tap device (may this user?): %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	req, err := unix.NewIfreq(tapName)
	if err != nil {
		return nil, 0, err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return nil, 0, fmt.Errorf("make a tap device: %w", err)
	}
	link, err := h.LinkByName(req.Name())
	if err != nil {
		return nil, 0, fmt.Errorf("find tap device %s: %w", req.Name(), err)
	}
	if err := prepareTap(h, link, mtu); err != nil {
		return nil, 0, err
	}
	return os.NewFile(uintptr(fd), req.Name()), link.Attrs().Index, nil
}

// prepareTap brings a tap of the thread's network namespace up, quiet.
func prepareTap(h *netlink.Handle, link netlink.Link, mtu int) error {
	// Without IPv6 addresses it asks for no routers, and without ARP for nobody's address.
	off := os.WriteFile("/proc/sys/net/ipv6/conf/"+link.Attrs().Name+"/disable_ipv6", []byte("1"), 0)
	if off != nil && !errors.Is(off, os.ErrNotExist) {
		if err := h.LinkSetIP6AddrGenMode(link, addrGenNone); err != nil {
			return fmt.Errorf("keep IPv6 off the tap device: %w", errors.Join(off, err))
		}
	}
	if err := h.LinkSetMTU(link, min(mtu, maxTapMTU)); err != nil {
		return fmt.Errorf("set the tap device's MTU to %d: %w", mtu, err)
	}
	if err := h.LinkSetARPOff(link); err != nil {
		return fmt.Errorf("switch ARP off on the tap device: %w", err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring the tap device up: %w", err)
	}
	return nil
}

// addrGenNone is IN6_ADDR_GEN_MODE_NONE.
const addrGenNone = 1
