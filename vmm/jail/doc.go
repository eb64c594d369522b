// Package jail starts a process in a place where there is nothing but what it was
// given: an empty root of its own with the program, the shared libraries that it
// needs and the files named, all read-only; own user, mount, PID, IPC, UTS,
// network and cgroup namespaces; a user of its own; no capability; no way to gain one; a list of
// system calls; limits; and descriptors instead of paths. It works for root and for ordinary users
// alike, and what it claims to be in force it has read back from /proc of the
// running process.
//
// The package knows how to confine a program. It does not know which program it is,
// nor what a virtual machine is.
package jail
