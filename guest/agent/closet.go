package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// closet is a network namespace for cards that the sandbox is not to have, where nobody looks. To take a card
// away from its driver takes the guest three times as long, and again to give it back.
type closet struct {
	mu sync.Mutex
	// outside and inside are the network namespaces; 0 until the first card is put away.
	outside, inside int
	within          *rtnetlink // a socket of the one inside
	cards           []uint32   // by their indices there
}

// cardCloset is the machine's.
var cardCloset closet

// open makes the namespace.
func (c *closet) open() error {
	if c.within != nil {
		return nil
	}
	runtime.LockOSThread()
	const own = "/proc/thread-self/ns/net"
	outside, err := unix.Open(own, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		unix.Close(outside)
		return err
	}
	inside, err := unix.Open(own, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	var within *rtnetlink
	if err == nil {
		within, err = openNetlink()
	}
	// A thread that cannot return stays locked, and nothing else ever runs on it.
	if back := unix.Setns(outside, unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, back)
	}
	runtime.UnlockOSThread()
	if err != nil {
		return err
	}
	c.outside, c.inside, c.within = outside, inside, within
	return nil
}

// put takes a card away from the sandbox.
func (c *closet) put(index uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.open(); err != nil {
		return err
	}
	r, err := openNetlink()
	if err != nil {
		return err
	}
	defer r.Close()
	if err := r.move(index, c.inside); err != nil {
		return err
	}
	c.cards = append(c.cards, index)
	return nil
}

// empty gives all cards back. Those that were unplugged meanwhile are gone.
func (c *closet) empty() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.cards) > 0 {
		if err := c.within.move(c.cards[0], c.outside); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("restore a network card: %w", err)
		}
		c.cards = c.cards[1:]
	}
	return nil
}

// move brings a link down and into another network namespace. It keeps its index and name unless they are taken
// there.
func (r *rtnetlink) move(index uint32, ns int) error {
	m := newLinkMessage(index, unix.IFF_UP, 0)
	m.attr(unix.IFLA_NET_NS_FD, binary.NativeEndian.AppendUint32(nil, uint32(ns)))
	m.attr(unix.IFLA_IFNAME, append([]byte("card%d"), 0))
	return r.request(m)
}
