package pod

import (
	"fmt"
	"os"

	"manis/network/netns"
	"manis/sandbox"
	"manis/vmm"
)

// network makes the machine take over what is in a network namespace.
func (p *Pod) network(path string, config *sandbox.Config) error {
	if path == "" {
		return nil
	}
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
	for n, i := range taken.Interfaces {
		nic := vmm.NIC{MAC: i.MAC, Tap: i.Tap}
		if n == 0 {
			config.VM.NIC = &nic
		} else {
			config.VM.MoreNICs = append(config.VM.MoreNICs, nic)
		}
	}
	return nil
}
