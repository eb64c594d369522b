// Package podman runs the machine's Podman, unchanged, with Manis as its OCI runtime, and looks at
// what its users see: output, exit codes, files, ports, pods. It takes place on a stage (package
// stage), with directories of its own. At the end nothing may be left of it.
//
// What this machine lacks (root, Podman, a plugin) makes tests skip, with the reason.
package podman

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"manis/test/stage"
)

func TestMain(m *testing.M) { os.Exit(stage.Main(m, clean)) }

// suite is root's Podman, made with the first test.
var suite struct {
	once   sync.Once
	engine *stage.Engine
	before stage.Census
	skip   string
	err    error
}

// home is where root's Podman has everything.
func home() string { return filepath.Join(stage.Dir(), "root") }

// podman returns root's Podman with the image box.
func podman(t testing.TB) *stage.Engine {
	t.Helper()
	stage.Need(t)
	binary := stage.Manis(t)
	suite.once.Do(func() {
		if _, err := exec.LookPath("podman"); err != nil {
			suite.skip = "no Podman on this machine (make podman installs it)"
			return
		}
		dir, _ := stage.Box(t)
		e := &stage.Engine{
			Args: []string{"podman", "--root", filepath.Join(home(), "storage"), "--runroot", filepath.Join(home(), "state"), "--tmpdir", filepath.Join(home(), "tmp"),
				"--network-config-dir", filepath.Join(home(), "networks"), "--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", binary},
			Env: stage.Environ(stage.Home()),
			Dir: stage.Dir(),
		}
		if suite.err = os.MkdirAll(home(), 0o700); suite.err != nil {
			return
		}
		stage.Prepare(t, e.Env)
		if suite.err = prepare(e, dir); suite.err != nil {
			return
		}
		suite.engine, suite.before = e, take(e)
	})
	if suite.skip != "" {
		t.Skip(suite.skip)
	}
	if suite.err != nil {
		t.Fatal(suite.err)
	}
	if suite.engine == nil {
		t.Fatal("Podman could not be prepared")
	}
	return suite.engine
}

// prepare loads the image and has Podman make what it makes once: its network, with a container
// that does not run.
func prepare(e *stage.Engine, layout string) error {
	for _, args := range [][]string{
		{"pull", "-q", "oci:" + layout},
		{"tag", "localhost" + layout, "localhost/box:latest"},
	} {
		cmd := exec.Command(e.Args[0], append(e.Args[1:len(e.Args):len(e.Args)], args...)...)
		cmd.Env, cmd.Dir = e.Env, e.Dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("podman %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// take counts what containers may leave behind on the stage, and in the host's control groups (by
// the ids of all containers that there ever were).
func take(e *stage.Engine) stage.Census {
	groups := []string{filepath.Base(stage.Dir())}
	cmd := exec.Command(e.Args[0], append(e.Args[1:len(e.Args):len(e.Args)], "events", "--stream=false", "--since", "24h", "--filter", "event=create", "--format", "{{.ID}}")...)
	cmd.Env, cmd.Dir = e.Env, e.Dir
	out, _ := cmd.Output()
	groups = append(groups, strings.Fields(string(out))...)
	return stage.Take(groups)
}

// once there is what a first container makes and Podman keeps: bridges, locks, databases.
func kept(item string) bool {
	for _, prefix := range []string{"interface podman", "interface dummy", "file /run/containers", "file /run/netns", "file /run/lock", "file /run/xtables.lock", "file /dev/shm/libpod_", "mount /run/netns", "process /usr/lib/podman/aardvark-dns",
		"file /run/manis", "mount " + filepath.Join(home(), "storage", "overlay")} {
		if item == prefix || strings.HasPrefix(item, prefix) && !strings.Contains(item, "/netns-") && !strings.HasPrefix(item, "file /run/manis/oci/") && !strings.HasPrefix(item, "file /run/manis/pods/") {
			return true
		}
	}
	return false
}

// left is what there is more than before, but for what Podman keeps.
func left(e *stage.Engine, before stage.Census) []string {
	return stage.Settled(before, func() stage.Census {
		var c stage.Census
		for _, item := range take(e) {
			if !kept(item) {
				c = append(c, item)
			}
		}
		return c
	})
}

// clean removes everything after the last test, and finds what is left.
func clean() int {
	e := suite.engine
	if e == nil {
		return 0
	}
	code := 0
	for _, args := range [][]string{{"pod", "rm", "-af", "-t", "0"}, {"rm", "-af", "-t", "0"}, {"volume", "prune", "-f"}} {
		cmd := exec.Command(e.Args[0], append(e.Args[1:len(e.Args):len(e.Args)], args...)...)
		cmd.Env, cmd.Dir = e.Env, e.Dir
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "podman %s: %v: %s\n", strings.Join(args, " "), err, out)
			code = 1
		}
	}
	more := left(e, suite.before)
	for _, item := range more {
		fmt.Fprintln(os.Stderr, "left behind by the suite:", item)
		code = 1
	}
	return code
}

// up starts a container in the background, which is removed at the end of the test.
func up(t testing.TB, e *stage.Engine, args ...string) string {
	t.Helper()
	id := e.OK(t, append([]string{"run", "-d"}, args...)...)
	removeAtEnd(t, e, id)
	return id
}

func removeAtEnd(t testing.TB, e *stage.Engine, id string) {
	t.Cleanup(func() { e.OK(t, "rm", "-f", "-i", "-v", "-t", "0", id) })
}

// field reads one value of inspect.
func field(t testing.TB, e *stage.Engine, name, template string) string {
	t.Helper()
	return e.OK(t, "inspect", "--type", "container", "--format", template, name)
}

// idle is the command of a container that others talk to. It ends when it is asked to.
var idle = []string{"box", "sh", "-c", `trap 'exit 0' TERM; while :; do sleep 1000 & wait; done`}
