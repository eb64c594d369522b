package shim

import (
	"context"
	"encoding/json"
	"os"

	"manis/bundle"
	declared "manis/container"
	"manis/monitor"
	"manis/place"
	"manis/pod"
)

// claim gives the pod whose first container's bundle is the working directory to a process that waits with a machine for it. It
// returns that process and the machine's. Without one the pool hears that it was missed.
func claim(ctx context.Context, o *order, socket *os.File) (pids []int, ok bool) {
	places, err := place.Find("", "")
	if err != nil {
		return nil, false
	}
	if _, err := os.Stat(places.Pool()); err != nil {
		return nil, false // most hosts have none
	}
	size := claimable(o.Bundle)
	if size == nil {
		return nil, false
	}
	words, err := openWords()
	if err != nil {
		return nil, false
	}
	defer words.Close()
	c := &monitor.PodClaim{Dir: pod.Dir(places, owner(o.Namespace), o.ID), Listener: socket}
	if c.Order, err = json.Marshal(o); err != nil {
		return nil, false
	}
	if pids, ok = monitor.ClaimPod(ctx, places, size, c, words); !ok {
		monitor.MissedPod(places, size)
	}
	return pids, ok
}

// claimable says which machine a pod needs as far as those that wait differ; nil: it can have none of them. What is
// wrong with the bundle is said when the container is made.
func claimable(dir string) *declared.Config {
	b, err := bundle.Load(dir)
	if err != nil || b.Spec.Annotations[manifestAnnotation] != "" {
		return nil // a confidential one boots
	}
	m, err := machineOf(b)
	if err != nil || m.Boot != "" && m.Boot != "auto" {
		return nil
	}
	return &declared.Config{Accel: m.Accel, Resources: m.Resources}
}
