package helm

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"manis/test/stage"
)

// source is Helm.
var source = stage.Source{Name: "helm", Packages: []string{"helm.sh/helm/v3/cmd/helm"}}

// template renders the chart, as `helm install` would, without what exists only in hooks.
func template(t *testing.T, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	bin, err := source.Build(ctx)
	if err != nil {
		t.Fatal(err)
	}
	chart := filepath.Join(stage.Top(), "deploy", "helm", "manis")
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "helm"), append([]string{"template", "manis", chart, "--namespace", "manis-system", "--kube-version", "v1.37.2"}, args...)...)
	cmd.Env = stage.Environ(t.TempDir())
	var words bytes.Buffer
	cmd.Stderr = &words
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("helm template: %v: %s", err, words.String())
	}
	return out
}

// objects are those of a manifest by kind and name.
func objects(t *testing.T, text []byte) map[string]map[string]any {
	t.Helper()
	all := map[string]map[string]any{}
	for _, one := range strings.Split("\n"+string(text), "\n---") {
		var o map[string]any
		if err := yaml.Unmarshal([]byte(one), &o); err != nil {
			t.Fatalf("%v in\n%s", err, one)
		}
		if len(o) > 0 {
			all[o["kind"].(string)+" "+o["metadata"].(map[string]any)["name"].(string)] = o
		}
	}
	return all
}

// TestChart renders the chart with its own values, which has to be what the plain manifest says, without the namespace, that Helm makes.
func TestChart(t *testing.T) {
	plain, err := os.ReadFile(filepath.Join(stage.Top(), "deploy", "kubernetes", "install.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	want, got := objects(t, plain), objects(t, template(t, "--no-hooks"))
	delete(want, "Namespace manis-system")
	for name, o := range want {
		if !reflect.DeepEqual(got[name], o) {
			a, _ := yaml.Marshal(o)
			b, _ := yaml.Marshal(got[name])
			t.Errorf("%s: the manifest has\n%s\nand the chart\n%s", name, a, b)
		}
	}
	for name := range got {
		if want[name] == nil {
			t.Errorf("only the chart has %s", name)
		}
	}
}

// TestValues gives other values, which have to arrive, and looks for what runs before an uninstallation.
func TestValues(t *testing.T) {
	text := template(t, "--set", "image.repository=registry.example/m,image.tag=v9,prefix=/usr/local/m,runtimeClass.name=vm",
		"--set", "containerd.restart=systemctl restart k3s-agent,containerd.socket=/run/k3s/containerd/containerd.sock",
		"--set", "nodeSelector.pool=vms,imagePullSecrets[0].name=secret")
	all := objects(t, text)
	for _, name := range []string{"RuntimeClass vm", "Job manis-retire", "DaemonSet manis-node", "Role manis-retire", "RoleBinding manis-retire", "ServiceAccount manis-retire"} {
		if all[name] == nil {
			t.Errorf("%s is missing", name)
		}
	}
	for _, part := range []string{"image: registry.example/m:v9", "--prefix=/usr/local/m", "--handler=vm", "handler: vm", "--restart=systemctl restart k3s-agent",
		"--containerd-socket=/run/k3s/containerd/containerd.sock", "pool: vms", "name: secret"} {
		if !strings.Contains(string(text), part) {
			t.Errorf("%q is not in\n%s", part, text)
		}
	}
	if all := objects(t, template(t, "--set", "runtimeClass.create=false")); all["RuntimeClass manis"] != nil {
		t.Error("there is a RuntimeClass that nobody wants")
	}
}

// TestPool has machines wait on the nodes: the chart's container for it is the plain manifests' one.
func TestPool(t *testing.T) {
	plain, err := os.ReadFile(filepath.Join(stage.Top(), "deploy", "kubernetes", "pool.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	containers := func(o map[string]any) []any {
		for _, key := range []string{"spec", "template", "spec"} {
			o, _ = o[key].(map[string]any)
		}
		list, _ := o["containers"].([]any)
		return list
	}
	var patch map[string]any
	if err := yaml.Unmarshal(plain, &patch); err != nil {
		t.Fatal(err)
	}
	want := containers(patch)
	got := containers(objects(t, template(t, "--no-hooks", "--set", "pool.enabled=true"))["DaemonSet manis-node"])
	if len(want) != 1 || len(got) != 2 || !reflect.DeepEqual(got[1], want[0]) {
		a, _ := yaml.Marshal(want)
		b, _ := yaml.Marshal(got)
		t.Errorf("the manifest has\n%s\nand the chart\n%s", a, b)
	}
	text := string(template(t, "--set", "pool.enabled=true,pool.sizes={memory=1g\\,engines=true},pool.memoryBudget=3g,pool.args={--max-pressure=0}"))
	for _, part := range []string{"--size=memory=1g,engines=true", "--memory-budget=3g", `- "--max-pressure=0"`} {
		if !strings.Contains(text, part) {
			t.Errorf("%q is not in\n%s", part, text)
		}
	}
}
