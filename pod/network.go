package pod

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"manis/network/netns"
	"manis/sandbox"
	"manis/trace"
)

// network makes the machine take over what is in a network namespace.
func (p *Pod) network(ctx context.Context, path string, config *sandbox.Config) error {
	if path == "" {
		return nil
	}
	_, span := trace.Start(ctx, "network")
	defer span.End()
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the container's network namespace: %w", err)
	}
	defer ns.Close()
	taken, err := netns.Take(ns)
	if err != nil {
		return fmt.Errorf("take over the container's network: %w", err)
	}
	p.releases = append(p.releases, func() {
		if err := taken.Release(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	})
	config.Setup.Network = taken.Guest
	switch len(taken.Interfaces) {
	case 0:
		return nil
	case 1:
	default:
		return errors.New("the container's network namespace has more than one interface")
	}
	card := taken.Interfaces[0]
	config.MAC = card.MAC
	config.Attach = func(ctx context.Context, conn net.Conn) error { return netns.Relay(ctx, card.Tap, conn) }
	return nil
}
