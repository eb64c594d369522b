package workload

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"

	"manis/api/agent"
)

const podText = `kind: Pod
metadata: {name: p, labels: {app: x}}
spec:
  restartPolicy: Never
  automountServiceAccountToken: false
  enableServiceLinks: false
  containers:
  - name: c
    image: box
    args: [serve]
    env: [{name: Z, value: "26"}, {name: MODE, valueFrom: {configMapKeyRef: {name: settings, key: mode}}}]
    resources: {limits: {memory: 100Mi, cpu: 500m}, requests: {cpu: 10m}}
    securityContext: {runAsUser: 5, runAsGroup: 6, allowPrivilegeEscalation: false, capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}}
    volumeMounts: [{name: settings, mountPath: /etc/settings}, {name: work, mountPath: /work, readOnly: true}]
  volumes:
  - {name: settings, configMap: {name: settings}}
  - {name: work, emptyDir: {medium: Memory}}
---
kind: ConfigMap
metadata: {name: settings}
data: {mode: strict}
`

func box(string) (*Image, error) {
	return &Image{Entrypoint: []string{"/bin/box"}, Cmd: []string{"help"}, Env: []string{"PATH=/bin", "Z=1"}, Dir: "/srv"}, nil
}

// What an owner makes of a pod's YAML and a node of containerd's configuration is the same request.
func TestOwnerAndNodeAgree(t *testing.T) {
	p, err := ReadPod([]byte(podText), box)
	if err != nil {
		t.Fatal(err)
	}
	if r := p.Resources; r.MemoryBytes != 100<<20 || r.MilliCPUs != 500 {
		t.Errorf("the pod's limits are %+v", r)
	}
	verity := &agent.Verity{RootHash: "aa"}
	want, err := p.Containers[0].Request(verity)
	if err != nil {
		t.Fatal(err)
	}
	volumes := t.TempDir()
	settings := filepath.Join(volumes, configMap, "settings")
	// As the kubelet writes one.
	for _, err := range []error{
		os.MkdirAll(filepath.Join(settings, "..2026"), 0o755), os.WriteFile(filepath.Join(settings, "..2026", "mode"), []byte("strict"), 0o644),
		os.Symlink("..2026", filepath.Join(settings, "..data")), os.Symlink("..data/mode", filepath.Join(settings, "mode")),
		os.WriteFile(filepath.Join(volumes, "resolv.conf"), []byte("# a comment\nnameserver 10.0.0.1\nlookup file\nsearch  a  b\n"), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	memory, quota, period := int64(100<<20), int64(50000), uint64(100000)
	spec := func() *specs.Spec {
		bind := func(from, to string, options ...string) specs.Mount {
			return specs.Mount{Type: "bind", Source: filepath.Join(volumes, from), Destination: to, Options: append(options, "rbind")}
		}
		return &specs.Spec{
			Root: &specs.Root{Path: "rootfs"},
			Process: &specs.Process{
				Args: []string{"/bin/box", "serve"}, Cwd: "/srv", User: specs.User{UID: 5, GID: 6, AdditionalGids: []uint32{6}}, NoNewPrivileges: true,
				Env:          []string{"KUBERNETES_PORT=tcp://10.0.0.1:443", "MODE=strict", "HOSTNAME=p", "PATH=/bin", "Z=26"},
				Capabilities: &specs.LinuxCapabilities{Bounding: []string{"CAP_NET_BIND_SERVICE"}},
			},
			Mounts: []specs.Mount{
				{Type: "proc", Destination: "/proc"}, {Type: "tmpfs", Destination: "/dev", Options: []string{"mode=700"}},
				bind("resolv.conf", "/etc/resolv.conf"), bind("hosts", "/etc/hosts"),
				bind(configMap+"/settings", "/etc/settings", "ro"), bind(emptyDir+"/work", "/work", "ro"),
			},
			Linux: &specs.Linux{Resources: &specs.LinuxResources{
				Memory: &specs.LinuxMemory{Limit: &memory}, CPU: &specs.LinuxCPU{Quota: &quota, Period: &period},
			}, MaskedPaths: []string{"/of/containerd"}},
		}
	}
	c, resolver, err := FromSpec(spec(), "p")
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Request(verity)
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got, want) {
		t.Errorf("the owner has\n%v\nthe node\n%v", want, got)
	}
	if string(resolver) != "nameserver 10.0.0.1\nsearch a b\n" {
		t.Errorf("name servers: %q", resolver)
	}
	for name, change := range map[string]func(*specs.Spec){
		"argument":   func(s *specs.Spec) { s.Process.Args[1] = "steal" },
		"variable":   func(s *specs.Spec) { s.Process.Env[4] = "Z=27" },
		"missing":    func(s *specs.Spec) { s.Process.Env = s.Process.Env[:4] },
		"directory":  func(s *specs.Spec) { s.Process.Cwd = "/" },
		"user":       func(s *specs.Spec) { s.Process.User.UID = 0 },
		"capability": func(s *specs.Spec) { s.Process.Capabilities.Bounding = nil },
		"escalation": func(s *specs.Spec) { s.Process.NoNewPrivileges = false },
		"read-only":  func(s *specs.Spec) { s.Root.Readonly = true },
		"memory":     func(s *specs.Spec) { memory := int64(1 << 30); s.Linux.Resources.Memory.Limit = &memory },
		"no volume":  func(s *specs.Spec) { s.Mounts = s.Mounts[:5] },
		"writable":   func(s *specs.Spec) { s.Mounts[5].Options = []string{"rbind"} },
		"terminal":   func(s *specs.Spec) { s.Process.Terminal = true },
	} {
		s := spec()
		change(s)
		c, _, err := FromSpec(s, "p")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := c.Request(verity); err != nil || proto.Equal(got, want) {
			t.Errorf("%s: it makes no difference (%v)", name, err)
		}
	}
	for name, m := range map[string]specs.Mount{
		"host's":     {Type: "bind", Source: "/etc", Destination: "/host", Options: []string{"rbind"}},
		"token":      {Type: "bind", Source: "/x/pods/u/volumes/kubernetes.io~projected/kube-api-access", Destination: "/var/run/secrets", Options: []string{"rbind"}},
		"an option":  {Type: "none", Source: "/etc", Destination: "/host", Options: []string{"bind"}},
		"no comfort": {Type: "bind", Source: volumes + "/" + configMap + "/none", Destination: "/x", Options: []string{"rbind"}},
	} {
		s := spec()
		s.Mounts = append(s.Mounts, m)
		if _, _, err := FromSpec(s, "p"); err == nil {
			t.Errorf("%s: it was accepted", name)
		}
	}
}

// A pod that the class has no place for is refused with what to do.
func TestReadPodRefuses(t *testing.T) {
	for old, c := range map[string]struct{ fresh, want string }{
		"restartPolicy: Never":                {"restartPolicy: Always", "restartPolicy: Never is needed"},
		"automountServiceAccountToken: false": {"automountServiceAccountToken: true", "automountServiceAccountToken: false is needed"},
		"enableServiceLinks: false":           {"hostNetwork: true", "hostNetwork"},
		"args: [serve]":                       {"args: [$(MODE)]", "write out"},
		"image: box":                          {"image: box\n    stdin: true", "stdin"},
		"runAsGroup: 6, ":                     {"", "runAsUser and runAsGroup"},
		"memory: 100Mi":                       {"memory: lots", "no quantity"},
		"{medium: Memory}":                    {"", "emptyDir"},
		"emptyDir: {medium: Memory}":          {"hostPath: {path: /}", "hostPath"},
		"configMap: {name: settings}}":        {"secret: {secretName: s}}", "secret"},
		"key: mode":                           {"key: other", "has no other"},
		"kind: ConfigMap":                     {"kind: Secret", "Secret"},
		"{limits":                             {"{claims: [], limits", "claims"},
		"securityContext: {":                  {"livenessProbe: {exec: {command: [x]}}\n    securityContext: {", "probe"},
	} {
		text := strings.Replace(podText, old, c.fresh, 1)
		if text == podText {
			t.Fatalf("%s is not in the pod", old)
		}
		if _, err := ReadPod([]byte(text), box); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.fresh, err, c.want)
		}
	}
}
