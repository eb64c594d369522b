package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"manis/api/agent"
	"manis/monitor"
	usernet "manis/network"
	"manis/network/egress"
	"manis/network/netns"
	"manis/sandbox"
	"manis/vmm"
)

// network is a network namespace that leads into the machine.
type network struct {
	pod     *Pod
	taken   *netns.Taken
	stop    context.CancelFunc
	watched sync.WaitGroup

	mu sync.Mutex
	// told is false while the machine has not got what was last found in the namespace.
	told bool
	// leaving are the hardware addresses of cards that the guest has yet to let go of.
	leaving []string
}

// connect makes the machine that config describes take over what is in a network namespace. Its first card is there from
// the beginning; the others are plugged in by follow.
func (p *Pod) connect(path string, config *sandbox.Config) error {
	if path == "" {
		return nil
	}
	s, err := newServers(path)
	if err != nil {
		return err
	}
	p.servers = s
	p.releases = append(p.releases, s.close)
	var spare *netns.Spare
	if p.waited != nil {
		spare = p.waited.Spare()
	}
	taken, err := netns.TakeWith(s.ns, spare)
	if err != nil {
		return fmt.Errorf("take over the container's network: %w", err)
	}
	p.releases = append(p.releases, func() {
		if err := taken.Release(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	})
	p.network = &network{pod: p, taken: taken, told: len(taken.Interfaces) < 2}
	config.Setup.Network = taken.Guest
	if len(taken.Interfaces) > 0 {
		first := taken.Interfaces[0]
		config.VM.NIC = &vmm.NIC{MAC: first.Card, Tap: first.Tap}
	}
	if !p.network.told {
		config.Setup.Network = &agent.Network{Interfaces: slices.DeleteFunc(slices.Clone(taken.Guest.Interfaces), func(i *agent.Interface) bool {
			return i.Plugged
		})}
	}
	if len(taken.Interfaces) == 0 && spare == nil {
		// The saved machines that have rehearsed with roots like ours have a tap; the agent takes the card away.
		if spare, err := netns.NewSpare(); err == nil {
			p.releases = append(p.releases, spare.Close)
			config.VM.NIC = &vmm.NIC{MAC: spareMAC, Tap: spare.Tap}
		}
	}
	return nil
}

// spareMAC is the hardware address of a card that nobody sees.
const spareMAC = "02:00:00:00:00:01"

// connectUser gives the machine the user-mode network, by which it reaches what the host reaches but for the host
// itself, and what name servers a resolv.conf names on the host's loopback.
func (p *Pod) connectUser(ctx context.Context, config *sandbox.Config, rules [][]string) error {
	var lists []egress.Rules
	for _, texts := range rules {
		l, err := egress.ParseList(texts)
		if err != nil {
			return err
		}
		lists = append(lists, l)
	}
	s, err := newServers("/proc/self/ns/net")
	if err != nil {
		return err
	}
	p.servers = s
	p.releases = append(p.releases, s.close)
	stack, err := usernet.New(ctx, usernet.Config{Egress: lists})
	if err != nil {
		return fmt.Errorf("make the container's network: %w", err)
	}
	p.releases = append(p.releases, func() { stack.Close() })
	guest := stack.Guest()
	config.Setup.Network = monitor.GuestNetwork(&guest)
	config.MAC, config.Attach = guest.MAC.String(), stack.Serve
	return nil
}

// begin plugs the other cards into the machine that has started, and from then on lets it follow the namespace.
func (n *network) begin(ctx context.Context) error {
	if !n.told {
		if err := n.give(ctx, n.taken.Interfaces[1:], nil); err != nil {
			return err
		}
	}
	ctx, n.stop = context.WithCancel(context.Background())
	n.watched.Go(func() {
		err := n.taken.Watch(ctx, func() {
			// An engine's name server comes with a network.
			if err := errors.Join(n.follow(ctx), n.pod.resolveAll(ctx)); err != nil && ctx.Err() == nil {
				fmt.Fprintln(os.Stderr, err)
			}
		})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	})
	// Before the namespace is given back.
	n.pod.releases = append(n.pod.releases, func() {
		n.stop()
		n.watched.Wait()
	})
	return nil
}

// changeTime bounds what the guest may take to get or lose a card.
const changeTime = 20 * time.Second

// follow makes the machine have what is in the namespace now.
func (n *network) follow(ctx context.Context) error {
	if n == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, changeTime)
	defer cancel()
	n.mu.Lock()
	defer n.mu.Unlock()
	change, changed, err := n.taken.Follow()
	if err != nil {
		return err
	}
	if !changed && n.told {
		return nil
	}
	n.told = false
	return n.give(ctx, change.Added, change.Removed)
}

// give plugs in the cards of what has come to the namespace, tells the agent, and unplugs those of what has gone. What
// cannot be plugged in stays out of the machine, and is an error.
func (n *network) give(ctx context.Context, added, removed []netns.Interface) error {
	vm := n.pod.sandbox.VM()
	var errs []error
	for _, i := range added {
		if err := vm.Plug(ctx, vmm.NIC{MAC: i.Card, Tap: i.Tap}); err != nil {
			errs = append(errs, fmt.Errorf("interface %s: %w", i.Name, err), n.taken.Refuse(i))
		}
	}
	if len(errs) > 0 {
		if _, _, err := n.taken.Follow(); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	if _, err := n.pod.sandbox.Agent().Connect(ctx, n.taken.Guest); err != nil {
		return errors.Join(append(errs, fmt.Errorf("change the machine's network: %w", err))...)
	}
	n.told = true
	n.pod.mu.Lock()
	n.pod.setup.Network = n.taken.Guest // for another session
	n.pod.mu.Unlock()
	for _, i := range removed {
		if i.Plugged {
			n.leaving = append(n.leaving, i.Card)
		}
	}
	n.leaving = slices.DeleteFunc(n.leaving, func(mac string) bool {
		err := vm.Unplug(ctx, mac)
		if err != nil {
			errs = append(errs, err)
		}
		return err == nil || errors.Is(err, vmm.ErrConfig)
	})
	return errors.Join(errs...)
}
