package kubernetes

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"manis/test/stage"
)

// TestPod is a pod of two containers, one of them prepared by a third, as one works with it.
func TestPod(t *testing.T) {
	k := start(t, "web", `  volumes: [{name: www, emptyDir: {}}]
  initContainers:
  - `+box("prepare", `[sh, -c, "echo page >/www/index.html; touch /www/alive"]`, `volumeMounts: [{name: www, mountPath: /www}]`)+`
  containers:
  - name: server
    image: box
    imagePullPolicy: Never
    command: [sh, -c, "echo started; exec httpd -f -p 8080 -h /www"]
    volumeMounts: [{name: www, mountPath: /www}]
    readinessProbe: {httpGet: {path: /index.html, port: 8080}, periodSeconds: 1}
    livenessProbe: {exec: {command: [test, -f, /www/alive]}, periodSeconds: 1, failureThreshold: 60}
  - name: client
    image: box
    imagePullPolicy: Never
    command: `+idle+`
    volumeMounts: [{name: www, mountPath: /shared}]
    env: [{name: MY_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}, {name: MY_ADDRESS, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]
`)
	if n := len(stage.Machines()); n != 1 {
		t.Errorf("there are %d machines", n)
	}
	address := k.OK(t, "get", "pod", "web", "-o", "jsonpath={.status.podIP}")
	t.Run("logs", func(t *testing.T) { k.Prints(t, "started", "logs", "web", "-c", "server") })
	t.Run("exec", func(t *testing.T) {
		k.Prints(t, "page", "exec", "web", "-c", "client", "--", "wget", "-q", "-O-", "http://localhost:8080/")
		if r := k.Feed(t, "in\n", "exec", "-i", "web", "-c", "client", "--", "sh", "-c", "cat; echo err >&2; exit 7"); r.Code != 7 || r.Out != "in\n" || !strings.HasPrefix(r.Err, "err\n") {
			t.Errorf("exec: %s", r)
		}
		k.Prints(t, "web "+address, "exec", "web", "-c", "client", "--", "sh", "-c", "echo $MY_NAME $MY_ADDRESS")
		if host, _ := os.ReadFile("/proc/sys/kernel/osrelease"); k.OK(t, "exec", "web", "-c", "client", "--", "uname", "-r") == strings.TrimSpace(string(host)) {
			t.Error("the kernel is the host's")
		}
	})
	t.Run("terminal", func(t *testing.T) {
		p := k.Terminal(t, "exec", "-it", "web", "-c", "client", "--", "sh")
		p.Type("stty size; exit 3\n")
		p.Await("40 120")
		if code := p.End(); code != 3 {
			t.Errorf("exit code %d: %s", code, p.Shown())
		}
	})
	t.Run("cp", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, []byte("copied"), 0o644); err != nil {
			t.Fatal(err)
		}
		k.OK(t, "cp", file, "web:/shared/copy", "-c", "client")
		k.Prints(t, "copied", "exec", "web", "-c", "server", "--", "cat", "/www/copy")
		k.OK(t, "cp", "web:/www/copy", file+"2", "-c", "server")
		if b, _ := os.ReadFile(file + "2"); string(b) != "copied" {
			t.Errorf("what came back: %q", b)
		}
	})
	t.Run("liveness", func(t *testing.T) {
		k.Run(t, "exec", "web", "-c", "server", "--", "rm", "/www/alive")
		stage.Eventually(t, "the failure of the probe", func() bool {
			return strings.Contains(suite.c.says("get", "events", "--field-selector=involvedObject.name=web"), "Liveness probe failed")
		})
		k.OK(t, "exec", "web", "-c", "client", "--", "touch", "/shared/alive")
	})
}

// TestCrash has a container end with an error: it is started again, in the same machine.
func TestCrash(t *testing.T) {
	k := start(t, "crash", `  volumes: [{name: d, emptyDir: {}}]
  containers:
  - `+box("ends", `[sh, -c, "cat /proc/sys/kernel/random/boot_id >>/d/boots; [ $(wc -l </d/boots) -ge 2 ] || exit 9; exec sleep 1000"]`, `volumeMounts: [{name: d, mountPath: /d}]`)+`
  - `+box("stays", idle, `volumeMounts: [{name: d, mountPath: /d}]`)+"\n")
	stage.Eventually(t, "the second start", func() bool {
		return suite.c.says("get", "pod", "crash", "-o", `jsonpath={.status.containerStatuses[?(@.name=="ends")].restartCount}`) == "1"
	})
	k.Prints(t, "9 Error", "get", "pod", "crash", "-o", `jsonpath={.status.containerStatuses[?(@.name=="ends")].lastState.terminated['exitCode','reason']}`)
	k.Prints(t, "1", "exec", "crash", "-c", "stays", "--", "sh", "-c", "sort -u /d/boots | wc -l")
}
