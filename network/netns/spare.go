package netns

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Spare is a tap device that leads nowhere, in a network namespace of its own: for machines that are made before
// anybody knows for which namespace.
type Spare struct {
	// Tap is the device, as that of Interface. Who hands it to a machine duplicates it.
	Tap *os.File

	ns *os.File // where it is
}

// NewSpare makes one. It ends with Close, and with the last duplicate of its descriptor.
func NewSpare() (*Spare, error) {
	s := new(Spare)
	made := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		made <- s.make()
	}()
	if err := <-made; err != nil {
		s.Close()
		return nil, fmt.Errorf("make a spare tap device: %w", err)
	}
	return s, nil
}

// make makes it in a new network namespace of the thread.
func (s *Spare) make() error {
	err := unix.Unshare(unix.CLONE_NEWNET)
	if err != nil {
		return err
	}
	if s.ns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return err
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	s.Tap, _, err = makeTap(h, 1500)
	return err
}

// Close gives the device up.
func (s *Spare) Close() {
	for _, f := range []*os.File{s.Tap, s.ns} {
		if f != nil {
			f.Close()
		}
	}
	s.Tap, s.ns = nil, nil
}

// move takes the device into the network namespace ns, whose netlink socket h is, and prepares it there. The
// Spare has none any more, also when it fails.
func (s *Spare) move(h *netlink.Handle, ns *os.File, mtu int) (_ *os.File, index int, err error) {
	tap := s.Tap
	s.Tap = nil
	defer s.Close()
	defer func() {
		if err != nil {
			tap.Close()
		}
	}()
	// There may be another of its name.
	name := fmt.Sprintf(tapName, rand.Uint32())
	err = inside(s.ns, func(h *netlink.Handle) error {
		l, err := h.LinkByName(tap.Name())
		if err != nil {
			return err
		}
		if err := h.LinkSetDown(l); err != nil {
			return err
		}
		if err := h.LinkSetName(l, name); err != nil {
			return err
		}
		return h.LinkSetNsFd(l, int(ns.Fd()))
	})
	if err != nil {
		return nil, 0, fmt.Errorf("move a spare tap device into the namespace: %w", err)
	}
	l, err := h.LinkByName(name)
	if err != nil {
		return nil, 0, fmt.Errorf("find tap device %s: %w", name, err)
	}
	if err := prepareTap(h, l, mtu); err != nil {
		h.LinkDel(l)
		return nil, 0, err
	}
	return tap, l.Attrs().Index, nil
}
