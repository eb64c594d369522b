package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Change is what has become of a namespace since it was taken, or followed before.
type Change struct {
	// Added are interfaces that lead into the machine now: plug their cards in before the agent is told.
	Added []Interface
	// Removed are interfaces that are no more, whose cards can be unplugged when the agent has been told: they are not
	// in Guest. A card that the machine began with cannot: it stays, and leads nowhere.
	Removed []Interface
}

// Follow looks at the namespace again. Interfaces that have come get a tap device each, those that have gone lose
// theirs, and Guest is what is there now. changed is false where that is what it was. With an error nothing has changed.
// It must not be called by two at once.
func (t *Taken) Follow() (c Change, changed bool, err error) {
	err = inside(t.ns, func(h *netlink.Handle) error {
		links, err := candidates(h)
		if err != nil {
			return err
		}
		links = slices.DeleteFunc(links, func(l netlink.Link) bool { return t.refused[l.Attrs().Index] })
		guest, err := describe(h, links)
		if err != nil {
			return err
		}
		before := slices.Clone(t.Interfaces)
		for n := range t.Interfaces {
			i := &t.Interfaces[n]
			if l := find(links, i.index); l != nil {
				i.Name, i.MTU = l.Attrs().Name, l.Attrs().MTU
			} else {
				c.Removed = append(c.Removed, *i)
			}
		}
		was := t.Guest
		t.Guest = guest
		// What was added is undone; what was there stays.
		undo := func() {
			for _, i := range t.Interfaces[len(before):] {
				i.leave(h)
			}
			t.Interfaces, t.Guest, c = before, was, Change{}
		}
		for _, l := range links {
			known := slices.ContainsFunc(before, func(i Interface) bool { return i.index == l.Attrs().Index })
			if known || l.Attrs().RawFlags&unix.IFF_LOOPBACK != 0 {
				continue
			}
			if err := t.add(h, l); err != nil {
				undo()
				return fmt.Errorf("interface %s: %w", l.Attrs().Name, err)
			}
			c.Added = append(c.Added, t.Interfaces[len(t.Interfaces)-1])
		}
		if err := t.spareTagged(h, links); err != nil {
			undo()
			return err
		}
		t.Interfaces = slices.DeleteFunc(t.Interfaces, func(i Interface) bool { return find(links, i.index) == nil })
		t.complete(guest)
		changed = len(c.Added)+len(c.Removed) > 0 || !proto.Equal(was, guest)
		return nil
	})
	if err != nil {
		return Change{}, false, fmt.Errorf("follow network namespace %s: %w", t.ns.Name(), err)
	}
	for _, i := range c.Removed {
		i.Tap.Close()
	}
	return c, changed, nil
}

// Refuse gives an interface back to the namespace that the machine cannot have, for as long as it is there.
func (t *Taken) Refuse(refused Interface) error {
	err := inside(t.ns, func(h *netlink.Handle) error { return refused.leave(h) })
	if t.refused == nil {
		t.refused = make(map[int]bool)
	}
	t.refused[refused.index] = true
	t.Interfaces = slices.DeleteFunc(t.Interfaces, func(i Interface) bool { return i.index == refused.index })
	if err != nil {
		return fmt.Errorf("give back interface %s: %w", refused.Name, err)
	}
	return nil
}

func find(links []netlink.Link, index int) netlink.Link {
	for _, l := range links {
		if l.Attrs().Index == index {
			return l
		}
	}
	return nil
}

const (
	// settleTime is how long a namespace must be quiet to be looked at: engines set up an interface in several steps.
	settleTime = 50 * time.Millisecond
	// restlessTime is how long that is waited for.
	restlessTime = time.Second
)

// Watch calls changed after something has been changed in the namespace, until ctx is done. What Follow itself does
// there counts as well.
func (t *Taken) Watch(ctx context.Context, changed func()) error {
	fail := func(err error) error { return fmt.Errorf("watch network namespace %s: %w", t.ns.Name(), err) }
	fd := -1
	err := Do(t.ns, func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		const groups = unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR |
			unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE | unix.RTMGRP_IPV4_RULE
		if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
			unix.Close(fd)
			return os.NewSyscallError("bind", err)
		}
		return nil
	})
	if err != nil {
		return fail(err)
	}
	events := os.NewFile(uintptr(fd), "netlink")
	defer events.Close()
	stop := context.AfterFunc(ctx, func() { events.Close() })
	defer stop()
	b := make([]byte, 32<<10)
	// heard waits for a message until the deadline; what it says is looked up, so a lost one does no harm.
	heard := func(deadline time.Time) (bool, error) {
		events.SetReadDeadline(deadline)
		_, err := events.Read(b)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return false, nil
		case err == nil, errors.Is(err, unix.ENOBUFS):
			return true, nil
		}
		return false, err
	}
	for {
		more, err := heard(time.Time{})
		for end := time.Now().Add(restlessTime); more && err == nil && time.Now().Before(end); {
			more, err = heard(time.Now().Add(settleTime))
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fail(err)
		}
		changed()
	}
}
