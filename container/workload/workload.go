// Package workload says what a container of a confidential pod is: for an owner, who has the pod's YAML and its images and writes a
// manifest, and for a node, which is asked by containerd. Both must come to the same request, whatever version of
// Kubernetes and containerd is between them. So what a pod cannot say is not taken from containerd but from Manis' own
// defaults, as of a container of the command line; and what of the node would be different each time is left out or
// has a form that the guest checks.
//
// The package starts nothing, and knows neither machines nor how containerd is asked.
package workload

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"manis/api/agent"
	"manis/container"
	"manis/container/spec"
)

// Container is one of a pod.
type Container struct {
	Config  container.Config
	Volumes []Volume
	Files   []File
}

// Volume is an emptyDir: a directory in the machine's memory that containers of the pod share.
type Volume struct {
	Name, Destination string
	ReadOnly          bool
}

// File is one of a ConfigMap, by its content: what changes later does not reach the container.
type File struct {
	Path    string
	Mode    uint32
	Content []byte
}

// Bounds of what a container is given; the agent takes no more.
const (
	maxFiles     = 256
	maxFileBytes = 768 << 10
	maxVolumes   = 64
)

// Places of files that tell of the pod's network.
const (
	HostsFile    = "/etc/hosts"
	ResolverFile = "/etc/resolv.conf"
	hostnameFile = "/etc/hostname"
)

// leftOut are variables that the kubelet gives every container, of a cluster that the owner does not know.
var leftOut = []string{
	"KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "KUBERNETES_SERVICE_PORT_HTTPS", "KUBERNETES_PORT",
	"KUBERNETES_PORT_443_TCP", "KUBERNETES_PORT_443_TCP_PROTO", "KUBERNETES_PORT_443_TCP_PORT", "KUBERNETES_PORT_443_TCP_ADDR",
}

// environment brings variables into one order: the kubelet's is another one each time.
func environment(env []string) []string {
	last := make(map[string]string)
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		last[name] = e
	}
	for _, name := range leftOut {
		delete(last, name)
	}
	list := make([]string, 0, len(last))
	for _, e := range last {
		list = append(list, e)
	}
	slices.Sort(list)
	return list
}

// Request is what the agent is asked for, but for its id, its streams and its root's disk. The node completes two files, see HostsFile and
// ResolverFile; here they are without what is the network's.
func (c *Container) Request(root *agent.Verity) (*agent.CreateContainerRequest, error) {
	cfg := c.Config
	cfg.Scratch = container.Scratch{Memory: true}
	cfg.Process.Env = environment(cfg.Process.Env)
	r, err := spec.Build(&cfg, spec.Environment{Verity: root})
	if err != nil {
		return nil, err
	}
	if len(c.Volumes) > maxVolumes {
		return nil, fmt.Errorf("%d volumes, more than %d", len(c.Volumes), maxVolumes)
	}
	volumes := slices.SortedFunc(slices.Values(c.Volumes), func(a, b Volume) int { return cmp.Compare(a.Destination, b.Destination) })
	for _, v := range volumes {
		options := []string{"rbind", "nosuid", "nodev", "mode=0777"}
		if v.ReadOnly {
			options = append(options, "ro")
		}
		r.Mounts = append(r.Mounts, &agent.Mount{Destination: path.Clean(v.Destination), Type: "bind", Source: "volume-" + v.Name, Options: options})
	}
	if len(c.Files) > maxFiles {
		return nil, fmt.Errorf("%d files, more than %d", len(c.Files), maxFiles)
	}
	size := 0
	files := slices.SortedFunc(slices.Values(c.Files), func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	for _, f := range files {
		if size += len(f.Content); size > maxFileBytes {
			return nil, fmt.Errorf("the files of its ConfigMaps have more than %d bytes", maxFileBytes)
		}
		r.Files = append(r.Files, &agent.File{Path: path.Clean(f.Path), Mode: f.Mode & 0o777, Content: f.Content})
	}
	return r, nil
}

// milliCPUs are the thousandths of a processor of a quota in a period, both in microseconds.
func milliCPUs(quota int64, period uint64) uint64 {
	if quota <= 0 || period == 0 {
		return 0
	}
	return uint64(quota) * 1000 / period
}
