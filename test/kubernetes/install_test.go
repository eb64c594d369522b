package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"manis/test/stage"
)

// nodeImage gives the node the image of the DaemonSet that `make node-image` makes, with the programs in a directory.
func nodeImage(t *testing.T, tag, bin string) {
	t.Helper()
	layout := dir("manis-node-" + tag)
	cmd := exec.Command(filepath.Join(stage.Top(), "scripts/go"), "run", "./deploy/image", "-o", layout, "-tag", tag, "-bin", bin)
	cmd.Dir = stage.Top()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make the image: %v: %s", err, out)
	}
	if err := suite.c.load(t.Context(), layout); err != nil {
		t.Fatal(err)
	}
}

// restarter restarts containerd when the file is made, as systemd would when it is told to. It returns how often it has.
func restarter(t *testing.T, file string) (count func() int) {
	n := make(chan int, 1)
	n <- 0
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ; ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
			if os.Remove(file) != nil {
				continue
			}
			if err := suite.c.restart(); err != nil {
				t.Errorf("restart containerd: %v", err)
			}
			n <- <-n + 1
		}
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return func() int { now := <-n; n <- now; return now }
}

// executed are the programs below a path that processes are executed from, as often as there are processes.
func executed(t *testing.T, below string) []string {
	t.Helper()
	var list []string
	links, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, link := range links {
		if path, err := os.Readlink(link); err == nil && strings.HasPrefix(path, below) {
			list = append(list, path)
		}
	}
	return list
}

// shelf is what manisd says of machines for engines.
func shelf(bin string) (waiting, claims int) {
	cmd := exec.Command(filepath.Join(bin, "manis"), "pool", "ls", "--format", "{{json .}}")
	cmd.Env = suite.c.env
	out, err := cmd.Output()
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(out)) {
		var row struct{ For, Waiting, Claims string }
		if json.Unmarshal([]byte(line), &row) == nil && row.For == "engines" {
			w, _ := strconv.Atoi(row.Waiting)
			c, _ := strconv.Atoi(row.Claims)
			waiting, claims = waiting+w, claims+c
		}
	}
	return waiting, claims
}

// waiting waits until manisd of a version has a machine.
func waiting(t *testing.T, prefix, version string) {
	t.Helper()
	patiently(t, "a machine of "+version+" to wait", func() bool {
		n, _ := shelf(filepath.Join(prefix, "current", "bin"))
		return n > 0 && len(executed(t, filepath.Join(prefix, "versions", version, "bin", "manisd"))) > 0
	})
}

func claims(t *testing.T, prefix string) int {
	t.Helper()
	_, n := shelf(filepath.Join(prefix, "current", "bin"))
	return n
}

// TestInstall has the DaemonSet of deploy/kubernetes install Manis on the node, below directories of the test's own, with machines that wait: a pod gets
// one of them, goes on during an upgrade, which is followed by manisd, and at the end nothing is left.
func TestInstall(t *testing.T) {
	k := kubectl(t)
	yaml, err := os.ReadFile(filepath.Join(stage.Top(), "deploy", "kubernetes", "install.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	// A second release: other programs, the same otherwise.
	newer := t.TempDir()
	for _, name := range []string{"manis", "manisd", "containerd-shim-manis-v2", "manis-node"} {
		b, err := os.ReadFile(filepath.Join(stage.Top(), "bin", name))
		if errors.Is(err, fs.ErrNotExist) {
			t.Skipf("nothing to install: %v (make build)", err)
		}
		if name == "manis" {
			b = append(b, "newer"...)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(newer, name), b, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	nodeImage(t, "one", "bin")
	nodeImage(t, "two", newer)
	restarts := restarter(t, dir("restart"))
	prefix := dir("opt")
	manifest := strings.NewReplacer(
		"manis-node:latest", "manis-node:one",
		"imagePullPolicy: IfNotPresent", "imagePullPolicy: Never",
		"--prefix=/opt/manis", "--prefix="+prefix+"\n        - --every=1s",
		"/etc/containerd/config.toml", dir("containerd.toml"),
		"/etc/containerd/conf.d", dir("conf.d"),
		"/run/containerd/containerd.sock", dir("c.sock"),
		"--handler=manis", "--handler=installed",
		"systemctl restart containerd", "touch "+dir("restart"),
		"name: manis\nhandler: manis", "name: installed\nhandler: installed",
	).Replace(string(yaml))
	set := []string{"-n", "manis-system", "daemonset/manis-node"}
	words := func() string {
		return suite.c.says("logs", "-n", "manis-system", "daemonset/manis-node", "--tail=30") + "\n" + suite.c.says("describe", "-n", "manis-system", "pods")
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(words())
		}
		k.OK(t, "delete", "pod", "before", "after", "--grace-period=1", "--ignore-not-found")
		k.OK(t, append([]string{"delete", "--cascade=foreground", "--ignore-not-found", "--timeout=150s"}, set...)...)
		k.Feed(t, manifest, "delete", "--ignore-not-found", "-f", "-")
	})
	label := func(name string) string {
		return suite.c.says("get", "node", "node", "-o", `jsonpath={.metadata.labels.manis\.io/`+name+`}`)
	}
	current := func() string { link, _ := os.Readlink(filepath.Join(prefix, "current")); return filepath.Base(link) }
	installed := func(name, text string) {
		t.Helper()
		apply(t, k, strings.Replace(pod(name, "  containers: ["+box("one", idle, "")+"]\n"), "runtimeClassName: manis", "runtimeClassName: installed", 1))
		if r := k.Run(t, "wait", "--for=condition=Ready", "pod/"+name, "--timeout=100s"); r.Code != 0 {
			t.Fatalf("%s\n%s\n%s", r, suite.c.says("describe", "pod", name), words())
		}
		k.Prints(t, text, "exec", name, "--", "sh", "-c", "echo "+text+" >/kept; cat /kept")
	}

	apply(t, k, manifest)
	stage.Eventually(t, "the node's label", func() bool { return label("ready") == "true" })
	first := current()
	if label("version") != first {
		t.Errorf("the node is labelled with version %q, and has %q", label("version"), first)
	}
	if n := restarts(); n != 1 {
		t.Errorf("containerd was restarted %d times", n)
	}
	pool, err := os.ReadFile(filepath.Join(stage.Top(), "deploy", "kubernetes", "pool.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	// That this machine has other things to do is no reason for it to wait.
	patch := strings.NewReplacer("manis-node:latest", "manis-node:one", "imagePullPolicy: IfNotPresent", "imagePullPolicy: Never",
		"--prefix=/opt/manis", "--prefix="+prefix, "--memory-budget=1g", "--memory-budget=1g\n        - --max-pressure=0").Replace(string(pool))
	k.OK(t, "patch", "-n", "manis-system", "daemonset", "manis-node", "-p", patch)
	waiting(t, prefix, first)
	installed("before", "old")
	if n := claims(t, prefix); n != 1 {
		t.Errorf("the first pod has claimed %d of the machines that wait", n)
	}
	if list := executed(t, filepath.Join(prefix, "versions", first)); len(list) == 0 {
		t.Errorf("no process is executed from %s", first)
	}

	k.OK(t, "set", "image", "-n", "manis-system", "daemonset/manis-node", "manis-node=docker.io/library/manis-node:two", "manisd=docker.io/library/manis-node:two")
	stage.Eventually(t, "the newer version", func() bool { return current() != first && label("version") == current() })
	second := current()
	waiting(t, prefix, second)
	installed("after", "new")
	if n := claims(t, prefix); n != 1 {
		t.Errorf("the second pod has claimed %d of the newer machines that wait", n)
	}
	k.Prints(t, "old", "exec", "before", "--", "cat", "/kept")
	if got := suite.c.says("get", "pod", "before", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"); got != "0" {
		t.Errorf("the pod that ran has restarted %s times", got)
	}
	for _, version := range []string{first, second} {
		if list := executed(t, filepath.Join(prefix, "versions", version)); len(list) == 0 {
			t.Errorf("no process is executed from %s", version)
		}
	}
	if n := restarts(); n != 1 {
		t.Errorf("containerd was restarted %d times, the upgrade should not have", n)
	}
	k.OK(t, "delete", "pod", "before", "--grace-period=1")
	stage.Eventually(t, "the old version to go", func() bool {
		_, err := os.Stat(filepath.Join(prefix, "versions", first))
		return errors.Is(err, fs.ErrNotExist)
	})
	k.Prints(t, "new", "exec", "after", "--", "cat", "/kept")

	// It is taken away while a pod runs: it waits for that, and takes no more.
	k.OK(t, append([]string{"delete", "--cascade=foreground", "--wait=false"}, set...)...)
	stage.Eventually(t, "the label to go", func() bool { return label("ready") == "" })
	k.Prints(t, "new", "exec", "after", "--", "cat", "/kept")
	k.OK(t, "delete", "pod", "after", "--grace-period=1")
	k.OK(t, append([]string{"wait", "--for=delete", "--timeout=150s"}, set...)...)
	for _, path := range []string{prefix, dir("conf.d")} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left behind: %v", path, err)
		}
	}
	if n := restarts(); n != 2 {
		t.Errorf("containerd was restarted %d times in all", n)
	}
	if got := label("version"); got != "" {
		t.Errorf("the node still has version %q", got)
	}
	// The others' handler is still there.
	start(t, "others", "  containers: ["+box("one", idle, "")+"]\n")
}
