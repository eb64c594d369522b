package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/protobuf/types/known/anypb"

	"manis/bundle"
	"manis/origin"
	"manis/place"
	"manis/pod"
)

// The operator's policy refuses pods, containers and processes, before there is anything of them, and containerd knows the
// error. What an engine puts into its own containers is not refused.
func TestPolicyInShim(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"config", "root", "rootfs", "own/given", "pods/uid-1/etc-hosts", "pods/uid-2"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv(place.ConfigVariable, filepath.Join(dir, "config"))
	places, err := place.Find(filepath.Join(dir, "root"), filepath.Join(dir, "run"))
	if err != nil {
		t.Fatal(err)
	}
	policy := func(text string) {
		t.Helper()
		if err := os.WriteFile(places.Policy(), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const head = "version: 1\nprofile: standard\n"
	// A bundle of a pod with a bind from below the directory, and the process that it runs.
	load := func(kind, source, process string) *bundle.Bundle {
		t.Helper()
		b, err := bundle.Parse(dir, fmt.Appendf(nil, `{"ociVersion":"1.2.0","root":{"path":"rootfs"},"process":%s,
			"linux":{"namespaces":[{"type":"network","path":"/proc/1/ns/none"}]},
			"mounts":[{"destination":"/m","type":"bind","source":%q,"options":["bind"]}],
			"annotations":{"io.kubernetes.cri.container-type":%q,"io.kubernetes.cri.sandbox-id":"s","io.kubernetes.cri.sandbox-uid":"uid-1"}}`,
			process, filepath.Join(dir, source), kind))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	const process = `{"args":["true"],"cwd":"/"}`
	g := &ground{places: places, dir: filepath.Join(dir, "own"), pod: new(pod.Pod)}
	s := &service{ground: g, containers: map[string]*container{"c": {id: "c"}}}
	is := func(what string, err error, words string) {
		t.Helper()
		if words == "" {
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
			return
		}
		if err == nil || !strings.Contains(err.Error(), words) || !errdefs.IsPermissionDenied(errgrpc.ToNative(refuse(err))) {
			t.Errorf("%s: %v, want permission denied by %s", what, err, words)
		}
	}
	fill := func(source string) error {
		b := load("container", source, process)
		return s.fill(t.Context(), g, &container{id: "c2"}, b, new(api.CreateTaskRequest))
	}
	policy(head + "sizes: {memory: 64MiB}\nnetworks: {allow: [none]}\n")
	is("a pod", g.boot(t.Context(), load("sandbox", "own", process)), "networks.allow (line 4)")
	policy(head)
	is("a container", fill("pods/uid-2"), "mounts.allow (profile standard)")
	for _, source := range []string{"own", "pods/uid-1/etc-hosts"} {
		b := load("container", source, process)
		plan, err := b.Plan(bundle.Environment{Joins: true})
		if err != nil {
			t.Fatal(err)
		}
		if source == "own" {
			plan.Binds[0].HostPath = filepath.Join(dir, "own", "hosts")
			if err := os.WriteFile(plan.Binds[0].HostPath, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		_, err = permit(g, b, plan, "c2")
		plan.Close()
		is("an engine's own "+source, err, "")
	}
	// Another directory comes to the path when it is decided.
	b := load("container", "own/given", process)
	plan, err := b.Plan(bundle.Environment{Joins: true})
	if err != nil {
		t.Fatal(err)
	}
	defer plan.Close()
	request := &pod.CreateRequest{ID: "c3", Bundle: b.Dir, Disks: true, Maps: true}
	if request.Config, err = json.Marshal(b.Spec); err != nil {
		t.Fatal(err)
	}
	if request.Allowed, err = permit(g, b, plan, "c3"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Rename(filepath.Join(dir, "own/given"), filepath.Join(dir, "old")), os.Symlink("../pods/uid-2", filepath.Join(dir, "own/given"))); err != nil {
		t.Fatal(err)
	}
	if err := pod.New(places, t.TempDir()).Create(t.Context(), request, pod.Attendant{}); !errors.Is(err, origin.ErrChanged) {
		t.Errorf("with another directory at its path: %v", err)
	}
	_, err = s.Exec(t.Context(), &api.ExecProcessRequest{ID: "c", ExecID: "e", Spec: &anypb.Any{
		Value: []byte(`{"args":["true"],"cwd":"/","capabilities":{"bounding":["CAP_SYS_ADMIN"]}}`)}})
	if err == nil || !strings.Contains(err.Error(), "capabilities.allow (profile standard)") || !errdefs.IsPermissionDenied(errgrpc.ToNative(err)) {
		t.Errorf("a process: %v", err)
	}
	policy("version: 1\n")
	if err := fill("own"); err == nil || !strings.Contains(err.Error(), "nothing is started") {
		t.Errorf("with a policy that is wrong: %v", err)
	}
}
