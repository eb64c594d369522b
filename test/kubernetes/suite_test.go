package kubernetes

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"manis/test/stage"
)

func TestMain(m *testing.M) { os.Exit(stage.Main(m, clean)) }

// suite is the cluster, started with the first test.
var suite struct {
	once   sync.Once
	c      cluster
	ready  bool
	before stage.Census
	skip   string
	err    error
}

// kubectl is the command line of a cluster that is ready.
func kubectl(t testing.TB) *stage.Engine {
	t.Helper()
	stage.Need(t)
	binary := stage.Manis(t)
	suite.once.Do(func() {
		if _, err := os.Stat(filepath.Join(plugins, "bridge")); err != nil {
			suite.skip = "no CNI plugins on this machine (make kubernetes installs them)"
			return
		}
		if _, err := exec.LookPath("etcd"); err != nil {
			suite.skip = "no etcd on this machine (make kubernetes installs it)"
			return
		}
		suite.err = prepare(t, filepath.Dir(binary))
	})
	if suite.skip != "" {
		t.Skip(suite.skip)
	}
	if suite.err != nil {
		t.Fatal(suite.err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(suite.c.says("get", "pods,events", "-o", "wide"))
			t.Log(suite.c.said(2500))
			keep(t)
		}
	})
	return suite.c.kubectl
}

// keep copies the programs' words where MANIS_TEST_LOGS says, which outlives the stage.
func keep(t testing.TB) {
	to := os.Getenv("MANIS_TEST_LOGS")
	if to == "" {
		return
	}
	logs, _ := filepath.Glob(dir("*.log"))
	for _, path := range logs {
		if b, err := os.ReadFile(path); err == nil {
			if err := os.WriteFile(filepath.Join(to, filepath.Base(path)), b, 0o644); err != nil {
				t.Log(err)
			}
		}
	}
}

func prepare(t testing.TB, bin string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 25*time.Minute)
	defer cancel()
	if err := suite.c.up(ctx, t, bin); err != nil {
		return err
	}
	class := filepath.Join(stage.Top(), "deploy", "kubernetes", "runtimeclass.yaml")
	if out, err := suite.c.kubectl.Command(ctx, "apply", "-f", class).CombinedOutput(); err != nil {
		return fmt.Errorf("apply %s: %w: %s", class, err, out)
	}
	// Only now what the first pod makes and what stays can be told apart.
	apply(t, suite.c.kubectl, pod("first", `  containers: [{name: one, image: box, imagePullPolicy: Never, command: [sleep, "1000"]}]`))
	if out, err := suite.c.kubectl.Command(ctx, "wait", "--for=condition=Ready", "pod/first", "--timeout=2m").CombinedOutput(); err != nil {
		return fmt.Errorf("the first pod: %w: %s\n%s\n%s", err, out, suite.c.says("describe", "pod", "first"), suite.c.said(4000))
	}
	suite.c.kubectl.OK(t, "delete", "pod", "first", "--grace-period=1")
	suite.ready = true
	// What of it goes away is not part of what there is.
	for last, n := 0, 0; n < 20; n++ {
		if now := len(take()); now == last {
			break
		} else {
			last = now
		}
		time.Sleep(500 * time.Millisecond)
	}
	suite.before = take()
	return nil
}

// take counts what pods may leave behind. What the cluster's programs have of their own is not counted.
func take() stage.Census {
	// Groups of classes of pods are the kubelet's; the one of devices appears with the first such pod of runc's.
	exactly := []string{"control group /sys/fs/cgroup/devices/" + parent() + "/kubepods/burstable", "interface cni0", "file /run/manis/pods", "file /run/netns", "mount /run/netns", "file /run/xtables.lock"}
	below := []string{"process " + suite.c.programs, "process " + suite.c.containerd, "file /run/cni", "file /run/nri",
		"file /run/containerd/io.containerd", "file /run/containerd/fifo", "file /run/containerd/runc"}
	return slices.DeleteFunc(stage.Take([]string{"/" + parent() + "/"}, dir("state", "io.containerd.runtime.v2.task"), dir("kubelet", "pods")), func(item string) bool {
		return slices.Contains(exactly, item) || slices.ContainsFunc(below, func(p string) bool { return strings.HasPrefix(item, p) })
	})
}

// settled is what there is more than before, once the kubelet has had its time: it removes the sandboxes of pods that have gone once a minute, and only
// then containerd unmounts the /dev/shm of one that has ended before it was told to.
func settled(before stage.Census) (more []string) {
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); {
		if more = stage.Settled(before, take); len(more) == 0 {
			return nil
		}
	}
	return more
}

// clean finds what is left after the last test, and ends the cluster.
func clean() int {
	code := 0
	if suite.ready {
		for _, item := range settled(suite.before) {
			fmt.Fprintln(os.Stderr, "left behind by the suite:", item)
			code = 1
		}
	}
	suite.c.down()
	return code
}

// pod is the YAML of a pod on Manis; rest are the members of its spec, indented by two.
func pod(name, rest string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, labels: {app: %[1]s}}\nspec:\n  runtimeClassName: manis\n%s\n", name, rest)
}

// apply gives objects to the cluster.
func apply(t testing.TB, k *stage.Engine, yaml string) {
	t.Helper()
	if r := k.Feed(t, yaml, "apply", "-f", "-"); r.Code != 0 {
		t.Fatalf("apply: %s\n%s", r, yaml)
	}
}

// start applies a pod that is removed after the test, and waits until it is ready.
func start(t testing.TB, name, rest string) *stage.Engine {
	t.Helper()
	k := kubectl(t)
	t.Cleanup(func() { k.OK(t, "delete", "pod", name, "--grace-period=2", "--ignore-not-found") })
	apply(t, k, pod(name, rest))
	if r := k.Run(t, "wait", "--for=condition=Ready", "pod/"+name, "--timeout=100s"); r.Code != 0 {
		t.Fatalf("%s\n%s", r, suite.c.says("describe", "pod", name))
	}
	return k
}

// idle runs until it is told to end.
const idle = `[sh, -c, "trap 'exit 0' TERM; while :; do sleep 0.2; done"]`

// box is a container of the image that all have, as YAML within a line; rest are further members.
func box(name, command, rest string) string {
	if rest != "" {
		rest = ", " + rest
	}
	return fmt.Sprintf("{name: %s, image: box, imagePullPolicy: Never, command: %s%s}", name, command, rest)
}
