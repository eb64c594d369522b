package podman

import (
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"manis/test/stage"
)

// freePort is a port that nobody listens on.
func freePort(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// get fetches a page until it comes.
func get(t testing.TB, url, want string) {
	t.Helper()
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var last string
	stage.Eventually(t, url, func() bool {
		resp, err := client.Get(url)
		if err != nil {
			last = err.Error()
			return false
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		last = string(b)
		return true
	})
	if last != want {
		t.Errorf("%s: %q, want %q", url, last, want)
	}
}

// server is the command of a container that serves a page.
func server(page string) []string {
	return []string{"box", "sh", "-c", "mkdir /www; echo " + page + " >/www/index.html; exec httpd -f -p 80 -h /www"}
}

// Podman's default network: a bridge, with ports published on the host.
func TestBridge(t *testing.T) {
	p := podman(t)
	t.Parallel()
	port := freePort(t)
	c := up(t, p, append([]string{"-p", "127.0.0.1:" + port + ":80", "--cap-add", "NET_RAW"}, server("bridged")...)...)
	get(t, "http://127.0.0.1:"+port+"/", "bridged\n")
	address := field(t, p, c, "{{.NetworkSettings.IPAddress}}")
	get(t, "http://"+address+"/", "bridged\n")
	p.Prints(t, address, "exec", c, "sh", "-c", "ip addr show dev eth0 | sed -n 's/.*inet \\([0-9.]*\\).*/\\1/p'")
	p.Prints(t, "reached", "exec", c, "sh", "-c", "ping -q -c 1 -W 10 $(ip route | awk '/default/ {print $3}') >/dev/null && echo reached")
	p.Prints(t, "bridged", "run", "--rm", "box", "wget", "-q", "-O-", "http://"+address+"/")
	p.Prints(t, "80/tcp -> 127.0.0.1:"+port, "port", c)
}

// A network of the user's: containers find each other, by name where there is Podman's name server.
func TestUserNetwork(t *testing.T) {
	p := podman(t)
	t.Parallel()
	p.OK(t, "network", "create", "pangolins")
	t.Cleanup(func() { p.OK(t, "network", "rm", "-f", "-t", "0", "pangolins") })
	c := up(t, p, append([]string{"--name", "burrow", "--network", "pangolins"}, server("dug")...)...)
	address := field(t, p, c, "{{.NetworkSettings.Networks.pangolins.IPAddress}}")
	other := up(t, p, append([]string{"--network", "pangolins"}, idle...)...)
	p.Prints(t, "dug", "exec", other, "wget", "-q", "-O-", "http://"+address+"/")
	t.Run("by name", func(t *testing.T) {
		if _, err := os.Stat("/usr/lib/podman/aardvark-dns"); err != nil {
			t.Skip("Podman has no name server here (package aardvark-dns)")
		}
		p.Prints(t, "dug", "exec", other, "wget", "-q", "-O-", "http://burrow/")
	})
}

// A pod is one machine: its containers share localhost, IPC and host name, not their files.
func TestPod(t *testing.T) {
	p := podman(t)
	before := stage.Machines()
	port := freePort(t)
	p.OK(t, "pod", "create", "--name", "den", "-p", "127.0.0.1:"+port+":80")
	t.Cleanup(func() { p.OK(t, "pod", "rm", "-f", "-i", "-t", "0", "den") })
	p.OK(t, append([]string{"run", "-d", "--pod", "den", "--name", "den-web"}, server("den")...)...)
	p.OK(t, append([]string{"run", "-d", "--pod", "den", "--name", "den-other", "-v", "/dev/shm:/unused:ro"}, idle...)...)
	if now := stage.Machines(); len(now) != len(before)+1 {
		t.Errorf("%d machines run where %d ran before the pod", len(now), len(before))
	}
	get(t, "http://127.0.0.1:"+port+"/", "den\n")
	p.Prints(t, "den", "exec", "den-other", "wget", "-q", "-O-", "http://127.0.0.1/")
	p.Prints(t, "den", "exec", "den-other", "hostname")
	same := func(what string, want bool) {
		t.Helper()
		a := p.OK(t, "exec", "den-web", "readlink", "/proc/self/ns/"+what)
		b := p.OK(t, "exec", "den-other", "readlink", "/proc/self/ns/"+what)
		if (a == b) != want {
			t.Errorf("namespace %s: %s and %s", what, a, b)
		}
	}
	same("ipc", true)
	same("net", true)
	same("pid", false)
	same("mnt", false)
	p.Fails(t, 1, "", "exec", "den-other", "ls", "/www")

	t.Run("one container restarts", func(t *testing.T) {
		p.OK(t, "restart", "-t", "0", "den-web")
		get(t, "http://127.0.0.1:"+port+"/", "den\n")
		if now := stage.Machines(); len(now) != len(before)+1 {
			t.Errorf("%d machines", len(now)-len(before))
		}
	})
	t.Run("as Kubernetes' YAML and back", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "den.yaml")
		p.OK(t, "generate", "kube", "-f", file, "den")
		p.OK(t, "pod", "rm", "-f", "-t", "0", "den")
		p.OK(t, "play", "kube", file)
		get(t, "http://127.0.0.1:"+port+"/", "den\n")
		p.OK(t, "play", "kube", "--down", file)
	})
	p.OK(t, "pod", "create", "--name", "den2")
	t.Cleanup(func() { p.OK(t, "pod", "rm", "-f", "-i", "-t", "0", "den2") })
	p.OK(t, append([]string{"run", "-d", "--pod", "den2", "--name", "den2-a"}, idle...)...)
	p.OK(t, "pod", "pause", "den2")
	p.OK(t, "pod", "unpause", "den2")
	p.OK(t, "pod", "stop", "-t", "1", "den2")
	if got := p.OK(t, "pod", "inspect", "--format", "{{.State}}", "den2"); got != "Exited" {
		t.Errorf("the stopped pod is %s", got)
	}
	p.OK(t, "pod", "start", "den2")
	p.Prints(t, "den2", "exec", "den2-a", "hostname")
	p.OK(t, "pod", "rm", "-f", "-t", "0", "den2")
	stage.Eventually(t, "the machines to end", func() bool { return len(stage.Machines()) == len(before) })
}

func TestPlayKube(t *testing.T) {
	p := podman(t)
	t.Parallel()
	port := freePort(t)
	file := filepath.Join(t.TempDir(), "pod.yaml")
	text := strings.NewReplacer("PORT", port).Replace(`apiVersion: v1
kind: ConfigMap
metadata:
  name: words
data:
  word: pangolin
---
apiVersion: v1
kind: Pod
metadata:
  name: played
spec:
  containers:
  - name: web
    image: localhost/box:latest
    imagePullPolicy: Never
    command: [sh, -c, "until [ -e /shared/index.html ]; do sleep 0.1; done; exec httpd -f -p 80 -h /shared"]
    ports:
    - {containerPort: 80, hostPort: PORT, hostIP: 127.0.0.1}
    volumeMounts:
    - {name: shared, mountPath: /shared}
  - name: writer
    image: localhost/box:latest
    imagePullPolicy: Never
    command: [sh, -c, "echo $WORD >/shared/index.html; trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"]
    env:
    - name: WORD
      valueFrom: {configMapKeyRef: {name: words, key: word}}
    resources: {limits: {memory: 200Mi, cpu: "1"}}
    volumeMounts:
    - {name: shared, mountPath: /shared}
  volumes:
  - name: shared
    persistentVolumeClaim: {claimName: played-shared}
`)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.OK(t, "pod", "rm", "-f", "-i", "-t", "0", "played")
		p.OK(t, "volume", "rm", "-f", "played-shared")
	})
	p.OK(t, "play", "kube", file)
	get(t, "http://127.0.0.1:"+port+"/", "pangolin\n")
	p.OK(t, "play", "kube", "--down", file)
}
