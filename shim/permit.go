package shim

import (
	"github.com/opencontainers/runtime-spec/specs-go"

	"manis/bundle"
	"manis/place"
	"manis/policy"
)

// permitPod refuses a pod's machine that the operator's policy does not allow. Nothing of an image is executed for the pod
// itself.
func permitPod(places *place.Places, b *bundle.Bundle, memoryBytes, milliCPUs uint64) error {
	asked, err := b.Egress()
	if err != nil {
		return err
	}
	p, err := policy.Load(places.Policy())
	if err != nil {
		return err
	}
	return bundle.Check(p, &policy.Request{
		Engine:  &policy.Engine{NoImage: true},
		Network: &policy.Network{Mode: "namespace", Egress: asked},
		Sizes:   &policy.Amounts{MemoryBytes: memoryBytes, MilliCPUs: milliCPUs},
	})
}

// permit refuses a container that the operator's policy does not allow, and says what is allowed of the host's files as
// bundle.Permit does. The network of one in a pod is the pod's.
func permit(g *ground, b *bundle.Bundle, plan *bundle.Plan, id string) (*bundle.Allowed, error) {
	asked, err := b.Egress()
	if err != nil {
		return nil, err
	}
	p, err := policy.Load(g.places.Policy())
	if err != nil {
		return nil, err
	}
	sandbox := roleOf(b.Spec.Annotations).sandbox
	var network *policy.Network
	if sandbox == "" || asked != nil {
		network = &policy.Network{Mode: "namespace", Egress: asked}
	}
	return b.Permit(p, plan, policy.Engine{ID: id, Sandbox: sandbox, Pod: podUID(b.Spec.Annotations), Dir: g.dir}, network)
}

// permitExec refuses a further process that the operator's policy does not allow.
func permitExec(places *place.Places, process *specs.Process) error {
	p, err := policy.Load(places.Policy())
	if err != nil {
		return err
	}
	return p.Check(bundle.RequestExec(process))
}

// podUID is the id that Kubernetes gives the pod, as containerd's CRI plugin says it, or CRI-O.
func podUID(annotations map[string]string) string {
	for _, name := range []string{"io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"} {
		if uid := annotations[name]; uid != "" {
			return uid
		}
	}
	return ""
}
