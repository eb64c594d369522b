package kubernetes

import (
	"testing"

	"manis/test/stage"
)

// TestConfiguration gives a pod a ConfigMap and a Secret as files, and changes one while it runs.
func TestConfiguration(t *testing.T) {
	k := kubectl(t)
	t.Cleanup(func() { k.OK(t, "delete", "configmap/settings", "secret/password", "--ignore-not-found") })
	k.OK(t, "create", "configmap", "settings", "--from-literal=level=low")
	k.OK(t, "create", "secret", "generic", "password", "--from-literal=word=open")
	start(t, "configured", `  volumes:
  - {name: settings, configMap: {name: settings}}
  - {name: password, secret: {secretName: password, defaultMode: 0400}}
  - {name: about, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  - {name: memory, emptyDir: {medium: Memory}}
  containers:
  - `+box("one", idle, `volumeMounts: [{name: settings, mountPath: /settings}, {name: password, mountPath: /password, readOnly: true}, {name: about, mountPath: /about}, {name: memory, mountPath: /memory}]`)+"\n")
	k.Prints(t, "lowopenapp=\"configured\"", "exec", "configured", "--", "sh", "-c", "echo $(cat /settings/level /password/word /about/labels)")
	k.Prints(t, "r--------", "exec", "configured", "--", "sh", "-c", "ls -lL /password/word | cut -c2-10")
	k.Prints(t, "kept", "exec", "configured", "--", "sh", "-c", "echo kept >/memory/x; cat /memory/x")
	// Whoever it is that asks for the API server has what that takes.
	k.Prints(t, "ca.crt namespace token", "exec", "configured", "--", "sh", "-c", "echo $(ls /var/run/secrets/kubernetes.io/serviceaccount)")
	k.OK(t, "patch", "configmap", "settings", "-p", `{"data":{"level":"high"}}`)
	stage.Eventually(t, "the new setting in the pod", func() bool {
		return suite.c.says("exec", "configured", "--", "cat", "/settings/level") == "high"
	})
}
