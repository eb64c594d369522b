package oci

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"manis/bundle"
	"manis/cgroup"
	"manis/container"
	"manis/container/spec"
)

// groupPath is the control group that a container's host side is in: that of cgroupsPath, which under
// --systemd-cgroup is SLICE:PREFIX:NAME, or one of our own.
func (a *app) groupPath(id, asked string) (string, error) {
	switch {
	case asked == "" && hostRoot():
		return "/manis/" + id, nil
	case asked == "":
		return "manis/" + id, nil // below the caller's own: no other may be ours
	case !a.systemdCgroup && !strings.Contains(asked, ":"):
		return asked, nil
	}
	group, err := cgroup.Expand(asked)
	if err != nil {
		return "", fmt.Errorf("config.json: linux.cgroupsPath: %w", err)
	}
	return group, nil
}

// makeGroup makes it and puts processes there. A host that does not permit it is no error unless the
// group was asked for by root.
func makeGroup(path string, asked bool, pids ...int) (*cgroup.Group, error) {
	g, err := cgroup.Make(cgroup.Config{Path: path, Account: true})
	if err == nil {
		for _, pid := range pids {
			if err = g.Join(pid); err != nil {
				g.Remove()
				break
			}
		}
	}
	if err == nil {
		return g, nil
	}
	if asked && hostRoot() {
		return nil, fmt.Errorf("put the container into its control group %s: %w", path, err)
	}
	return nil, nil
}

// limitGroup puts a machine's processes under the limits of its container's CPUs that the container has in
// the guest, so that what the machine does for it counts, too, and bounds their memory by the machine's with what it needs of
// the host's. It is called when the machine has started: that
// shall not take longer for a container with little. The other limits would hit the monitor itself, which has
// threads besides those of the guest.
func limitGroup(g *cgroup.Group, annotations map[string]string, resources *specs.LinuxResources) error {
	if resources == nil || isSandbox(annotations) {
		return nil
	}
	if m := resources.Memory; m != nil && m.Limit != nil && *m.Limit > 0 {
		// As large as the machine was made for this limit. A later one does not make it smaller.
		bytes, _, err := spec.Machine(&container.Config{Resources: container.Resources{MemoryBytes: uint64(*m.Limit)}})
		if err != nil {
			return err
		}
		if err := g.LimitMemory(bytes + spec.HostOverhead); err != nil {
			return err
		}
	}
	cpu := resources.CPU
	if cpu == nil {
		return nil
	}
	limit := cgroup.CPU{CPUs: cpu.Cpus, Mems: cpu.Mems}
	if cpu.Shares != nil {
		limit.Shares = *cpu.Shares
	}
	if cpu.Quota != nil {
		limit.QuotaUs = *cpu.Quota
	}
	if cpu.Period != nil {
		limit.PeriodUs = *cpu.Period
	}
	return g.LimitCPU(limit)
}

// limitBlockIO limits what a machine does with the host's disks. No other place could: in the guest there are no disks of the
// host's. So it is an error where it cannot be done, also for a container whose machine is that of others as well.
func limitBlockIO(g *cgroup.Group, limits *cgroup.BlockIO, shared bool) error {
	switch {
	case limits == nil:
		return nil
	case shared:
		return errors.New("the container is in the machine of others, which does their input and output together: limit the first one, or the pod's control group")
	case g == nil:
		return errors.New("there is no control group on the host that could be limited (may this user make one?)")
	}
	return g.LimitBlockIO(*limits)
}

// isSandbox recognises a container that only keeps the namespaces of a pod. Its limits are not the pod's, whose
// containers are in the same machine: a pod's are those of a control group above.
func isSandbox(annotations map[string]string) bool {
	return annotations["io.kubernetes.cri.container-type"] == "sandbox" || annotations["io.kubernetes.cri-o.ContainerType"] == "sandbox"
}

// liftLimits takes the limits on the host away from a pod that gets a further container: they were
// those of the first one alone. In the guest each has its own.
func (a *app) liftLimits(dir string) error {
	states, err := a.store.all()
	if err != nil {
		return err
	}
	for _, st := range states {
		if st.Pod != dir || st.Group == "" {
			continue
		}
		g, err := cgroup.Find(cgroup.Config{Path: st.Group})
		if err == nil {
			err = errors.Join(g.LiftCPU(), g.LimitMemory(0))
		}
		if err != nil {
			return fmt.Errorf("lift the limits of container %s on the host: %w", st.ID, err)
		}
	}
	return nil
}

// updateGroup changes limits on the host: of CPUs only for a container that is alone in its machine.
func (a *app) updateGroup(st *state, r *specs.LinuxResources) error {
	io, err := bundle.BlockIO(r.BlockIO)
	if err != nil {
		return fmt.Errorf("update: blockIO.%w", err)
	}
	if io == nil && (st.Group == "" || r.CPU == nil) {
		return nil
	}
	states, err := a.store.all()
	if err != nil {
		return err
	}
	shared := slices.ContainsFunc(states, func(o *state) bool { return o.Pod == st.Pod && o.ID != st.ID })
	var g *cgroup.Group
	if st.Group != "" {
		if g, err = cgroup.Find(cgroup.Config{Path: st.Group}); err != nil {
			return err
		}
	}
	if err := limitBlockIO(g, io, shared); err != nil {
		return fmt.Errorf("update: blockIO: %w", err)
	}
	if shared || g == nil || r.CPU == nil {
		return nil
	}
	if err := limitGroup(g, st.Annotations, &specs.LinuxResources{CPU: r.CPU}); err != nil && hostRoot() {
		return err
	}
	return nil
}

// removeGroup removes what makeGroup has made. What others have put into it stays.
func removeGroup(path string) {
	if g, err := cgroup.Find(cgroup.Config{Path: path}); path != "" && err == nil {
		g.Remove()
	}
}
