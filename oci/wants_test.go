package oci

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestWants(t *testing.T) {
	run := t.TempDir()
	t.Setenv("MANIS_RUN", run)
	t.Setenv("MANIS_ROOT", t.TempDir())
	other := t.TempDir()
	for _, dir := range []string{filepath.Join(run, "oci", "known"), filepath.Join(other, "elsewhere")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "state.json"), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(t.TempDir())
	for line, want := range map[string]bool{
		"":        false,
		"ps":      false,
		"ps -a":   false,
		"version": false,
		// Verbs of the runtime alone.
		"state x": true, "delete --force x": true, "list": true, "spec": true, "features": true, "oci run x": true,
		"--root /r --log l state x": true,
		// Engines' calls.
		"create --bundle /b --pid-file p x":                  true,
		"--root /r --log l --log-format json kill --all x 9": true,
		"--root=/r --log=l --log-format=json start x":        true,
		"--debug start x":  true,
		"start known":      true,
		"kill known 15":    true,
		"kill known TERM":  true,
		"pause known":      true,
		"exec -t known sh": true,
		"exec --user 1 --env A=b -d known sh --bundle": true,
		"exec --pid-file p --process j --detach x":     true,
		"exec --cwd / --user 0:0 x sh":                 true,
		"update --resources - x":                       true,
		"--root " + other + " start elsewhere":         true,
		"checkpoint --leave-running known":             true,
		"checkpoint --image-path /i --work-path /w --leave-running --tcp-established --parent-path ../p x": true,
		"restore --bundle /b --pid-file p --detach --image-path /i --work-path /w x":                       true,
		"restore -no-subreaper -bundle /b x":                                                               true,
		// Docker's.
		"--root /r start x":            false,
		"start x":                      false,
		"start -a known":               false,
		"kill -s 9 known":              false,
		"kill x":                       false,
		"run --rm busybox echo":        false,
		"run -d --name known busybox":  false,
		"run busybox sh --bundle x":    false,
		"exec -it x sh":                false,
		"exec x sh --pid-file p":       false,
		"exec -w / known sh":           false,
		"create --name x busybox":      false,
		"checkpoint x":                 false,
		"checkpoint --leave-running x": false,
		"checkpoint --name a known":    false,
		"restore x":                    false,
		"--run-root /r start known":    false,
		"start ../oci/known":           false,
	} {
		if got := Wants(strings.Fields(line)); got != want {
			t.Errorf("manis %s: %v, want %v", line, got, want)
		}
	}
	// A bundle's directory.
	if Wants([]string{"run", "x"}) {
		t.Error("run without a bundle is the runtime's")
	}
	if err := os.WriteFile("config.json", []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]bool{"run x": true, "create x": true, "restore x": true, "run -d x": true, "run --rm x": false, "run busybox echo": false, "run docker.io/library/busybox": false} {
		if got := Wants(strings.Fields(line)); got != want {
			t.Errorf("in a bundle, manis %s: %v, want %v", line, got, want)
		}
	}
}

func TestArgs(t *testing.T) {
	for line, want := range map[string]string{
		"":                                      "",
		"oci list":                              "list",
		"--root /r state -x":                    "--root /r state -x",
		"exec -it -e -cwd -cwd /w x sh -cwd /y": "exec -it -e -cwd --cwd /w x sh -cwd /y",
		"--log l restore -no-subreaper -bundle=/b --pid-file -detach -d -x -- id": "--log l restore --no-subreaper --bundle=/b --pid-file -detach -d -x -- id",
	} {
		if got := strings.Join(Args(strings.Fields(line)), " "); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

func TestGroupPath(t *testing.T) {
	for _, c := range []struct {
		systemd     bool
		asked, want string
	}{
		{false, "/a/b", "/a/b"},
		{false, "a", "a"},
		{true, "system.slice:docker:abc", "/system.slice/docker-abc.scope"},
		{true, "kubepods-burstable-pod1.slice:cri-containerd:x", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-x.scope"},
		{true, ":libpod:x", "/system.slice/libpod-x.scope"},
		{true, "-.slice::x.slice", "/x.slice"},
	} {
		a := &app{systemdCgroup: c.systemd}
		if got, err := a.groupPath("id", c.asked); got != c.want || err != nil {
			t.Errorf("%q: %q, %v, want %q", c.asked, got, err, c.want)
		}
	}
	if got, err := new(app).groupPath("id", ""); err != nil || !strings.HasSuffix(got, "manis/id") {
		t.Errorf("none asked for: %q, %v", got, err)
	}
	for _, asked := range []string{"/a/b", "a:b", "x:y:z:w", "bad:y:z", "a--b.slice:y:z", "a/b.slice:y:z", "s.slice:p:"} {
		if got, err := (&app{systemdCgroup: true}).groupPath("id", asked); err == nil {
			t.Errorf("%q: %q, want an error", asked, got)
		}
	}
}
