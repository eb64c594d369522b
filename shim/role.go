package shim

// role is what a container is in its pod, as its annotations say.
type role struct {
	// pause is set for the container that only keeps a pod's namespaces.
	pause bool
	// sandbox is the id of the pod's; empty: the container is alone.
	sandbox string
}

// roleOf reads the annotations of containerd's CRI plugin, and of CRI-O.
func roleOf(annotations map[string]string) role {
	for _, names := range []struct{ kind, sandbox string }{
		{"io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"},
		{"io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"},
	} {
		if id := annotations[names.sandbox]; id != "" {
			return role{pause: annotations[names.kind] == "sandbox", sandbox: id}
		}
	}
	return role{}
}
