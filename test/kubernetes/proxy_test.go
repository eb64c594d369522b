package kubernetes

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"manis/test/stage"
)

// outside is a network namespace beside the node's, which asks the node by its address: what comes from there is from no pod and not from the node.
type outside struct {
	t testing.TB
	// name is the path of its namespace.
	name string
}

const (
	outsideAddress, outsideAddress6 = "198.51.100.2", "2001:db8:1::2"
	outsideGateway, outsideGateway6 = "198.51.100.1", "2001:db8:1::1"
)

func newOutside(t testing.TB) *outside {
	t.Helper()
	// Not by ip netns, which mounts the directory of namespaces once more: containerd could not remove pods' namespaces from it.
	holder := exec.Command("sleep", "infinity")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if link, err := netlink.LinkByName("out0"); err == nil {
			netlink.LinkDel(link)
		}
		holder.Process.Kill()
		holder.Wait()
	})
	pid := strconv.Itoa(holder.Process.Pid)
	ip(t, "link", "add", "out0", "type", "veth", "peer", "name", "in0", "netns", pid)
	ip(t, "addr", "add", outsideGateway+"/24", "dev", "out0")
	ip(t, "link", "set", "out0", "up")
	o := &outside{t, filepath.Join("/proc", pid, "ns", "net")}
	o.run("ip", "link", "set", "lo", "up")
	o.run("ip", "addr", "add", outsideAddress+"/24", "dev", "in0")
	o.run("ip", "link", "set", "in0", "up")
	o.run("ip", "route", "add", "default", "via", outsideGateway)
	if six() {
		ip(t, "addr", "add", outsideGateway6+"/64", "dev", "out0", "nodad")
		o.run("ip", "addr", "add", outsideAddress6+"/64", "dev", "in0", "nodad")
		o.run("ip", "-6", "route", "add", "default", "via", outsideGateway6)
	}
	return o
}

// run runs a program out there.
func (o *outside) run(args ...string) string {
	o.t.Helper()
	out, err := exec.Command("nsenter", append([]string{"--net=" + o.name}, args...)...).CombinedOutput()
	if err != nil {
		o.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// page is what is there at an address, or nothing.
func (o *outside) page(address string) string {
	out, err := exec.Command("nsenter", "--net="+o.name, "curl", "-g", "-s", "-m", "20", address).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

func ip(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// tellers are two pods, each of which tells its name and who asks, and Services of all kinds in front of them.
const tellers = `apiVersion: apps/v1
kind: Deployment
metadata: {name: tellers}
spec:
  replicas: 2
  selector: {matchLabels: {app: teller}}
  template:
    metadata: {labels: {app: teller}}
    spec:
      runtimeClassName: manis
      terminationGracePeriodSeconds: 2
      containers:
      - name: server
        image: box
        imagePullPolicy: Never
        command: [sh, -c, "mkdir -p /www/cgi-bin; printf '#!/bin/sh\\necho Content-Type: text/plain\\necho\\necho $(hostname) $REMOTE_ADDR\\n' >/www/cgi-bin/tell; chmod +x /www/cgi-bin/tell; exec httpd -f -p 80 -h /www"]
        readinessProbe: {httpGet: {path: /cgi-bin/tell, port: 80}, periodSeconds: 1, timeoutSeconds: 30}
---
apiVersion: v1
kind: Service
metadata: {name: inner}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: teller}
  ports: [{port: 8000, targetPort: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: everywhere}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {app: teller}
  ports: [{port: 8000, targetPort: 80, nodePort: 30080}]
---
apiVersion: v1
kind: Service
metadata: {name: near}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  ipFamilyPolicy: PreferDualStack
  selector: {app: teller}
  ports: [{port: 8000, targetPort: 80, nodePort: 30081}]
---
apiVersion: v1
kind: Service
metadata: {name: faithful}
spec:
  sessionAffinity: ClientIP
  selector: {app: teller}
  ports: [{port: 8000, targetPort: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec:
  selector: {app: nobody}
  ports: [{port: 8000, targetPort: 80}]
`

// TestProxy asks Services of all kinds, from a pod, from the node and from outside, with kube-proxy in both of its modes.
func TestProxy(t *testing.T) {
	k := kubectl(t)
	t.Cleanup(func() {
		k.OK(t, "delete", "deployment/tellers", "--cascade=foreground", "--ignore-not-found")
		k.OK(t, "delete", "service", "inner", "everywhere", "near", "faithful", "nobody", "--ignore-not-found")
	})
	apply(t, k, tellers)
	k.OK(t, "rollout", "status", "deployment/tellers", "--timeout=110s")
	start(t, "asks", "  containers:\n  - "+box("one", idle, "")+"\n")
	out := newOutside(t)
	for _, mode := range []string{"iptables", "nftables"} {
		t.Run(mode, func(t *testing.T) {
			if _, err := exec.LookPath("nft"); mode == "nftables" && err != nil {
				t.Skip("no nft on this machine")
			}
			if mode != "iptables" {
				if err := suite.c.exchange(t.Context(), mode); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := suite.c.exchange(context.Background(), "iptables"); err != nil {
						t.Error(err)
					}
				})
			}
			for _, f := range []struct{ name, node, outside string }{{"IPv4", address, outsideAddress}, {"IPv6", address6, outsideAddress6}} {
				t.Run(f.name, func(t *testing.T) {
					if f.name == "IPv6" && !six() {
						t.Skip("no IPv6 on this machine")
					}
					proxied(t, k, out, f.name, f.node, f.outside)
				})
			}
			faithful := k.OK(t, "get", "service", "faithful", "-o", "jsonpath={.spec.clusterIP}")
			stage.Eventually(t, "an answer of the faithful Service", func() bool { return told("asks", faithful, 8000) != "" })
			first := told("asks", faithful, 8000)
			for range 6 {
				if again := told("asks", faithful, 8000); again != first {
					t.Errorf("the Service with affinity answered %q and then %q", first, again)
				}
			}
			nobody := k.OK(t, "get", "service", "nobody", "-o", "jsonpath={.spec.clusterIP}")
			stage.Eventually(t, "the refusal of a Service without pods", func() bool {
				r := k.Run(t, "exec", "asks", "--", "timeout", "20", "wget", "-q", "-O-", tellURL(nobody, 8000))
				return r.Code != 0 && strings.Contains(r.Err, "refused")
			})
		})
	}
}

// tellURL is where tellers tell.
func tellURL(host string, port int) string {
	return fmt.Sprintf("http://%s/cgi-bin/tell", net.JoinHostPort(host, fmt.Sprint(port)))
}

// told is what a pod is told at an address.
func told(pod, host string, port int) string {
	return suite.c.says("exec", pod, "--", "timeout", "20", "wget", "-q", "-O-", tellURL(host, port))
}

// proxied asks Services in one of the address families.
func proxied(t *testing.T, k *stage.Engine, out *outside, family, node, client string) {
	cluster := func(name string) string {
		t.Helper()
		for _, a := range strings.Fields(k.OK(t, "get", "service", name, "-o", "jsonpath={.spec.clusterIPs[*]}")) {
			if strings.Contains(a, ":") == (family == "IPv6") {
				return a
			}
		}
		t.Fatalf("the Service %s has no address of %s", name, family)
		return ""
	}
	// Both pods answer in time.
	both := func(what string, ask func() string) {
		t.Helper()
		seen := make(map[string]bool)
		stage.Eventually(t, "answers of both pods "+what, func() bool {
			name, _, _ := strings.Cut(ask(), " ")
			if name != "" {
				seen[name] = true
			}
			return len(seen) == 2
		})
	}
	inner := cluster("inner")
	both("to a pod", func() string { return told("asks", inner, 8000) })
	both("to the node", func() string {
		b, _ := exec.Command("curl", "-g", "-s", "-m", "20", tellURL(inner, 8000)).Output()
		return string(b)
	})
	// A pod is answered by itself, too, with the address that it has.
	teller := strings.Fields(k.OK(t, "get", "pods", "-l", "app=teller", "-o", "jsonpath={.items[*].metadata.name}"))[0]
	both("to one of them", func() string { return told(teller, inner, 8000) })
	both("at the node's port, to a pod", func() string { return told("asks", node, 30080) })
	both("at the node's port, to outside", func() string { return out.page(tellURL(node, 30080)) })
	both("at the node's port, to outside with the policy Local", func() string { return out.page(tellURL(node, 30081)) })
	// Who asks from outside is known with the policy Local alone.
	_, from, _ := strings.Cut(out.page(tellURL(node, 30081)), " ")
	if strings.Trim(strings.TrimPrefix(strings.Trim(from, "[]"), "::ffff:"), "[]") != client {
		t.Errorf("with the policy Local the pods are asked by %q, not %s", from, client)
	}
	if _, from, _ := strings.Cut(out.page(tellURL(node, 30080)), " "); strings.Contains(from, client) {
		t.Errorf("with the policy Cluster the pods are asked by %s itself", client)
	}
}
