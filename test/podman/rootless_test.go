package podman

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"manis/test/stage"
)

// rootless returns the Podman of an ordinary user with subordinate ids.
func rootless(t *testing.T) *stage.Engine {
	t.Helper()
	stage.Need(t)
	binary := stage.Manis(t)
	for _, program := range []string{"podman", "newuidmap", "slirp4netns"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("no %s on this machine (make podman installs it)", program)
		}
	}
	u := stage.User
	user := filepath.Join(stage.Dir(), "user")
	for _, dir := range []string{user, filepath.Join(user, "run")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir, int(u.ID), int(u.ID)); err != nil {
			t.Fatal(err)
		}
	}
	p := &stage.Engine{
		Args:       []string{"podman", "--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", binary},
		Env:        stage.Environ(user, "XDG_RUNTIME_DIR="+filepath.Join(user, "run"), "USER="+u.Name, "LOGNAME="+u.Name),
		Dir:        user,
		Credential: &syscall.Credential{Uid: u.ID, Gid: u.ID, Groups: []uint32{}},
	}
	if r := p.Run(t, "unshare", "true"); r.Code != 0 {
		t.Skipf("Podman makes no namespaces for an ordinary user here: %s", r)
	}
	dir, _ := stage.Box(t)
	p.OK(t, "pull", "-q", "oci:"+dir)
	p.OK(t, "tag", "localhost"+dir, "localhost/box:latest")
	t.Cleanup(func() {
		p.OK(t, "rm", "-af", "-t", "0")
		p.Run(t, "system", "reset", "-f")
		// Files of other ids are not the user's to remove, but root's.
		os.RemoveAll(user)
	})
	return p
}

// An ordinary user has the same: containers, volumes, several ids, published ports.
func TestRootless(t *testing.T) {
	p := rootless(t)
	t.Parallel()
	shared := filepath.Join(p.Dir, "shared")
	if err := os.Mkdir(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(shared, int(stage.User.ID), int(stage.User.ID)); err != nil {
		t.Fatal(err)
	}
	p.Fails(t, 7, "", "run", "--rm", "--network", "none", "box", "sh", "-c", "exit 7")
	port := freePort(t)
	c := up(t, p, "-v", shared+":/shared", "-v", "rooms:/volume", "-p", "127.0.0.1:"+port+":80", "box", "sh", "-c", "mkdir /www; echo rootless >/www/index.html; exec httpd -f -p 80 -h /www")
	p.Prints(t, "0", "exec", c, "id", "-u")
	if r := p.Feed(t, "x", "exec", "-i", c, "sh", "-c", "cat; exit 5"); r.Code != 5 || r.Out != "x" {
		t.Errorf("exec: %s", r)
	}
	p.OK(t, "exec", c, "sh", "-c", "echo own >/shared/own; echo other >/shared/other; chown 33:33 /shared/other; touch /volume/a; chown 1000:1000 /volume/a")
	p.Prints(t, "0:0 33:33 1000:1000", "exec", c, "sh", "-c", "echo $(stat -c %u:%g /shared/own /shared/other /volume/a)")
	for name, owner := range map[string]uint32{"own": stage.User.ID, "other": stage.User.SubID + 32} {
		var st syscall.Stat_t
		if err := syscall.Stat(filepath.Join(shared, name), &st); err != nil || st.Uid != owner {
			t.Errorf("%s belongs to %d on the host, %v", name, st.Uid, err)
		}
	}
	p.Prints(t, "1234", "run", "--rm", "--network", "none", "-u", "1234", "box", "id", "-u")
	term := p.Terminal(t, "exec", "-it", c, "sh")
	term.Await("#")
	term.Type("exit 4\n")
	if code := term.End(); code != 4 {
		t.Errorf("exit code %d of %q", code, term.Shown())
	}
	p.Prints(t, "rootless", "exec", c, "wget", "-q", "-O-", "http://127.0.0.1/")
	t.Run("published port", func(t *testing.T) {
		// Podman's helper connects from inside the namespace to the container's own address, which
		// the machine has taken over.
		get(t, "http://127.0.0.1:"+port+"/", "rootless\n")
	})
	t.Run("pod", func(t *testing.T) {
		p.OK(t, append([]string{"run", "-d", "--pod", "new:burrow"}, server("pod")...)...)
		t.Cleanup(func() { p.OK(t, "pod", "rm", "-f", "-t", "0", "burrow") })
		stage.Eventually(t, "the other container's page", func() bool {
			return p.Run(t, "run", "--rm", "--pod", "burrow", "box", "wget", "-q", "-O-", "http://127.0.0.1/").Out == "pod\n"
		})
	})
	p.OK(t, "stop", "-t", "0", c)
	if got := field(t, p, c, "{{.State.Status}} {{.State.ExitCode}}"); got != "exited 137" {
		t.Errorf("it is %s", got)
	}
}
