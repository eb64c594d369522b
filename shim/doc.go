// Package shim is what containerd starts for a pod: one process with one virtual machine, which
// serves containerd's Task API (version 3, and 2 for containerd 1.x) for every container of the pod. The
// process drives package pod directly; on the host there is nothing else per container but its mounted
// root filesystem.
//
// The container that only keeps a pod's namespaces (CRI's sandbox, "pause") is played here: the machine is made with
// it and ends with it, and nothing of it exists in the guest.
//
// The package knows containerd's protocols. What a bundle means, package bundle knows.
package shim
