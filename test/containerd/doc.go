// Package containerd runs containerd, unchanged and of the version that suite/go.mod names, with Manis as a runtime of
// it: by ctr, its own command line, and by CRI, as the kubelet does. It is built from the module proxy once per
// version, started by the tests on a stage (package stage), and ends with it.
package containerd
