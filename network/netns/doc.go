// Package netns hands over to a virtual machine what an engine has put into a network namespace of the
// host. CNI plugins, netavark, libnetwork, slirp4netns and pasta make interfaces in a namespace, give them
// addresses and routes, and expect a process in there to use them. Here the process is in a guest: every
// interface gets a tap device beside it, the kernel carries all frames from one to the other, and the
// guest's card is at the tap's other end with the interface's own hardware address, addresses and
// routes. The namespace keeps them as well, for the engine's inspection and teardown, but its own
// stack sees no frame any more and so answers nothing.
//
// The package knows nothing of engines, of QEMU beyond its stream framing, and of containers. It
// configures only the host's side; what the agent has to configure is [Taken.Guest].
package netns
