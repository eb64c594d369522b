// Package pod owns one virtual machine and the containers of one pod in it, each made
// from an OCI runtime bundle. A single container is a pod of one.
//
// Who has a pod in its own process calls the methods of Pod, and gives for each process of the guest an
// Attendant: its streams and who hears of its end. What follows is the other form, that of an OCI runtime.
//
// There a pod is a process of its own, which lives from the creation of its first container to
// the end of its last one. Front ends (the OCI runtime's verbs) come and go; they reach it by a
// socket that only its user may open, and hand it the descriptors that a container's
// streams are. For each container and each further process there is a proxy on the host: a process
// whose life is that of the process in the guest, for callers that wait for process ids.
//
// The package knows neither flags nor state directories: front ends do.
package pod
