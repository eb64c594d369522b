// Package network gives a sandbox its network without any privilege on the host: a small TCP/IP stack in
// the monitor process stands at the other end of the VM's network card and turns the guest's connections
// into ordinary sockets of the monitor, and published host ports into connections to the guest. It is also
// the gate: every frame of the guest passes [policy] before anything else looks at it. The package knows
// nothing of QEMU beyond its stream framing, nothing of containers, and never configures the guest: it
// only says what the agent has to configure ([Addresses]).
package network
