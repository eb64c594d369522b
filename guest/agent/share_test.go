package agent_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	api "manis/api/agent"
)

// shareRoot gives a container the tree on the host as its root.
func shareRoot(r *api.CreateContainerRequest) { r.Rootfs = &api.RootFS{Share: "host/rootfs"} }

func TestRootOnShare(t *testing.T) {
	m := theMachine(t)
	root := filepath.Join(shared.dir, "share/rootfs")
	r := m.run(t, sh("cat /data/file; echo written >/made; cat /proc/self/mountinfo; ls /proc/self/exe /dev/null /sys/kernel >/dev/null && echo all"), shareRoot)
	if !strings.HasPrefix(r.stdout, "from the image\n") || !strings.Contains(r.stdout, " / / rw") && !strings.Contains(mountLine(r.stdout, "/"), "9p") || !strings.HasSuffix(r.stdout, "all\n") {
		t.Errorf("got %q %s", r.stdout, r.stderr)
	}
	if line := mountLine(r.stdout, "/"); !strings.Contains(line, "9p") {
		t.Errorf("root is %q", line)
	}
	if b, err := os.ReadFile(filepath.Join(root, "made")); err != nil || string(b) != "written\n" {
		t.Errorf("on the host: %q, %v", b, err)
	}
	// What the host changes is seen, and a read-only root is not written to.
	c, p := m.start(t, sh("cat; cat /late; touch /x 2>&1 | sed 's/.*: //'; touch /dev/shm/x && echo shm"), func(r *api.CreateContainerRequest) {
		shareRoot(r)
		r.Rootfs.Readonly = true
	})
	if err := os.WriteFile(filepath.Join(root, "late"), []byte("late\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if r := c.exec(sh("cat /late; id -u")); r.stdout != "late\n0\n" {
		t.Errorf("exec: %q %s", r.stdout, r.stderr)
	}
	p.stdin.Close()
	if r := p.wait(); r.stdout != "late\nRead-only file system\nshm\n" {
		t.Errorf("read-only: %q %s", r.stdout, r.stderr)
	}
	for name, rootfs := range map[string]*api.RootFS{
		"not there":      {Share: "host/nothing"},
		"outside":        {Share: "host/../../../etc/passwd"},
		"a file":         {Share: "host/single"},
		"no share":       {Share: "other/x"},
		"disk and share": {Share: "host/rootfs", Disk: "root"},
	} {
		if _, _, err := m.create(t, sh("true"), func(r *api.CreateContainerRequest) { r.Rootfs = rootfs }); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestBoundDevice(t *testing.T) {
	m := theMachine(t)
	r := m.run(t, sh("wc -c </data/file; echo x >/data/file && echo written; chmod 600 /data/file 2>/dev/null || echo kept; head -c 3 /new/zero | wc -c"), func(r *api.CreateContainerRequest) {
		r.Mounts = []*api.Mount{
			{Destination: "/data/file", Type: "device", Source: "null", Options: []string{"rw", "nodev"}},
			{Destination: "/new/zero", Type: "device", Source: "zero"},
		}
	})
	if r.stdout != "0\nwritten\nkept\n3\n" {
		t.Errorf("got %q %s", r.stdout, r.stderr)
	}
	for _, source := range []string{"vda", "../run", "", "kmsg"} {
		if _, _, err := m.create(t, sh("true"), func(r *api.CreateContainerRequest) {
			r.Mounts = []*api.Mount{{Destination: "/x", Type: "device", Source: source}}
		}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%q: %v", source, err)
		}
	}
}

func TestSharedMemory(t *testing.T) {
	m := theMachine(t)
	shm := func(size string) func(r *api.CreateContainerRequest) {
		return func(r *api.CreateContainerRequest) {
			r.Mounts = []*api.Mount{{Destination: "/dev/shm", Type: "bind", Source: "shm-test", Options: []string{"rbind", "nosuid", "noexec", "nodev", "mode=1777", "size=" + size}}}
		}
	}
	const size = "df -k /dev/shm | tail -1 | awk '{print $2}'"
	t.Run("shared", func(t *testing.T) {
		r := m.run(t, sh(size+"; stat -c %a /dev/shm; echo kept >/dev/shm/file; grep /dev/shm /proc/self/mountinfo"), shm("1048576"))
		if !strings.HasPrefix(r.stdout, "1024\n1777\n") || !strings.Contains(mountLine(r.stdout, "/dev/shm"), "nosuid,nodev,noexec") {
			t.Errorf("got %q %s", r.stdout, r.stderr)
		}
		if r := m.run(t, sh("cat /dev/shm/file; "+size), shm("2097152")); r.stdout != "kept\n1024\n" {
			t.Errorf("second container: %q %s", r.stdout, r.stderr)
		}
	})
	// It has ended with those containers.
	t.Run("anew", func(t *testing.T) {
		if r := m.run(t, sh("ls /dev/shm | wc -l; "+size), shm("2097152")); r.stdout != "0\n2048\n" {
			t.Errorf("got %q %s", r.stdout, r.stderr)
		}
	})
	if _, _, err := m.create(t, sh("true"), func(r *api.CreateContainerRequest) {
		shm("4096")(r)
		r.Mounts[0].Source = "a/b"
	}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a path: %v", err)
	}
}

// TestFoundCommand looks for a command when its container is made, and has it moved before it is started.
func TestFoundCommand(t *testing.T) {
	m := theMachine(t)
	root := filepath.Join(shared.dir, "share/rootfs")
	for _, dir := range []string{"first", "second"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, dir, "say"), []byte("#!/bin/sh\necho "+dir+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	say := func() *api.Process {
		return &api.Process{Args: []string{"say"}, Cwd: "/", Env: []string{"PATH=/none:/first:/second:/bin", "HOME=/"}}
	}
	found := func(r *api.CreateContainerRequest) {
		shareRoot(r)
		r.FindCommand = true
	}
	if r := m.run(t, say(), found); r.stdout != "first\n" {
		t.Errorf("got %q %s", r.stdout, r.stderr)
	}
	c, proc, err := m.create(t, say(), found)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(root, "first/say")); err != nil {
		t.Fatal(err)
	}
	if _, err := m.agent.StartContainer(deadline(t), &api.StartContainerRequest{Id: c.id}); err != nil {
		t.Fatal(err)
	}
	if r := proc.wait(); r.stdout != "second\n" {
		t.Errorf("after it was removed: %q %s", r.stdout, r.stderr)
	}
	if err := os.Remove(filepath.Join(root, "second/say")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := m.create(t, say(), found); status.Code(err) != codes.NotFound {
		t.Errorf("a command that is nowhere: %v", err)
	}
}
