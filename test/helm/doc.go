// Package helm compares what Helm makes of deploy/helm with the plain manifests of deploy/kubernetes. Helm is built from the
// module proxy, once.
package helm
