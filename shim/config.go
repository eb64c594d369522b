package shim

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// sandboxConfig is what a pod is asked to be by the Sandbox API. What containerd otherwise makes of it for the container that
// keeps a pod's namespaces is made here.
type sandboxConfig struct{ *cri.PodSandboxConfig }

// readSandbox reads what CRI hands over; without it the pod is one with nothing special.
func readSandbox(options *anypb.Any) (sandboxConfig, error) {
	c := sandboxConfig{new(cri.PodSandboxConfig)}
	if options.GetTypeUrl() == "" {
		return c, nil
	}
	if !isSandboxConfig(options.TypeUrl) {
		return c, fmt.Errorf("the sandbox's options are a %.80q and not a PodSandboxConfig: %w", options.TypeUrl, errdefs.ErrInvalidArgument)
	}
	if err := proto.Unmarshal(options.Value, c.PodSandboxConfig); err != nil {
		return c, fmt.Errorf("read the sandbox's configuration: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return c, nil
}

// spec is the configuration of a container that would keep the pod's namespaces.
func (c sandboxConfig) spec(id, netns string) *specs.Spec {
	s := &specs.Spec{
		Version: specs.Version, Hostname: c.hostname(),
		Process: &specs.Process{Cwd: "/", Args: []string{"pause"}}, Root: &specs.Root{Path: "rootfs"},
		Annotations: map[string]string{"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": id},
		Linux:       &specs.Linux{Sysctl: c.GetLinux().GetSysctls(), CgroupsPath: c.group(id)},
	}
	if m := c.GetMetadata(); m != nil {
		s.Annotations["io.kubernetes.cri.sandbox-namespace"], s.Annotations["io.kubernetes.cri.sandbox-name"] = m.Namespace, m.Name
	}
	for name, value := range c.GetAnnotations() {
		if strings.HasPrefix(name, "manis.") {
			s.Annotations[name] = value
		}
	}
	r := c.GetLinux().GetResources()
	for name, n := range map[string]int64{"memory": r.GetMemoryLimitInBytes(), "cpu-quota": r.GetCpuQuota(), "cpu-period": r.GetCpuPeriod()} {
		if n > 0 {
			s.Annotations["io.kubernetes.cri.sandbox-"+name] = strconv.FormatInt(n, 10)
		}
	}
	for _, kind := range []specs.LinuxNamespaceType{specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.MountNamespace} {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: kind})
	}
	if netns != "" {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: netns})
	}
	return s
}

// group is the pod's control group below the one that the kubelet has made, in the form that its name has there.
func (c sandboxConfig) group(id string) string {
	switch parent := c.GetLinux().GetCgroupParent(); {
	case parent == "":
		return ""
	case strings.HasSuffix(parent, ".slice"):
		return path.Base(parent) + ":cri-containerd:" + id
	default:
		return path.Join(parent, id)
	}
}

func (c sandboxConfig) hostname() string {
	if name := c.GetHostname(); name != "" {
		return name
	}
	name, _ := os.Hostname()
	return name
}

// bundleFile is something of the pod's that its containers find at the same place.
type bundleFile struct{ source, destination string }

// files writes what containers find in /etc into the pod's directory, and makes the directory that stands for their common shared
// memory. Without name servers of the pod's own they are the host's.
func (c sandboxConfig) files(dir string) ([]bundleFile, error) {
	conf, err := c.resolvConf()
	if err != nil {
		return nil, err
	}
	var list []bundleFile
	for name, text := range map[string]string{
		"hostname": c.hostname() + "\n", "resolv.conf": conf,
		"hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
	} {
		f := bundleFile{filepath.Join(dir, name), "/etc/" + name}
		if err := os.WriteFile(f.source, []byte(text), 0o644); err != nil {
			return nil, fmt.Errorf("write the pod's %s: %w", f.destination, err)
		}
		list = append(list, f)
	}
	shm := bundleFile{filepath.Join(dir, "shm"), "/dev/shm"}
	if err := os.Mkdir(shm.source, 0o700); err != nil {
		return nil, fmt.Errorf("make the pod's shared memory: %w", err)
	}
	if err := os.Chmod(shm.source, os.ModeSticky|0o777); err != nil {
		return nil, fmt.Errorf("make the pod's shared memory: %w", err)
	}
	return append(list, shm), nil
}

func (c sandboxConfig) resolvConf() (string, error) {
	d := c.GetDnsConfig()
	if len(d.GetServers())+len(d.GetSearches())+len(d.GetOptions()) == 0 {
		b, err := os.ReadFile("/etc/resolv.conf")
		if err != nil && !os.IsNotExist(err) {
			return "", fmt.Errorf("read the host's name servers: %w", err)
		}
		return string(b), nil
	}
	var text strings.Builder
	line := func(words ...string) {
		// One line is one line, whatever is in it.
		fmt.Fprintln(&text, strings.Join(strings.Fields(strings.Join(words, " ")), " "))
	}
	for _, server := range d.GetServers() {
		line("nameserver", server)
	}
	if list := d.GetSearches(); len(list) > 0 {
		line("search", strings.Join(list, " "))
	}
	if list := d.GetOptions(); len(list) > 0 {
		line("options", strings.Join(list, " "))
	}
	return text.String(), nil
}

// mountFiles adds the pod's files to a container's configuration, which has none of its own there. The shared memory
// is the pod's in place of the container's own.
func mountFiles(s *specs.Spec, files []bundleFile) {
	for _, f := range files {
		i := slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return filepath.Clean(m.Destination) == f.destination })
		mount := specs.Mount{Destination: f.destination, Type: "bind", Source: f.source, Options: []string{"rbind", "rprivate", "rw"}}
		switch {
		case i < 0:
			s.Mounts = append(s.Mounts, mount)
		case f.destination == "/dev/shm" && s.Mounts[i].Type != "bind":
			s.Mounts[i] = mount
		}
	}
}
