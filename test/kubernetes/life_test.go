package kubernetes

import (
	"fmt"
	"strings"
	"testing"

	"manis/test/stage"
)

// TestEnd deletes a pod, which ends in its own time, and nothing of it stays.
func TestEnd(t *testing.T) {
	kubectl(t)
	before := take()
	k := start(t, "ends", `  terminationGracePeriodSeconds: 60
  containers:
  - `+box("one", `[sh, -c, "trap 'echo orderly; sleep 1; exit 0' TERM; while :; do sleep 0.2; done"]`, "")+"\n")
	logs := k.Terminal(t, "logs", "-f", "ends")
	k.OK(t, "delete", "pod", "ends", "--timeout=50s")
	logs.Await("orderly")
	for _, item := range stage.Settled(before, take) {
		if !strings.HasPrefix(item, "process ") || !strings.Contains(item, "kubectl") {
			t.Errorf("left behind: %s", item)
		}
	}
}

// TestLimits looks at a pod's limits from inside: they are the container's and the machine's.
func TestLimits(t *testing.T) {
	k := start(t, "limited", "  containers:\n  - "+box("one", idle, "resources: {limits: {cpu: '1', memory: 96Mi}}")+"\n")
	k.Prints(t, "100663296", "exec", "limited", "--", "cat", "/sys/fs/cgroup/memory.max")
	k.Prints(t, "1", "exec", "limited", "--", "nproc")
	k.Prints(t, "448Mi", "get", "pod", "limited", "-o", "jsonpath={.spec.overhead.memory}")
}

// TestDebug adds a container to a pod that runs.
func TestDebug(t *testing.T) {
	k := start(t, "looked-at", "  containers:\n  - "+box("one", `[sh, -c, "exec sleep 4321"]`, "")+"\n")
	k.OK(t, "debug", "looked-at", "--image=box", "--image-pull-policy=Never", "--target=one", "--container=look", "--profile=general", "--", "sh", "-c", "ps; exec sleep 1000")
	stage.Eventually(t, "the processes of the target", func() bool {
		return strings.Contains(suite.c.says("logs", "looked-at", "-c", "look"), "sleep 4321")
	})
	if n := len(stage.Machines()); n != 1 {
		t.Errorf("there are %d machines", n)
	}
}

// TestSidecar has a container that is started before the others and lives beside them, for a pod that comes to its end.
func TestSidecar(t *testing.T) {
	k := kubectl(t)
	t.Cleanup(func() { k.OK(t, "delete", "pod", "job", "--grace-period=2", "--ignore-not-found") })
	apply(t, k, pod("job", `  restartPolicy: Never
  volumes: [{name: d, emptyDir: {}}]
  initContainers:
  - `+box("side", `[sh, -c, "trap 'echo last; exit 0' TERM; touch /d/there; while :; do sleep 0.2; done"]`,
		"restartPolicy: Always, startupProbe: {exec: {command: [test, -f, /d/there]}, periodSeconds: 1}, volumeMounts: [{name: d, mountPath: /d}]")+`
  containers:
  - `+box("work", `[sh, -c, "test -f /d/there && echo done"]`, "volumeMounts: [{name: d, mountPath: /d}]")+"\n"))
	stage.Eventually(t, "the pod's end", func() bool {
		return suite.c.says("get", "pod", "job", "-o", "jsonpath={.status.phase}") == "Succeeded"
	})
	k.Prints(t, "done", "logs", "job", "-c", "work")
	k.Prints(t, "last", "logs", "job", "-c", "side")
}

// TestSecurity is a pod that is not root, with what it may not do.
func TestSecurity(t *testing.T) {
	k := start(t, "modest", `  securityContext: {runAsUser: 1000, runAsGroup: 3000, fsGroup: 2000, seccompProfile: {type: RuntimeDefault}}
  volumes: [{name: d, emptyDir: {}}]
  containers:
  - `+box("one", idle, `securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}, volumeMounts: [{name: d, mountPath: /d}]`)+"\n")
	k.Prints(t, "1000 3000 2000 3000", "exec", "modest", "--", "sh", "-c", "echo $(id -u) $(id -g) $(id -G | tr ' ' '\\n' | sort -n)")
	k.Prints(t, "2000", "exec", "modest", "--", "sh", "-c", "echo x >/d/x && stat -c %g /d/x")
	k.Fails(t, 1, "Read-only file system", "exec", "modest", "--", "touch", "/x")
	k.Prints(t, "0000000000000000", "exec", "modest", "--", "sh", "-c", "sed -n 's/^CapEff:.//p' /proc/self/status")
}

// TestHostNetwork is refused, and the pod's events say why.
func TestHostNetwork(t *testing.T) {
	k := kubectl(t)
	t.Cleanup(func() { k.OK(t, "delete", "pod", "hosts", "--grace-period=0", "--force", "--ignore-not-found") })
	apply(t, k, pod("hosts", "  hostNetwork: true\n  containers:\n  - "+box("one", idle, "")+"\n"))
	stage.Eventually(t, "the reason", func() bool {
		return strings.Contains(suite.c.says("get", "events", "--field-selector=involvedObject.name=hosts", "-o", "jsonpath={.items[*].message}"), "the host's network was asked for")
	})
}

// TestResize changes the limits of a pod that runs: up beyond its machine, and down.
func TestResize(t *testing.T) {
	k := start(t, "resized", "  containers:\n  - "+box("one", idle, "resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {cpu: '1', memory: 96Mi}}")+"\n")
	id := suite.c.says("get", "pod", "resized", "-o", "jsonpath={.status.containerStatuses[0].containerID}")
	for _, to := range []struct{ cpu, memory, limit, processors string }{
		{"2", "768Mi", "805306368", "2"}, {"1", "128Mi", "134217728", "1"},
	} {
		k.OK(t, "patch", "pod", "resized", "--subresource", "resize", "-p",
			fmt.Sprintf(`{"spec":{"containers":[{"name":"one","resources":{"limits":{"cpu":%q,"memory":%q}}}]}}`, to.cpu, to.memory))
		stage.Eventually(t, "limits of "+to.cpu+" processors and "+to.memory, func() bool {
			return suite.c.says("exec", "resized", "--", "sh", "-c", "cat /sys/fs/cgroup/memory.max; nproc") == to.limit+"\n"+to.processors
		})
		if to.cpu == "2" {
			// More than the machine had.
			k.Prints(t, "1+0 records out", "exec", "resized", "--", "sh", "-c", "dd if=/dev/zero of=/dev/null bs=300M count=1 2>&1 | grep out")
		}
	}
	if now := suite.c.says("get", "pod", "resized", "-o", "jsonpath={.status.containerStatuses[0].containerID}"); now != id {
		t.Errorf("the container is another one: %s, was %s", now, id)
	}
}
