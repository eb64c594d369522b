package kubernetes

import (
	"path/filepath"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"manis/test/stage"
)

// coredns is the name server of most clusters.
var coredns = stage.Source{Name: "kubernetes/dns", Packages: []string{"./coredns"}}

// server is CoreDNS as clusters have it, in a pod on Manis, with an account that may read what has a name.
const server = `apiVersion: v1
kind: ServiceAccount
metadata: {name: coredns, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: coredns}
rules:
- {apiGroups: [""], resources: [endpoints, services, pods, namespaces], verbs: [list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: coredns}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: coredns}
subjects: [{kind: ServiceAccount, name: coredns, namespace: kube-system}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: coredns, namespace: kube-system}
data:
  Corefile: |
    .:53 {
        errors
        ready :8181
        kubernetes cluster.local in-addr.arpa ip6.arpa {
            pods verified
        }
        hosts {
            192.0.2.77 outside.example
            fallthrough
        }
        cache 2
        loadbalance
    }
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: coredns, namespace: kube-system}
spec:
  replicas: 1
  selector: {matchLabels: {k8s-app: kube-dns}}
  template:
    metadata: {labels: {k8s-app: kube-dns}}
    spec:
      runtimeClassName: manis
      serviceAccountName: coredns
      dnsPolicy: Default
      terminationGracePeriodSeconds: 2
      containers:
      - name: coredns
        image: coredns
        imagePullPolicy: Never
        args: [-conf, /etc/coredns/Corefile]
        readinessProbe: {httpGet: {path: /ready, port: 8181}, periodSeconds: 1, timeoutSeconds: 30}
        securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}}
        volumeMounts: [{name: config, mountPath: /etc/coredns, readOnly: true}]
      volumes: [{name: config, configMap: {name: coredns}}]
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  clusterIP: ` + names + `
  selector: {k8s-app: kube-dns}
  ports:
  - {name: dns, port: 53, protocol: UDP}
  - {name: dns-tcp, port: 53, protocol: TCP}
`

var nameImage sync.Once

// nameServer starts the cluster's name server, until the test ends.
func nameServer(t testing.TB, k *stage.Engine) {
	t.Helper()
	nameImage.Do(func() {
		programs, err := coredns.Build(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		extended(t, "coredns:latest", map[string]string{"coredns": filepath.Join(programs, "coredns")}, func(c *v1.Config) { c.Entrypoint, c.Cmd = []string{"/coredns"}, nil })
	})
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(suite.c.says("logs", "-n", "kube-system", "deployment/coredns", "--tail=20"))
		}
		k.OK(t, "delete", "-n", "kube-system", "deployment/coredns", "--cascade=foreground", "--ignore-not-found")
		k.Feed(t, server, "delete", "--ignore-not-found", "-f", "-")
	})
	apply(t, k, server)
	if r := k.Run(t, "rollout", "status", "-n", "kube-system", "deployment/coredns", "--timeout=110s"); r.Code != 0 {
		t.Fatalf("%s\n%s", r, suite.c.says("describe", "pods", "-n", "kube-system"))
	}
}

// TestNames asks the cluster's name server, which is itself a pod on Manis, from another one.
func TestNames(t *testing.T) {
	k := kubectl(t)
	nameServer(t, k)
	t.Cleanup(func() { k.OK(t, "delete", "service", "group", "web", "elsewhere", "--ignore-not-found") })
	apply(t, k, `apiVersion: v1
kind: Service
metadata: {name: group}
spec:
  clusterIP: None
  selector: {app: member}
  ports: [{name: page, port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: member}
  ports: [{port: 8000, targetPort: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere}
spec: {type: ExternalName, externalName: outside.example}
`)
	member := pod("member", `  hostname: first
  subdomain: group
  containers:
  - `+box("one", `[sh, -c, "mkdir /www; echo page >/www/index.html; exec httpd -f -p 80 -h /www"]`, "readinessProbe: {httpGet: {path: /index.html, port: 80}, periodSeconds: 1, timeoutSeconds: 30}")+"\n")
	t.Cleanup(func() { k.OK(t, "delete", "pod", "member", "--grace-period=1", "--ignore-not-found") })
	apply(t, k, member)
	start(t, "asks", "  containers:\n  - "+box("one", idle, "")+"\n")
	k.OK(t, "wait", "--for=condition=Ready", "pod/member", "--timeout=100s")
	address := k.OK(t, "get", "pod", "member", "-o", "jsonpath={.status.podIP}")
	service := k.OK(t, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	for _, q := range []struct{ name, kind, want string }{
		{"web.default.svc.cluster.local", "a", service},
		{"kubernetes.default.svc.cluster.local", "a", "10.96.0.1"},
		{"group.default.svc.cluster.local", "a", address},
		{"first.group.default.svc.cluster.local", "a", address},
		{"_page._tcp.group.default.svc.cluster.local", "srv", "first.group.default.svc.cluster.local"},
		{strings.ReplaceAll(address, ".", "-") + ".default.pod.cluster.local", "a", address},
		{"elsewhere.default.svc.cluster.local", "cname", "outside.example"},
		{"outside.example", "a", "192.0.2.77"},
	} {
		stage.Eventually(t, q.name+" to be "+q.want, func() bool {
			_, answer, _ := strings.Cut(suite.c.says("exec", "asks", "--", "nslookup", "-type="+q.kind, q.name), "Name:")
			if answer == "" {
				_, answer, _ = strings.Cut(suite.c.says("exec", "asks", "--", "nslookup", "-type="+q.kind, q.name), q.name)
			}
			return strings.Contains(answer, q.want)
		})
	}
	t.Run("none", func(t *testing.T) {
		if r := k.Run(t, "exec", "asks", "--", "nslookup", "absent.default.svc.cluster.local"); r.Code == 0 || !strings.Contains(r.Out+r.Err, "NXDOMAIN") {
			t.Errorf("a name that is not there: %s", r)
		}
	})
	// By the resolver of a C library, its search list, and the Service's address.
	for _, name := range []string{"web:8000", "web.default:8000", "group", "first.group"} {
		stage.Eventually(t, "the page of "+name, func() bool {
			return suite.c.says("exec", "asks", "--", "timeout", "20", "wget", "-q", "-O-", "http://"+name+"/") == "page"
		})
	}
	k.Prints(t, "first.group.default.svc.cluster.local", "exec", "member", "--", "hostname", "-f")
}
