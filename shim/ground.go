package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"manis/bundle"
	"manis/cgroup"
	"manis/host/background"
	"manis/monitor"
	"manis/place"
	"manis/pod"
)

// ground is what a pod has on the host: a directory, and a control group in which the shim and the machine are.
type ground struct {
	pod      *pod.Pod
	operator *pod.Operator
	places   *place.Places
	dir      string
	group    *cgroup.Group
	home     string // the control groups that the shim comes from
	id       string
	hostname string // the pod's, once it has a machine
}

// owner tells the pods of one of containerd's namespaces from others.
func owner(namespace string) string { return "containerd " + namespace }

// newGround makes it for the pod whose first container is that of b, with the machine that has waited for it, if there is one. That is
// the ground's from then on.
func newGround(namespace, id string, b *bundle.Bundle, keep *notebook, waited *monitor.Standby) (_ *ground, err error) {
	if waited != nil {
		defer func() {
			if err != nil {
				waited.Release()
			}
		}()
	}
	places, err := place.Find("", "")
	if err != nil {
		return nil, err
	}
	if err := places.Make(); err != nil {
		return nil, err
	}
	var asked string
	if b.Spec.Linux != nil {
		asked = b.Spec.Linux.CgroupsPath
	}
	path, err := groupPath(namespace, id, asked)
	if err != nil {
		return nil, err
	}
	g := &ground{places: places, id: id, dir: pod.Dir(places, owner(namespace), id), home: cgroup.Own()}
	defer func() {
		if err != nil {
			g.end()
		}
	}()
	if err := keep.write(&note{PID: os.Getpid(), Dir: g.dir, Group: path}); err != nil {
		return nil, err
	}
	if err := pod.MakeDir(g.dir); err != nil {
		return nil, err
	}
	if g.group, err = cgroup.Make(cgroup.Config{Path: path, Account: true}); err == nil {
		err = g.group.Join(os.Getpid())
	}
	if err == nil && waited != nil {
		err = g.group.Join(waited.Sandbox().VM().Info().PID)
	}
	if err != nil {
		return nil, fmt.Errorf("put the pod into its control group %s: %w", path, err)
	}
	// What is exercised in the background outlives the pod.
	os.Setenv(background.GroupsVariable, g.home)
	g.pod = pod.New(places, g.dir)
	g.operator = g.pod.Operate(pod.Whose(namespace, id, b.Spec.Annotations))
	if waited != nil {
		g.pod.Use(waited)
	}
	return g, nil
}

// groupPath is the control group of a pod's side on the host.
func groupPath(namespace, id, asked string) (string, error) {
	switch {
	case asked == "":
		return filepath.Join("/manis", namespace, id), nil
	case strings.Contains(asked, ":"):
		path, err := cgroup.Expand(asked)
		if err != nil {
			return "", fmt.Errorf("config.json: linux.cgroupsPath: %w", err)
		}
		return path, nil
	}
	return asked, nil
}

// end ends the machine and removes what there is.
func (g *ground) end() error {
	var errs []error
	if g.pod != nil {
		g.pod.End()
		g.operator.Close()
	}
	if g.group != nil {
		errs = append(errs, cgroup.Return(os.Getpid(), g.home), g.group.Remove())
	}
	errs = append(errs, os.RemoveAll(g.dir))
	return errors.Join(errs...)
}

// pid is the process that stands on the host for what is in the machine: its VMM.
func (g *ground) pid() uint32 {
	info := g.pod.Info()
	if info == nil {
		return 0
	}
	return uint32(info.PID)
}

// machineOf is the machine that a pod's first container asks for: by its own limits, or, where it only keeps the pod's
// namespaces, by those of all that come later.
func machineOf(b *bundle.Bundle) (*pod.Machine, error) {
	if roleOf(b.Spec.Annotations).pause {
		limits, err := podLimits(b.Spec.Annotations)
		if err != nil {
			return nil, err
		}
		// Its own are nobody's: nothing of it is in the machine.
		if b.Spec.Linux == nil {
			b.Spec.Linux = new(specs.Linux)
		}
		b.Spec.Linux.Resources = limits
	}
	plan, err := b.Plan(bundle.Environment{Disks: true, Maps: true})
	if err != nil {
		return nil, err
	}
	if err := checkNetwork(plan); err != nil {
		return nil, err
	}
	return &pod.Machine{
		Resources: plan.Resources, Accel: b.Spec.Annotations["manis.accel"], Boot: b.Spec.Annotations["manis.boot"], Netns: plan.Net.Path,
		Hostname: plan.Create.Hostname, Domainname: plan.Create.Domainname, Sysctls: plan.Create.Sysctls,
	}, nil
}

// boot makes the machine for a pod whose containers come later, as the configuration of the container that would
// keep its namespaces asks for it.
func (g *ground) boot(ctx context.Context, b *bundle.Bundle) error {
	m, err := machineOf(b)
	if err != nil {
		return err
	}
	if err := permitPod(g.places, b, m.Resources.MemoryBytes, m.Resources.MilliCPUs); err != nil {
		return err
	}
	g.hostname = m.Hostname
	if m.Trust, err = trustOf(b.Spec.Annotations); err != nil {
		return err
	}
	if m.Trust != nil {
		if m.Bundle, err = bundleOf(g.places, g.id); err != nil {
			return err
		}
	}
	if err := g.pod.Boot(ctx, m); err != nil {
		return err
	}
	if m.Trust != nil {
		return nil // nobody forwards ports into it
	}
	// An old kernel is no reason to be without the pod.
	if err := g.pod.ForwardLocal(); err != nil {
		fmt.Fprintf(os.Stderr, "kubectl port-forward will not work: %s\n", pod.Text(err))
	}
	return nil
}

// errBlockIO: a pod's control group is the one to limit, which Kubernetes and containerd do not.
var errBlockIO = errors.New("linux.resources.blockIO: the containers of a pod share one machine, which does their input and output together: " +
	"limit the pod's control group on the host")

// checkNetwork refuses the host's network.
func checkNetwork(plan *bundle.Plan) error {
	if own := (bundle.Namespace{}); plan.Net != own && !isHosts(plan.Net.Path) {
		return nil
	}
	return errors.New("the host's network was asked for (hostNetwork, --net-host): a container in a virtual machine cannot have the host's " +
		"interfaces; give it a network namespace, or run it with another runtime")
}

func isHosts(path string) bool {
	if path == "" {
		return false
	}
	a, errA := os.Stat(path)
	b, errB := os.Stat("/proc/self/ns/net")
	return errA == nil && errB == nil && os.SameFile(a, b)
}

// podLimits are the limits of all containers of a pod together, which containerd's CRI plugin writes into
// annotations where all of them have one.
func podLimits(annotations map[string]string) (*specs.LinuxResources, error) {
	number := func(name string) (*int64, error) {
		name = "io.kubernetes.cri.sandbox-" + name
		text := annotations[name]
		if text == "" {
			return nil, nil
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("annotation %s: %.40q is not a number", name, text)
		}
		return &n, nil
	}
	memory, err := number("memory")
	if err != nil {
		return nil, err
	}
	quota, err := number("cpu-quota")
	if err != nil {
		return nil, err
	}
	period, err := number("cpu-period")
	if err != nil {
		return nil, err
	}
	r := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: memory}, CPU: &specs.LinuxCPU{Quota: quota}}
	if period != nil && *period > 0 {
		p := uint64(*period)
		r.CPU.Period = &p
	}
	return r, nil
}

// joins says whose namespaces a container of a pod has. They are given by paths of what stands for the others on
// the host: the machine for the pod's own, others by their process ids.
func (g *ground) joins(namespaces []specs.LinuxNamespace, others map[string]uint32, r *pod.CreateRequest) error {
	for _, ns := range namespaces {
		if ns.Path == "" || ns.Type == specs.NetworkNamespace || ns.Type == specs.UserNamespace {
			continue // a machine has one network, and a user namespace is made anew with the same ids
		}
		machine := procPath(ns.Path, g.pid())
		switch {
		case ns.Type == specs.IPCNamespace && machine:
			r.ShareIPC = true
		case ns.Type == specs.UTSNamespace && machine:
			r.ShareUTS = true
		case ns.Type == specs.PIDNamespace && machine:
			r.SharePID = true
		default:
			into := map[specs.LinuxNamespaceType]*string{specs.IPCNamespace: &r.JoinIPC, specs.UTSNamespace: &r.JoinUTS, specs.PIDNamespace: &r.JoinPID}[ns.Type]
			for id, pid := range others {
				if into != nil && procPath(ns.Path, pid) {
					*into = id
				}
			}
			if into == nil || *into == "" {
				return fmt.Errorf("config.json: linux.namespaces: the %s namespace %s is not one of this pod's, and a virtual machine cannot have another", ns.Type, ns.Path)
			}
		}
	}
	return nil
}
