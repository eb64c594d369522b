package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
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

	ns   *os.File
	once sync.Once
	err  error
}

// Interface is one of a namespace's interfaces.
type Interface struct {
	Name string
	MAC  string // "02:..."
	MTU  int    // bytes
	// Tap carries the interface's frames, each after a struct virtio_net_hdr (10 bytes, TUNSETVNETHDRSZ
	// changes that) that asks for nothing until TUNSETOFFLOAD allows it. It belongs to Taken and is
	// closed by Release; who hands it to a machine duplicates it. It does not block, and may be read and
	// written by one party at a time: Relay, or QEMU.
	Tap *os.File

	index, tap int
	owned      bool // the ingress qdisc is ours
	local      *local
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
func Take(ns *os.File) (*Taken, error) {
	dup, err := unix.FcntlInt(ns.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	t := &Taken{ns: os.NewFile(uintptr(dup), ns.Name())}
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
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("take over network namespace %s: %w", ns.Name(), err), t.Release())
	}
	return t, nil
}

// add puts a tap beside an interface. What it has made is in t also when it fails.
func (t *Taken) add(h *netlink.Handle, l netlink.Link) error {
	a := l.Attrs()
	i := Interface{Name: a.Name, MAC: a.HardwareAddr.String(), MTU: a.MTU, index: a.Index}
	var err error
	if i.Tap, i.tap, err = makeTap(h, a.MTU); err != nil {
		return err
	}
	t.Interfaces = append(t.Interfaces, i)
	last := &t.Interfaces[len(t.Interfaces)-1]
	// From the tap first: the interface's frames have a way then when they are stolen.
	if _, err = redirect(h, last.tap, last.index, ours+1); err != nil {
		return err
	}
	if last.owned, err = redirect(h, last.index, last.tap, ours); err != nil {
		return err
	}
	return last.admitLocal(h, l, t.Guest)
}

// Release takes the taps away and lets the namespace's own stack have its frames again. It may be called
// more than once. A namespace that is no longer named by anybody ends with it.
func (t *Taken) Release() error {
	t.once.Do(func() {
		err := inside(t.ns, func(h *netlink.Handle) error {
			var errs []error
			for _, i := range t.Interfaces {
				if err := restore(h, i.index, i.owned); err != nil {
					errs = append(errs, fmt.Errorf("interface %s: %w", i.Name, err))
				}
				if err := i.takeBack(h); err != nil {
					errs = append(errs, fmt.Errorf("interface %s: %w", i.Name, err))
				}
				// The descriptor may live on in a machine that is still ending.
				if l, err := h.LinkByIndex(i.tap); err == nil {
					h.LinkDel(l)
				}
			}
			return errors.Join(errs...)
		})
		for _, i := range t.Interfaces {
			i.Tap.Close()
		}
		if err != nil {
			t.err = fmt.Errorf("give back network namespace %s: %w", t.ns.Name(), err)
		}
		t.ns.Close()
	})
	return t.err
}

// inside calls f on a thread that is in the network namespace, with a netlink socket of it.
func inside(ns *os.File, f func(h *netlink.Handle) error) error {
	done := make(chan error, 1)
	go func() {
		// The thread ends with the goroutine, so that nothing else ever runs in the namespace.
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter: %w", err)
			}
			h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return err
			}
			defer h.Close()
			return f(h)
		}()
	}()
	return <-done
}
