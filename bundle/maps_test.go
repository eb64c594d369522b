package bundle

import (
	"io/fs"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// What the CRI plugin of containerd adds for a pod with user namespaces.
const (
	ranges = `[{"containerID":0,"hostID":70000,"size":65536}]`
	users  = `"linux":{"namespaces":[{"type":"user","path":"/proc/7/ns/user"}],"uidMappings":` + ranges + `,"gidMappings":` + ranges + `}`
)

// TestMappedBinds are volumes of a pod that has its own users.
func TestMappedBinds(t *testing.T) {
	files := map[string]node{"/volume": {mode: fs.ModeDir}}
	maps := func(over string, env Environment) (*Plan, error) {
		t.Helper()
		return parse(t, with(t, over)).plan(env, fakeHost(files))
	}
	bind := func(more string) string {
		return `{"mounts":[{"destination":"/v","type":"bind","source":"/volume","options":["rbind"]` + more + `}],` + users + `}`
	}
	want := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 70000, Size: 65536}}
	for name, c := range map[string]struct {
		config string
		want   []specs.LinuxIDMapping
		below  bool
	}{
		"its own ids":         {bind(`,"uidMappings":` + ranges + `,"gidMappings":` + ranges), want, false},
		"the container's ids": {strings.Replace(bind(""), `"rbind"`, `"rbind","ridmap"`, 1), want, true},
		"none":                {bind(""), nil, false},
	} {
		p, err := maps(c.config, Environment{Maps: true})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if b := p.Binds[0]; !reflect.DeepEqual(b.UIDs, c.want) || !reflect.DeepEqual(b.GIDs, c.want) || b.MapsBelow != c.below {
			t.Errorf("%s: %+v", name, b)
		}
		if len(p.Create.UidMappings) != 1 || p.Create.UidMappings[0].MachineId != 70000 {
			t.Errorf("%s: the container's ids are %v", name, p.Create.UidMappings)
		}
	}
	for says, config := range map[string]string{
		"both are needed":    bind(`,"uidMappings":` + ranges),
		"cannot be mapped":   bind(`,"uidMappings":[{"size":0}],"gidMappings":` + ranges),
		"only what is bound": `{"mounts":[{"destination":"/v","type":"tmpfs","options":["idmap"]}]}`,
	} {
		if _, err := maps(config, Environment{Maps: true}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("want %q, got %v", says, err)
		}
	}
	if _, err := maps(bind(""), Environment{}); err == nil || !strings.Contains(err.Error(), "user namespace") {
		t.Errorf("where nothing can be mapped: %v", err)
	}
}

func TestProjected(t *testing.T) {
	for dir, want := range map[string]bool{
		"/var/lib/kubelet/pods/uid/volumes/kubernetes.io~configmap/name":        true,
		"/mnt/k/pods/uid/volumes/kubernetes.io~secret/name":                     true,
		"/var/lib/kubelet/pods/uid/volumes/kubernetes.io~projected/kube-api":    true,
		"/var/lib/kubelet/pods/uid/volumes/kubernetes.io~downward-api/info":     true,
		"/var/lib/kubelet/pods/uid/volumes/kubernetes.io~empty-dir/name":        false,
		"/var/lib/kubelet/pods/uid/volumes/kubernetes.io~configmap":             false,
		"/var/lib/kubelet/pods/uid/volumes/kubernetes.io~configmap/name/..data": false,
		"/var/lib/kubelet/pods/uid/volume-subpaths/name/container/0":            false,
		"/kubernetes.io~configmap/name":                                         false,
		"/":                                                                     false,
	} {
		if projected(dir) != want {
			t.Errorf("%s: %v", dir, !want)
		}
	}
}
