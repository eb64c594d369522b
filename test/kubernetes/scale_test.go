package kubernetes

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"manis/test/stage"
)

// metricsServer is what most clusters scale by: it asks the kubelet what pods take.
var metricsServer = stage.Source{Name: "kubernetes/metrics", Packages: []string{"sigs.k8s.io/metrics-server/cmd/metrics-server"}}

const metrics = `apiVersion: v1
kind: ServiceAccount
metadata: {name: metrics-server, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: metrics-server}
rules:
- {apiGroups: [""], resources: [nodes/metrics], verbs: [get]}
- {apiGroups: [""], resources: [pods, nodes, namespaces, configmaps], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: metrics-server}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: metrics-server}
subjects: [{kind: ServiceAccount, name: metrics-server, namespace: kube-system}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: metrics-server-delegator}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:auth-delegator"}
subjects: [{kind: ServiceAccount, name: metrics-server, namespace: kube-system}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: metrics-server-reader, namespace: kube-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: extension-apiserver-authentication-reader}
subjects: [{kind: ServiceAccount, name: metrics-server, namespace: kube-system}]
---
apiVersion: v1
kind: Service
metadata: {name: metrics-server, namespace: kube-system}
spec:
  selector: {app: metrics-server}
  ports: [{port: 443, targetPort: 10250}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: metrics-server, namespace: kube-system}
spec:
  selector: {matchLabels: {app: metrics-server}}
  template:
    metadata: {labels: {app: metrics-server}}
    spec:
      serviceAccountName: metrics-server
      terminationGracePeriodSeconds: 2
      volumes: [{name: d, emptyDir: {}}]
      containers:
      - name: metrics-server
        image: metrics-server
        imagePullPolicy: Never
        args: [--cert-dir=/d, --secure-port=10250, --kubelet-insecure-tls, --kubelet-preferred-address-types=InternalIP, --metric-resolution=15s]
        readinessProbe: {httpGet: {path: /readyz, port: 10250, scheme: HTTPS}, periodSeconds: 2, timeoutSeconds: 30}
        volumeMounts: [{name: d, mountPath: /d}]
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.metrics.k8s.io}
spec:
  service: {name: metrics-server, namespace: kube-system}
  group: metrics.k8s.io
  version: v1beta1
  insecureSkipTLSVerify: true
  groupPriorityMinimum: 100
  versionPriority: 100
`

var metricsImage sync.Once

// measure has the cluster know what pods take, until the test ends.
func measure(t testing.TB, k *stage.Engine) {
	t.Helper()
	metricsImage.Do(func() {
		programs, err := metricsServer.Build(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		extended(t, "metrics-server:latest", map[string]string{"metrics-server": filepath.Join(programs, "metrics-server")},
			func(c *v1.Config) { c.Entrypoint, c.Cmd = []string{"/metrics-server"}, nil })
	})
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(suite.c.says("logs", "-n", "kube-system", "deployment/metrics-server", "--tail=20"), suite.c.says("describe", "pods", "-n", "kube-system"))
		}
		k.OK(t, "delete", "apiservice", "v1beta1.metrics.k8s.io", "--ignore-not-found")
		k.OK(t, "delete", "-n", "kube-system", "deployment/metrics-server", "--cascade=foreground", "--ignore-not-found")
		k.Feed(t, metrics, "delete", "--ignore-not-found", "-f", "-")
	})
	apply(t, k, metrics)
	patiently(t, "the metrics of the node", func() bool {
		return strings.Contains(suite.c.says("get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes"), `"usage"`)
	})
}

// patiently waits for what takes several rounds of metrics and of the controllers.
func patiently(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(6 * time.Minute); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		if done() {
			return
		}
	}
	t.Fatalf("waited in vain for %s", what)
}

// workers is a deployment whose pods work for each request, and its scaling.
func workers(on string, most int) string {
	class := ""
	if on != "runc" {
		class = "      runtimeClassName: " + on + "\n"
	}
	return `apiVersion: apps/v1
kind: Deployment
metadata: {name: workers}
spec:
  selector: {matchLabels: {app: worker}}
  template:
    metadata: {labels: {app: worker}}
    spec:
      terminationGracePeriodSeconds: 1
` + class + `      containers:
      - name: server
        image: box
        imagePullPolicy: Never
        command: [sh, -c, "mkdir -p /www/cgi-bin; printf '#!/bin/sh\\ni=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; echo Content-Type: text/plain; echo; echo worked\\n' >/www/cgi-bin/work; chmod +x /www/cgi-bin/work; echo up >/www/up; exec httpd -f -p 80 -h /www"]
        resources: {requests: {cpu: 150m, memory: 32Mi}, limits: {memory: 64Mi}}
        readinessProbe: {httpGet: {path: /up, port: 80}, periodSeconds: 2, timeoutSeconds: 30}
---
apiVersion: v1
kind: Service
metadata: {name: workers}
spec:
  selector: {app: worker}
  ports: [{port: 8000, targetPort: 80}]
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: workers}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: workers}
  minReplicas: 1
  maxReplicas: ` + strconv.Itoa(most) + `
  metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}]
  behavior:
    scaleUp: {stabilizationWindowSeconds: 0, policies: [{type: Pods, value: 100, periodSeconds: 5}]}
    scaleDown: {stabilizationWindowSeconds: 0, policies: [{type: Pods, value: 100, periodSeconds: 5}]}
`
}

// TestScale has a deployment grow under a load to as many pods as MANIS_REPLICAS says, by the CPU time that they are seen to take, and shrink when the
// load has gone. With MANIS_REPLICAS runc does the same, to compare with.
func TestScale(t *testing.T) {
	k := kubectl(t)
	most := number(t, "MANIS_REPLICAS", 3)
	measure(t, k)
	start(t, "taken", "  containers:\n  - "+box("one", `[sh, -c, "while :; do :; done"]`, "resources: {limits: {cpu: 200m, memory: 64Mi}}")+"\n")
	patiently(t, "kubectl top to see a pod that is busy, not above its limit by much", func() bool {
		f := strings.Fields(suite.c.says("top", "pod", "taken", "--no-headers"))
		if len(f) < 3 {
			return false
		}
		milli, err := strconv.Atoi(strings.TrimSuffix(f[1], "m"))
		return err == nil && milli > 20 && milli < 300 && strings.HasSuffix(f[2], "Mi")
	})
	k.OK(t, "delete", "pod", "taken", "--grace-period=1")
	kinds := []string{"manis"}
	if os.Getenv("MANIS_REPLICAS") != "" {
		kinds = append(kinds, "runc")
	}
	lines := []string{fmt.Sprintf("pods of the deployment, from and to\t1\t%d", most)}
	for _, on := range kinds {
		t.Run(on, func(t *testing.T) { lines = append(lines, scaled(t, k, on, most)...) })
	}
	record(t, "scale", lines)
}

func scaled(t *testing.T, k *stage.Engine, on string, most int) []string {
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(suite.c.says("describe", "hpa", "workers"), suite.c.says("top", "pods"), suite.c.says("get", "pods", "-o", "wide"))
		}
		k.OK(t, "delete", "hpa/workers", "service/workers", "--ignore-not-found")
		k.OK(t, "delete", "deployment/workers", "--cascade=foreground", "--ignore-not-found", "--timeout=100s")
	})
	apply(t, k, workers(on, most))
	k.OK(t, "rollout", "status", "deployment/workers", "--timeout=110s")
	replicas := func() string {
		return suite.c.says("get", "deployment", "workers", "-o", "jsonpath={.spec.replicas} {.status.readyReplicas}")
	}
	// What its start has taken is forgotten.
	patiently(t, "a pod that is idle", func() bool {
		used, err := strconv.Atoi(suite.c.says("get", "hpa", "workers", "-o", "jsonpath={.status.currentMetrics[0].resource.current.averageUtilization}"))
		return err == nil && used < 50 && replicas() == "1 1"
	})
	first := suite.c.says("get", "pods", "-l", "app=worker", "-o", "jsonpath={.items[0].metadata.name}")
	events := watchPods(t, "app=worker")
	began := time.Now()
	address := k.OK(t, "get", "service", "workers", "-o", "jsonpath={.spec.clusterIP}")
	start(t, "load", "  terminationGracePeriodSeconds: 1\n  containers:\n  - "+
		box("one", fmt.Sprintf(`[sh, -c, "while :; do timeout 60 wget -q -O /dev/null http://%s:8000/cgi-bin/work || sleep 0.2; done"]`, address), "")+"\n")
	full := fmt.Sprintf("%d %[1]d", most)
	patiently(t, "all pods under the load", func() bool { return replicas() == full })
	up := time.Since(began)
	began = time.Now()
	k.OK(t, "delete", "pod", "load", "--grace-period=1")
	patiently(t, "one pod without the load", func() bool {
		return replicas() == "1 1" && len(strings.Fields(suite.c.says("get", "pods", "-l", "app=worker", "-o", "name"))) == 1
	})
	down := time.Since(began)
	seen, took := make(map[string]time.Time), []time.Duration(nil)
	for len(events) > 0 {
		e := <-events
		if e.Name == first {
			continue
		}
		if _, known := seen[e.Name]; !known {
			seen[e.Name] = e.Seen
		}
		if at := seen[e.Name]; e.Ready && !at.IsZero() {
			took = append(took, e.Seen.Sub(at))
			seen[e.Name] = time.Time{}
		}
	}
	if len(took) < most-1 {
		t.Errorf("%d pods were seen to become ready", len(took))
	}
	return []string{
		fmt.Sprintf("%s: from the first request to all pods ready\t%d ms", on, up.Milliseconds()),
		fmt.Sprintf("%s: from the decision (the pod is there) to Ready, all at once\t%s", on, spread(took)),
		fmt.Sprintf("%s: from the last request to one pod\t%d ms", on, down.Milliseconds()),
	}
}
