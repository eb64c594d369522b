package kubernetes

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"manis/test/stage"
)

// page serves a file of 200,000 bytes on port 80.
const page = `[sh, -c, "mkdir /www; yes | head -c 200000 >/www/file; exec httpd -f -p 80 -h /www"]`

const asked = "readinessProbe: {exec: {command: [wget, -q, -O/dev/null, 'http://127.0.0.1/file']}, periodSeconds: 1, timeoutSeconds: 30}"

// TestHostPort reaches a pod at a port of the node, from outside and with both kinds of addresses.
func TestHostPort(t *testing.T) {
	start(t, "ported", "  containers:\n  - "+box("one", page, "ports: [{containerPort: 80, hostPort: 18080}], "+asked)+"\n")
	out := newOutside(t)
	for _, node := range []string{address, address6} {
		if node == address6 && !six() {
			continue
		}
		url := "http://" + net.JoinHostPort(node, "18080") + "/file"
		stage.Eventually(t, "the page at "+url, func() bool { return strings.Count(out.page(url), "y") == 100000 })
	}
}

var sent = regexp.MustCompile(`qdisc tbf .*\n\s*Sent (\d+) bytes`)

// TestBandwidth limits a pod's traffic by annotations: what it receives and sends crosses the limits that the plugin makes.
func TestBandwidth(t *testing.T) {
	if out, err := exec.Command("ip", "link", "add", "probe0", "type", "ifb").CombinedOutput(); err != nil {
		t.Skipf("this machine's kernel has no ifb, by which the plugin limits: %s", out)
	}
	ip(t, "link", "del", "probe0")
	k := kubectl(t)
	t.Cleanup(func() { k.OK(t, "delete", "pod", "narrow", "--grace-period=1", "--ignore-not-found") })
	apply(t, k, strings.Replace(pod("narrow", "  containers:\n  - "+box("one", page, asked)+"\n"), "metadata: {",
		"metadata: {annotations: {kubernetes.io/ingress-bandwidth: 20M, kubernetes.io/egress-bandwidth: 20M}, ", 1))
	start(t, "wide", "  containers:\n  - "+box("one", page, asked)+"\n")
	k.OK(t, "wait", "--for=condition=Ready", "pod/narrow", "--timeout=100s")
	address := func(name string) string { return k.OK(t, "get", "pod", name, "-o", "jsonpath={.status.podIP}") }
	for _, way := range []struct{ asks, answers string }{{"wide", "narrow"}, {"narrow", "wide"}} {
		k.Prints(t, "200000", "exec", way.asks, "--", "sh", "-c", "wget -q -O- http://"+address(way.answers)+"/file | wc -c")
	}
	out, err := exec.Command("tc", "-s", "qdisc").CombinedOutput()
	if err != nil {
		t.Fatalf("tc: %v: %s", err, out)
	}
	crossed := 0
	for _, m := range sent.FindAllStringSubmatch(string(out), -1) {
		if n, _ := strconv.Atoi(m[1]); n > 200000 {
			crossed++
		}
	}
	if crossed != 2 {
		t.Errorf("the file has crossed %d limits, not 2:\n%s", crossed, out)
	}
}

// TestPlugins has pods' networks made by other plugins than bridge: pods are in them and reach each other.
func TestPlugins(t *testing.T) {
	for _, p := range []struct{ name, plugin, kind string }{
		{"ptp", `"type": "ptp", "ipMasq": false`, "veth"},
		{"macvlan", `"type": "macvlan", "master": "node0", "mode": "bridge"`, "macvlan"},
		{"ipvlan", `"type": "ipvlan", "master": "node0", "mode": "l2"`, "ipvlan"},
	} {
		t.Run(p.name, func(t *testing.T) {
			k := kubectl(t)
			if _, err := os.Stat(filepath.Join(plugins, p.name)); err != nil {
				t.Skip(err)
			}
			args := []string{"link", "add", "probe0", "type", p.kind}
			if p.kind != "veth" {
				args = []string{"link", "add", "link", "node0", "name", "probe0", "type", p.kind}
			}
			if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
				t.Skipf("this machine's kernel does not make it: %s", out)
			}
			ip(t, "link", "del", "probe0")
			file := dir("cni", "05-other.conflist")
			conf := `{"cniVersion": "1.0.0", "name": "other", "plugins": [{` + p.plugin + `, "ipam": {"type": "host-local", "dataDir": "` + dir("addresses") +
				`", "ranges": [[{"subnet": "10.89.8.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}`
			if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
				t.Fatal(err)
			}
			again := func() {
				t.Helper()
				if err := suite.c.restart(); err != nil {
					t.Fatal(err)
				}
				stage.Eventually(t, "containerd", func() bool { return suite.c.ctr(t.Context(), "version") == nil })
			}
			t.Cleanup(func() {
				os.Remove(file)
				if err := suite.c.restart(); err != nil {
					t.Error(err)
				}
			})
			again()
			start(t, "there", "  containers:\n  - "+box("one", page, asked)+"\n")
			start(t, "here", "  containers:\n  - "+box("one", page, asked)+"\n")
			to := k.OK(t, "get", "pod", "there", "-o", "jsonpath={.status.podIP}")
			if !strings.HasPrefix(to, "10.89.8.") {
				t.Fatalf("the pod's address is %s, of another network", to)
			}
			k.Prints(t, "200000", "exec", "here", "--", "sh", "-c", "wget -q -O- http://"+to+"/file | wc -c")
		})
	}
}
