package containerd

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"manis/place"
	"manis/test/stage"
)

// confidentialPod is a pod whose manifest has a container that completes and two that stay, with a ConfigMap and a directory that they
// share; idle stands in for the programs.
const confidentialPod = `apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {mode: "strict\n"}
---
apiVersion: v1
kind: Pod
metadata: {name: sealed}
spec:
  hostname: sealed-host
  restartPolicy: Never
  automountServiceAccountToken: false
  enableServiceLinks: false
  runtimeClassName: manis-confidential
  initContainers:
  - name: first
    image: box
    command: [sh, -c, "cat /etc/settings/mode; echo $A; hostname; grep -c nameserver /etc/resolv.conf; echo kept >/work/file"]
    env: [{name: A, value: "1"}]
    volumeMounts: [{name: settings, mountPath: /etc/settings}, {name: work, mountPath: /work}]
  containers:
  - name: second
    image: box
    command: [sh, -c, "cat /work/file; trap 'exit 0' TERM; while :; do sleep 0.1; done"]
    volumeMounts: [{name: work, mountPath: /work}]
  - name: third
    image: box
    command: [sh, -c, "trap 'exit 3' TERM; while :; do sleep 0.1; done"]
    securityContext: {readOnlyRootFilesystem: true}
  volumes:
  - {name: settings, configMap: {name: settings}}
  - {name: work, emptyDir: {}}
`

// manis runs the command line and returns what it says.
func manis(t testing.TB, args ...string) string {
	t.Helper()
	out, err := tryManis(t, args...)
	if err != nil {
		t.Fatalf("manis %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

func tryManis(t testing.TB, args ...string) (string, error) {
	cmd := exec.CommandContext(t.Context(), stage.Manis(t), args...)
	cmd.Env = suite.env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestConfidentialPod is a pod of the class confidential as the kubelet leads it, and what its guest refuses of a kubelet that was changed:
// all in one machine, whose log has each refusal.
func TestConfidentialPod(t *testing.T) {
	if _, err := exec.LookPath("swtpm"); err != nil {
		t.Skip("swtpm is not installed (package swtpm)")
	}
	if _, err := place.FindFirmware(); err != nil {
		t.Skip(err)
	}
	ctr(t)
	t.Cleanup(func() { nothingLeft(t) })
	tmp := t.TempDir()
	at := func(name string) string { return filepath.Join(tmp, name) }
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(at(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at(name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	layout, _ := stage.Box(t)
	manis(t, "load", "-q", "-i", layout)
	manis(t, "trust", "keygen", at("owner"))
	manis(t, "trust", "measure", "-o", at("reference.json"))
	write("pod.yaml", confidentialPod)
	manis(t, "trust", "manifest", "--calls", "logs", "--pod", at("pod.yaml"), "-o", at("m.json"))
	manis(t, "trust", "sign", "--key", at("owner.key"), "-o", at("m.dsse"), at("m.json"))
	envelope, err := os.ReadFile(at("m.dsse"))
	if err != nil {
		t.Fatal(err)
	}
	owner, err := os.ReadFile(at("owner.pub"))
	if err != nil {
		t.Fatal(err)
	}
	// As the kubelet has volumes.
	volumes := "pods/uid/volumes/"
	settings, work := volumes+"kubernetes.io~configmap/settings", volumes+"kubernetes.io~empty-dir/work"
	write(settings+"/mode", "strict\n")
	write("changed/kubernetes.io~configmap/settings/mode", "loose\n")
	if err := os.MkdirAll(at(work), 0o777); err != nil {
		t.Fatal(err)
	}
	write("resolv.conf", "nameserver 10.88.7.1\nsearch default.svc.cluster.local\n")

	t.Run("without manifest", func(t *testing.T) {
		client, ctx := kubelet(t)
		_, err := client.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{RuntimeHandler: "manis-confidential", Config: &cri.PodSandboxConfig{
			Metadata: &cri.PodSandboxMetadata{Name: "bare", Namespace: "default", Uid: "bare"}, LogDirectory: tmp, Linux: &cri.LinuxPodSandboxConfig{},
		}})
		if err == nil || !strings.Contains(err.Error(), "manis.manifest is missing") {
			t.Errorf("RunPodSandbox: %v", err)
		}
	})
	p := newPodOf(t, "manis-confidential", "sealed", func(c *cri.PodSandboxConfig) {
		c.Annotations = map[string]string{"manis.manifest": string(envelope), "manis.owner-key": string(owner)}
		c.DnsConfig = &cri.DNSConfig{Servers: []string{"10.88.7.1"}, Searches: []string{"cluster.local"}}
	})
	bind := func(from, to string) *cri.Mount { return &cri.Mount{HostPath: at(from), ContainerPath: to} }
	first := func(c *cri.ContainerConfig) {
		c.Envs = []*cri.KeyValue{{Key: "KUBERNETES_SERVICE_HOST", Value: []byte("10.0.0.1")}, {Key: "A", Value: []byte("1")}}
		c.Mounts = []*cri.Mount{bind(settings, "/etc/settings"), bind(work, "/work")}
	}
	script := func(n int) []string {
		var lines []string
		for line := range strings.Lines(confidentialPod) {
			if text, ok := strings.CutPrefix(strings.TrimSpace(line), "command: [sh, -c, \""); ok {
				lines = append(lines, strings.TrimSuffix(text, "\"]"))
			}
		}
		return []string{"sh", "-c", lines[n]}
	}
	second := func(c *cri.ContainerConfig) { c.Mounts = []*cri.Mount{bind(work, "/work")} }
	third := func(c *cri.ContainerConfig) { c.Linux.SecurityContext.ReadonlyRootfs = true }

	// refused makes a container that the guest refuses, as its log has to say.
	var denials []string
	refused := func(want string, change func(*cri.ContainerConfig), command []string) {
		t.Helper()
		config := &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "refused"}, Image: &cri.ImageSpec{Image: image}, Command: command, LogPath: "refused.log",
			Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions}},
		}
		change(config)
		made, err := p.cri.CreateContainer(p.ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
		if err == nil {
			_, err = p.cri.StartContainer(p.ctx, &cri.StartContainerRequest{ContainerId: made.ContainerId})
			p.cri.RemoveContainer(p.ctx, &cri.RemoveContainerRequest{ContainerId: made.ContainerId})
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		denials = append(denials, want)
	}
	changed := func(change, more func(*cri.ContainerConfig)) func(*cri.ContainerConfig) {
		return func(c *cri.ContainerConfig) { change(c); more(c) }
	}
	refused("containers[0].args[2]", second, script(1)) // the first one is left out
	refused("containers[0].env[", changed(first, func(c *cri.ContainerConfig) { c.Envs = nil }), script(0))
	refused("containers[0].env[", changed(first, func(c *cri.ContainerConfig) { c.Envs[1].Value = []byte("2") }), script(0))
	refused("containers[0].files[3].sha256", changed(first, func(c *cri.ContainerConfig) {
		c.Mounts[0] = bind("changed/kubernetes.io~configmap/settings", "/etc/settings")
	}), script(0))
	refused("containers[0].capabilities", changed(first, func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
	}), script(0))
	hostPath := func(c *cri.ContainerConfig) {
		c.Mounts = append(c.Mounts, &cri.Mount{HostPath: tmp, ContainerPath: "/host"})
	}
	refused("nothing of its host's", changed(first, hostPath), script(0))
	denials = denials[:len(denials)-1] // before the guest is asked

	one := p.start("first", first, script(0)...)
	stage.Eventually(t, "the end of the first container", func() bool { return p.status(one).State == cri.ContainerState_CONTAINER_EXITED })
	if log, _ := os.ReadFile(filepath.Join(p.config.LogDirectory, "first.log")); !inOrder(string(log), "strict", " 1\n", "sealed-host", " 1\n") {
		t.Errorf("the first container says %q", log)
	}
	// What there is so far is the bundle of a run from which containers were left out.
	verify := []string{"audit", "verify", "--owner-key", at("owner.pub"), "--reference", at("reference.json")}
	manis(t, "audit", "bundle", "--pod", "-o", at("omitted.json"), p.id)
	if out, err := tryManis(t, append(verify, at("omitted.json"))...); err == nil || !strings.Contains(out, "no end") {
		t.Errorf("a run without two of its containers: %v: %s", err, out)
	}

	push(t, derived(t, nil, file{"extra", 0o644, "changed"}), "library/other:latest")
	pull(t, "docker.io/library/other:latest")
	refused("containers[1].root.hash", changed(second, func(c *cri.ContainerConfig) { c.Image.Image = "docker.io/library/other:latest" }), script(1))
	two := p.start("second", second, script(1)...)
	stage.Eventually(t, "what the first container has left for the second", func() bool {
		log, _ := os.ReadFile(filepath.Join(p.config.LogDirectory, "second.log"))
		return strings.Contains(string(log), "kept")
	})
	if left, _ := os.ReadDir(at(work)); len(left) > 0 {
		t.Errorf("the host has %v of the containers' directory", left)
	}
	if r, err := p.cri.ExecSync(p.ctx, &cri.ExecSyncRequest{ContainerId: two, Cmd: []string{"true"}, Timeout: 60}); err == nil || !strings.Contains(err.Error(), "refused by the manifest: Exec") {
		t.Errorf("exec, as a probe would: %v, %v", r, err)
	}
	denials = append(denials, `request="Exec"`)
	// Nor does the node's operator get in.
	m := operator(t)
	shows(t, listing(t)[two], map[string]string{"Names": "default/sealed/second", "State": "running"})
	m.Fails(t, 126, "refused by the manifest: Exec", "exec", two, "true")
	m.Fails(t, 1, "refused by the manifest: Processes", "top", two)
	m.Prints(t, "true", "inspect", "--format", "{{.Manis.Confidential}}", two)
	denials = append(denials, `request="Processes"`)
	if _, err := p.cri.UpdateContainerResources(p.ctx, &cri.UpdateContainerResourcesRequest{ContainerId: two, Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}}); err == nil {
		t.Error("the limits of a container were changed")
	}
	three := p.start("third", third, script(2)...)
	refused("containers[3]", third, script(2))
	for _, id := range []string{two, three} {
		if _, err := p.cri.StopContainer(p.ctx, &cri.StopContainerRequest{ContainerId: id, Timeout: 60}); err != nil {
			t.Errorf("StopContainer: %v", err)
		}
	}
	if s := p.status(three); s.ExitCode != 3 {
		t.Errorf("the third container ended with %d", s.ExitCode)
	}
	manis(t, "audit", "bundle", "--pod", "-o", at("bundle.json"), p.id)
	report := manis(t, append(verify, at("bundle.json"))...)
	for _, want := range append(denials, " end ", "verified", `exit code="3" container="2"`) {
		if want == `exit code="3" container="2"` {
			want = `exit code="3"`
		}
		if !strings.Contains(report, want) && !strings.Contains(report, strings.ReplaceAll(want, `"`, `\"`)) {
			t.Errorf("the log has no %q:\n%s", want, report)
		}
	}
}

// inOrder reports whether these parts are in a text one after the other.
func inOrder(text string, parts ...string) bool {
	for _, p := range parts {
		_, rest, ok := strings.Cut(text, p)
		if !ok {
			return false
		}
		text = rest
	}
	return true
}
