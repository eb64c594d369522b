// Package launch starts a process through a list of system calls that the
// child performs between clone and execve: mounts, namespaces, identities,
// capabilities, limits, seccomp. The list is prepared by the parent, so the
// child runs no Go code that could allocate, and no second program is needed to set
// a process up: not a helper on the host to jail a VMM, not a re-executed agent
// in the guest. Under emulation, where code that runs for the first time is slow,
// that is most of the cost of a start.
//
// The package knows system calls. It knows neither containers nor VMMs.
package launch
