package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"manis/api/agent"
)

// Taken is a network namespace whose interfaces lead into a machine.
type Taken struct {
	// Interfaces are in the order in which the namespace has got them. There are none in an empty
	// namespace: its machine has only loopback.
	Interfaces []Interface
	// Guest is what the agent is asked to set up. Its interfaces find their cards by hardware address,
	// or in the order of Interfaces.
	Guest *agent.Network

	ns    *os.File
	spare *Spare
	// begun: the cards that the machine begins with have been counted.
	begun bool
	// refused are the indices of interfaces that are left alone, see Refuse.
	refused map[int]bool
	once    sync.Once
	err     error
}

// Interface is one of a namespace's interfaces.
type Interface struct {
	Name string
	MAC  string // "02:..."
	// Card is the hardware address that the machine's card is to have at first: MAC, unless another interface has the same,
	// as VLANs of one interface and IPVLANs have. The agent gives the card MAC.
	Card string
	MTU  int // bytes
	// Tap carries the interface's frames, each after a struct virtio_net_hdr (10 bytes, TUNSETVNETHDRSZ
	// changes that) that asks for nothing until TUNSETOFFLOAD allows it. It belongs to Taken and is
	// closed by Release, or by Follow when the interface has gone; who hands it to a machine duplicates it. It does not block, and may be read and
	// written by one party at a time: Relay, or QEMU.
	Tap *os.File
	// Plugged says that the machine gets the card while it runs: it begins with one at most.
	Plugged bool

	index, tap int
	owned      bool // the ingress qdisc is ours
	allmulti   bool // we made it receive all multicasts
	local      *local
	tags       map[uint16]bool // frames with these are the namespace's, see tags
}

// Take looks at the network namespace that is open as ns and puts a tap device beside each of its
// interfaces but loopback. Interfaces that are down and have no address, those that belong to a bridge of the same
// namespace, and those that are no Ethernet and down (a kernel makes some in every namespace) are left
// alone. What a Take in a process that has died left behind is replaced.
//
// The caller needs CAP_NET_ADMIN in the user namespace that owns ns, CAP_SYS_ADMIN in its own and in that
// one to enter, and access to /dev/net/tun: root has them, and so has the root of a user namespace for
// network namespaces made in there. With an error the namespace is as it was. The caller ends what
// was taken with Release.
func Take(ns *os.File) (*Taken, error) { return TakeWith(ns, nil) }

// TakeWith is Take for a machine that has the spare tap already, which the first interface then gets, so that
// it is gone from spare. It leaves spare alone where there is no interface, and when it is nil.
func TakeWith(ns *os.File, spare *Spare) (*Taken, error) {
	dup, err := unix.FcntlInt(ns.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	t := &Taken{ns: os.NewFile(uintptr(dup), ns.Name()), spare: spare}
	err = inside(t.ns, func(h *netlink.Handle) error {
		links, err := candidates(h)
		if err != nil {
			return err
		}
		if t.Guest, err = describe(h, links); err != nil {
			return err
		}
		for _, l := range links {
			if l.Attrs().RawFlags&unix.IFF_LOOPBACK != 0 {
				continue
			}
			if err := t.add(h, l); err != nil {
				return fmt.Errorf("interface %s: %w", l.Attrs().Name, err)
			}
		}
		t.begun = true
		t.complete(t.Guest)
		return t.spareTagged(h, links)
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("take over network namespace %s: %w", ns.Name(), err), t.Release())
	}
	return t, nil
}

// add puts a tap beside an interface. What it has made is in t also when it fails.
func (t *Taken) add(h *netlink.Handle, l netlink.Link) error {
	a := l.Attrs()
	i := Interface{Name: a.Name, MAC: a.HardwareAddr.String(), MTU: a.MTU, Plugged: t.begun, index: a.Index}
	i.Card = t.card(i.MAC)
	t.begun = true
	var err error
	if t.spare != nil && t.spare.Tap != nil {
		i.Tap, i.tap, err = t.spare.move(h, t.ns, a.MTU)
	} else {
		i.Tap, i.tap, err = makeTap(h, a.MTU)
	}
	if err != nil {
		return err
	}
	t.Interfaces = append(t.Interfaces, i)
	last := &t.Interfaces[len(t.Interfaces)-1]
	// From the tap first: the interface's frames have a way then when they are stolen.
	if _, err = redirect(h, last.tap, last.index); err != nil {
		return err
	}
	if last.allmulti, err = receiveAll(h, l); err != nil {
		return err
	}
	if last.owned, err = redirect(h, last.index, last.tap); err != nil {
		return err
	}
	return last.admitLocal(h, l, t.Guest)
}

// card is a hardware address for the card of another interface with this one.
func (t *Taken) card(mac string) string {
	used := func(card string) bool {
		return slices.ContainsFunc(t.Interfaces, func(i Interface) bool { return i.Card == card || i.MAC == card })
	}
	card := mac
	for n := 0; used(card); n++ {
		card = fmt.Sprintf("02:00:00:00:%02x:%02x", 1+n>>8, n&0xff)
	}
	return card
}

// complete adds to a description what the namespace does not tell.
func (t *Taken) complete(g *agent.Network) {
	for _, i := range t.Interfaces {
		for _, n := range g.Interfaces {
			if n.Name != i.Name {
				continue
			}
			n.Plugged = i.Plugged
			if i.Card != i.MAC {
				n.Card = i.Card
			}
			if i.local != nil {
				n.Neighbors = append(n.Neighbors, i.local.alias)
			}
		}
	}
}

// Release takes the taps away and lets the namespace's own stack have its frames again. It may be called
// more than once. A namespace that is no longer named by anybody ends with it.
func (t *Taken) Release() error {
	t.once.Do(func() {
		err := inside(t.ns, func(h *netlink.Handle) error {
			var errs []error
			for _, i := range t.Interfaces {
				if err := i.leave(h); err != nil {
					errs = append(errs, fmt.Errorf("interface %s: %w", i.Name, err))
				}
			}
			return errors.Join(errs...)
		})
		for _, i := range t.Interfaces {
			i.Tap.Close() // also where the namespace cannot be entered
		}
		if err != nil {
			t.err = fmt.Errorf("give back network namespace %s: %w", t.ns.Name(), err)
		}
		t.ns.Close()
	})
	return t.err
}

// leave lets the namespace's own stack have the interface's frames again.
func (i *Interface) leave(h *netlink.Handle) error {
	err := errors.Join(restore(h, i.index, i.owned), i.takeBack(h), i.receiveLess(h))
	// The descriptor may live on in a machine that is still ending.
	if l, err := h.LinkByIndex(i.tap); err == nil {
		h.LinkDel(l)
	}
	i.Tap.Close()
	return err
}

// inside calls f on a thread that is in the network namespace, with a netlink socket of it.
func inside(ns *os.File, f func(h *netlink.Handle) error) error {
	return Do(ns, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		return f(h)
	})
}

// Do calls f on a thread of its own that is in the network namespace. Sockets that f makes stay in there.
func Do(ns *os.File, f func() error) error {
	done := make(chan error, 1)
	go func() {
		// The thread ends with the goroutine, so that nothing else ever runs in the namespace.
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}
