package kubernetes

import (
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"manis/test/stage"
)

// deployment is a web server whose page is its version.
func deployment(version string) string {
	return fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: site}
spec:
  replicas: 2
  selector: {matchLabels: {app: site}}
  template:
    metadata: {labels: {app: site}}
    spec:
      runtimeClassName: manis
      terminationGracePeriodSeconds: 5
      containers:
      - name: server
        image: box
        imagePullPolicy: Never
        command: [sh, -c, "trap 'exit 0' TERM; mkdir -p /www; echo %s >/www/index.html; httpd -p 80 -h /www; while :; do sleep 0.2; done"]
        readinessProbe: {httpGet: {path: /index.html, port: 80}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: site}
spec:
  selector: {app: site}
  ports: [{port: 8000, targetPort: 80}]
`, version)
}

// TestDeployment rolls a new version out, which is asked for at the address of a Service.
func TestDeployment(t *testing.T) {
	k := kubectl(t)
	t.Cleanup(func() {
		k.OK(t, "delete", "deployment/site", "service/site", "--ignore-not-found", "--cascade=foreground")
	})
	apply(t, k, deployment("first"))
	k.OK(t, "rollout", "status", "deployment/site", "--timeout=110s")
	address := k.OK(t, "get", "service", "site", "-o", "jsonpath={.spec.clusterIP}")
	start(t, "asks", "  containers:\n  - "+box("one", idle, "")+"\n")
	ask := func() string {
		return suite.c.says("exec", "asks", "--", "wget", "-q", "-O-", "http://"+address+":8000/")
	}
	stage.Eventually(t, "the first version by the Service's address", func() bool { return ask() == "first" })
	apply(t, k, deployment("second"))
	k.OK(t, "rollout", "status", "deployment/site", "--timeout=110s")
	stage.Eventually(t, "the second version", func() bool { return ask() == "second" })
	k.OK(t, "scale", "deployment/site", "--replicas=1")
	stage.Eventually(t, "the end of the others", func() bool {
		return len(strings.Fields(suite.c.says("get", "pods", "-l", "app=site", "-o", "name"))) == 1
	})
	if got := ask(); got != "second" {
		t.Errorf("the page is %q", got)
	}
}

// TestPortForward reaches a program that listens at the pod's localhost alone.
func TestPortForward(t *testing.T) {
	k := start(t, "local", "  containers:\n  - "+
		box("one", `[sh, -c, "mkdir /www; yes | head -c 300000 >/www/index.html; exec httpd -f -p 127.0.0.1:8080 -h /www"]`,
			"readinessProbe: {exec: {command: [wget, -q, -O/dev/null, 'http://127.0.0.1:8080/']}, periodSeconds: 1}")+"\n")
	p := k.Terminal(t, "port-forward", "pod/local", "0:8080", "0:81")
	p.Await("-> 81")
	ports := regexp.MustCompile(`127\.0\.0\.1:(\d+) -> (\d+)`).FindAllStringSubmatch(p.Shown(), -1)
	client := http.Client{Timeout: 20 * time.Second}
	for _, port := range ports {
		r, err := client.Get("http://127.0.0.1:" + port[1] + "/")
		if port[2] == "81" {
			if err == nil {
				r.Body.Close()
				t.Error("there is an answer at a port at which nobody listens")
			}
			continue
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, p.Shown())
		}
		page, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil || strings.Count(string(page), "y") != 150000 {
			t.Errorf("%d bytes: %v", len(page), err)
		}
	}
	p.Type("\x03")
}
