package oci

import (
	"fmt"
	"path"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"manis/cgroup"
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
	parts := strings.Split(asked, ":")
	if len(parts) != 3 || parts[2] == "" {
		return "", fmt.Errorf("config.json: linux.cgroupsPath: expected SLICE:PREFIX:NAME with --systemd-cgroup, got %q", asked)
	}
	slice := parts[0]
	if slice == "" {
		slice = "system.slice"
	}
	dir, err := expandSlice(slice)
	if err != nil {
		return "", fmt.Errorf("config.json: linux.cgroupsPath: %w", err)
	}
	unit := parts[2]
	if !strings.HasSuffix(unit, ".slice") {
		unit += ".scope"
	}
	if parts[1] != "" {
		unit = parts[1] + "-" + unit
	}
	return path.Join(dir, unit), nil
}

// expandSlice is the path of a slice's control group: a-b.slice lies in a.slice (systemd.slice(5)).
func expandSlice(slice string) (string, error) {
	name, ok := strings.CutSuffix(slice, ".slice")
	if !ok || name == "" || strings.Contains(name, "/") {
		return "", fmt.Errorf("invalid slice name: %s", slice)
	}
	if name == "-" {
		return "/", nil
	}
	dir, prefix := "/", ""
	for part := range strings.SplitSeq(name, "-") {
		if part == "" {
			return "", fmt.Errorf("invalid slice name: %s", slice)
		}
		prefix += part
		dir = path.Join(dir, prefix+".slice")
		prefix += "-"
	}
	return dir, nil
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
// the guest, so that what the machine does for it counts, too. It is called when the machine has started: that
// shall not take longer for a container with little. The other limits would hit the monitor itself, which has
// memory and threads besides those of the guest.
func limitGroup(g *cgroup.Group, annotations map[string]string, cpu *specs.LinuxCPU) error {
	if cpu == nil || isSandbox(annotations) {
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
			err = g.LiftCPU()
		}
		if err != nil {
			return fmt.Errorf("lift the limits of container %s on the host: %w", st.ID, err)
		}
	}
	return nil
}

// updateGroup changes the limits of a container that is alone in its machine.
func (a *app) updateGroup(st *state, cpu *specs.LinuxCPU) error {
	if st.Group == "" || cpu == nil {
		return nil
	}
	states, err := a.store.all()
	if err != nil {
		return err
	}
	for _, other := range states {
		if other.Pod == st.Pod && other.ID != st.ID {
			return nil
		}
	}
	g, err := cgroup.Find(cgroup.Config{Path: st.Group})
	if err != nil {
		return err
	}
	return limitGroup(g, st.Annotations, cpu)
}

// removeGroup removes what makeGroup has made. What others have put into it stays.
func removeGroup(path string) {
	if g, err := cgroup.Find(cgroup.Config{Path: path}); path != "" && err == nil {
		g.Remove()
	}
}
