// Package checkpoint saves a running process and continues it any number of
// times, each time in a new process that runs on where the saved one stood: with its
// memory mapped copy on write from one file, its threads, and new descriptors in place of the
// old ones. An emulated machine continued this way has its guest's code translated already, and
// neither a dynamic loader nor QEMU's own start is in its way.
//
// The saved process is stopped and read by ptrace(2). What comes of it are two files: the
// pages, and a small static program, the resumer, which is nothing but a list of
// system calls that put everything back and a loop that performs them. To continue the process is
// to execute the resumer with the given descriptors in place; no privilege is needed for it, and what
// confines the resumer confines the process. The method is that of CRIU (criu.org),
// for one kind of process: x86-64, one process, no privilege, all of its descriptors
// either given or of kinds that have no state of their own.
//
// A saved process is bound to the boot of the host's kernel under which it was saved: to its
// clock, its vDSO and its system calls. It keeps its addresses, so processes that
// come from one checkpoint share one layout.
package checkpoint
