// Package kubernetes runs a cluster of one node, unchanged Kubernetes of the version that suite/go.mod names with containerd
// (test/containerd), and Manis as a RuntimeClass of it, as deploy/kubernetes and deploy/containerd give it to users. The programs are
// built from the module proxy once and run on a stage (package stage), in namespaces of their own; all that the tests do, they do by kubectl.
package kubernetes
