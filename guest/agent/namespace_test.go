package agent_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	api "manis/api/agent"
)

func TestScheduling(t *testing.T) {
	m := theMachine(t)
	// Nice value, real-time priority and policy of process 1.
	const stat = "cut -d' ' -f19,40,41 /proc/1/stat"
	p := sh(stat + "; ionice -p 1; taskset -p 1; uname -m")
	p.Scheduler = &api.Scheduler{Policy: 1, Priority: 7}
	p.IoPriority = 3<<13 | 0
	p.CpuAffinity = []byte{1}
	p.Personality = 8
	if r := m.run(t, p, nil); !strings.HasPrefix(r.stdout, "0 7 1\n") || !strings.Contains(r.stdout, "idle") || !strings.Contains(r.stdout, "mask: 1\n") || !strings.HasSuffix(r.stdout, "i686\n") {
		t.Errorf("got %q %s", r.stdout, r.stderr)
	}
	p = sh(stat)
	p.Scheduler = &api.Scheduler{Policy: 3, Nice: 5}
	if r := m.run(t, p, nil); r.stdout != "5 0 3\n" {
		t.Errorf("got %q %s", r.stdout, r.stderr)
	}
	// A CPU that the machine does not have.
	p = sh("true")
	p.CpuAffinity = []byte{0, 0, 0, 1}
	c, _, err := m.create(t, p, nil)
	if err == nil {
		_, err = m.agent.StartContainer(deadline(t), &api.StartContainerRequest{Id: c.id})
	}
	if err == nil || !strings.Contains(err.Error(), "set CPU affinity") {
		t.Errorf("error %v", err)
	}
}

func TestTimeNamespace(t *testing.T) {
	m := theMachine(t)
	script := "cut -d. -f1 /proc/uptime"
	c, p := m.start(t, sh(script+"; cat"), func(r *api.CreateContainerRequest) {
		r.Time = &api.TimeNamespace{BoottimeSeconds: 1_000_000, MonotonicSeconds: 5}
	})
	p.stdout.await(t, "\n")
	further := c.exec(sh(script + "; cat /proc/self/timens_offsets"))
	if r := c.exec(sh("test $(readlink /proc/1/ns/time) = $(readlink /proc/self/ns/time) && echo same")); r.stdout != "same\n" {
		t.Errorf("namespaces: %q %s", r.stdout, r.stderr)
	}
	p.stdin.Close()
	if r := p.wait(); len(r.stdout) != 8 || !strings.HasPrefix(r.stdout, "1000") || !strings.HasPrefix(further.stdout, "1000") {
		t.Errorf("uptime %q, of a further process %q %s", r.stdout, further.stdout, further.stderr)
	}
	if r := m.run(t, sh(script), nil); len(r.stdout) > 6 {
		t.Errorf("uptime of another container %q", r.stdout)
	}
	if _, _, err := m.create(t, sh("true"), func(r *api.CreateContainerRequest) {
		r.Time = &api.TimeNamespace{MonotonicSeconds: -1_000_000}
	}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("below zero: %v", err)
	}
}

func TestUserNamespace(t *testing.T) {
	m := theMachine(t)
	users := func(r *api.CreateContainerRequest) {
		r.UidMappings = []*api.IDMapping{{ContainerId: 0, MachineId: 100000, Size: 65536}}
		r.GidMappings = []*api.IDMapping{{ContainerId: 0, MachineId: 200000, Size: 65536}}
		r.Mounts = []*api.Mount{
			{Destination: "/mem", Type: "tmpfs", Options: []string{"mode=0700", "uid=1000"}},
			{Destination: "/mine", Type: "tmpfs", Options: []string{"mode=0755"}},
		}
		r.Devices = []*api.Device{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, Mode: 0o600, Uid: 1000, Gid: 7, Access: "rwm"}}
		r.Files = []*api.File{{Path: "/etc/hosts", Content: []byte("x\n")}}
	}
	const show = `id -u; id -g; awk '{print $1,$2,$3}' /proc/self/uid_map /proc/self/gid_map
touch /mine/made /dev/made && stat -c '%u %g' /mine/made /mem /dev/fuse /etc/hosts
stat -c %u /data/file
echo hi >/dev/null && head -c 2 /dev/zero | wc -c; ls /proc/1/status /sys/kernel >/dev/null && echo mounted
echo more >>/etc/hosts && echo hosts
cat /proc/keys | wc -c; echo b >/proc/sysrq-trigger 2>/dev/null || echo sysrq-ro
grep CapEff /proc/self/status | cut -f2`
	want := "0\n0\n0 100000 65536\n0 200000 65536\n0 0\n1000 0\n1000 7\n0 0\n65534\n2\nmounted\nhosts\n0\nsysrq-ro\n00000000a80425fb\n"
	c, p := m.start(t, sh(show+"; cat"), users)
	p.stdout.await(t, "00a80425fb\n")
	further := c.exec(sh("id -u; cat /proc/self/uid_map | awk '{print $2}'; touch /mine/exec && stat -c %u /mine/exec; kill -0 1 && echo signal; for n in user mnt uts; do test $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) && echo $n; done"))
	if further.stdout != "0\n100000\n0\nsignal\nuser\nmnt\nuts\n" {
		t.Errorf("further process: %q %s", further.stdout, further.stderr)
	}
	// A user of the container, with a terminal of its own.
	tty := sh("id -u; tty; stat -c %u $(tty)")
	tty.Terminal, tty.Uid = true, 1000
	if r := c.exec(tty); r.stdout != "1000\r\n/dev/pts/0\r\n1000\r\n" {
		t.Errorf("terminal: %q", r.stdout)
	}
	p.stdin.Close()
	if r := p.wait(); r.stdout != want {
		t.Errorf("got  %q\nwant %q\n%s", r.stdout, want, r.stderr)
	}
	// As root of the namespace it may mount, but takes nothing away.
	admin := sh("mount -t tmpfs none /mnt && echo mounted; umount /proc/keys 2>/dev/null || echo locked; mount -o remount,rw,bind /proc/sys 2>/dev/null || echo ro; hostname other && hostname; mkdir /sys/fs/cgroup/x && echo cgroup; mknod /mine/sda b 8 0 2>/dev/null || echo nomknod")
	admin.Capabilities = &api.Capabilities{Bounding: capabilityNames, Effective: capabilityNames, Permitted: capabilityNames}
	r := m.run(t, admin, func(r *api.CreateContainerRequest) {
		users(r)
		r.Init = true
		r.Mounts = append(r.Mounts, &api.Mount{Destination: "/mnt", Type: "tmpfs"}, &api.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Options: []string{"rw"}})
	})
	if r.stdout != "mounted\nlocked\nro\nother\ncgroup\nnomknod\n" {
		t.Errorf("root of the namespace: %q %s", r.stdout, r.stderr)
	}
	// A UTS namespace of the sandbox stays one.
	if r := m.run(t, sh("hostname"), func(r *api.CreateContainerRequest) { users(r); r.ShareUts, r.Hostname = true, "" }); r.stdout != "sandbox\n" {
		t.Errorf("shared UTS namespace: %q %s", r.stdout, r.stderr)
	}
	unmapped := sh("true")
	unmapped.Uid = 70000
	box, _, err := m.create(t, unmapped, users)
	if err == nil {
		_, err = m.agent.StartContainer(deadline(t), &api.StartContainerRequest{Id: box.id})
	}
	if err == nil || !strings.Contains(err.Error(), "user 70000 is not mapped") {
		t.Errorf("a user that is not mapped: %v", err)
	}
	if _, _, err := m.create(t, sh("true"), func(r *api.CreateContainerRequest) { users(r); r.GidMappings = nil }); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no groups: %v", err)
	}
}

func TestStartHooks(t *testing.T) {
	m := theMachine(t)
	hook := func(script string) *api.Hook {
		return &api.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"PATH=/bin", "MARK=set"}}
	}
	r := m.run(t, sh("cat /state; cat /second"), func(r *api.CreateContainerRequest) {
		r.HookState = `{"ociVersion":"1.2.0","status":"created","bundle":"/b"}`
		r.StartHooks = []*api.Hook{
			hook("cat >/state; echo >>/state"),
			hook("hostname >/second; echo $MARK $(id -u) $(ls /proc/1/ns | wc -l) >>/second; mount | grep -c /dev/shm >>/second"),
		}
	})
	line, rest, _ := strings.Cut(r.stdout, "\n")
	var state map[string]any
	if err := json.Unmarshal([]byte(line), &state); err != nil || state["pid"] != 1.0 || state["bundle"] != "/b" || state["id"] == "" {
		t.Errorf("state %q: %v", line, err)
	}
	if !strings.HasPrefix(rest, "box\nset 0 ") || !strings.HasSuffix(rest, "\n1\n") {
		t.Errorf("second hook: %q %s", rest, r.stderr)
	}
	for name, c := range map[string]struct {
		hook *api.Hook
		want string
	}{
		"fails":     {hook("echo first >&2; echo the reason >&2; exit 3"), "startContainer hook /bin/sh: exit status 3: the reason"},
		"killed":    {hook("kill -9 $$"), "killed by signal 9"},
		"hangs":     {&api.Hook{Path: "/bin/sleep", Args: []string{"sleep", "1000"}, TimeoutSeconds: 1}, "did not end within 1 s"},
		"not there": {&api.Hook{Path: "/bin/nothing"}, "/bin/nothing"},
		"relative":  {&api.Hook{Path: "sh"}, "not absolute"},
	} {
		box, proc, err := m.create(t, sh("echo ran"), func(r *api.CreateContainerRequest) {
			r.StartHooks = []*api.Hook{c.hook, hook("echo next >/dev/console")}
		})
		if err != nil {
			t.Fatal(err)
		}
		_, err = m.agent.StartContainer(deadline(t), &api.StartContainerRequest{Id: box.id})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", name, err, c.want)
		}
		if out := proc.stdout.String(); out != "" {
			t.Errorf("%s: the process ran: %q", name, out)
		}
	}
	// A hook without a limit does not keep the container from being removed.
	box, _, err := m.create(t, sh("true"), func(r *api.CreateContainerRequest) {
		r.StartHooks = []*api.Hook{hook("echo hangs >/dev/shm/mark; sleep 1000")}
		r.Mounts = []*api.Mount{{Destination: "/dev/shm", Type: "share", Source: "host/inner"}}
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		_, err := m.agent.StartContainer(deadline(t), &api.StartContainerRequest{Id: box.id})
		ended <- err
	}()
	mark := filepath.Join(shared.dir, "share/inner/mark")
	for start := time.Now(); time.Since(start) < requestTimeout; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(mark); err == nil {
			break
		}
	}
	if _, err := m.agent.RemoveContainer(deadline(t), &api.ContainerRef{Id: box.id}); err != nil {
		t.Errorf("remove: %v", err)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "being removed") {
		t.Errorf("removed at its hook: %v", err)
	}
	// All of it together.
	p := sh("cat /mine/hook")
	p.NoNewPrivileges = true
	r = m.run(t, p, func(r *api.CreateContainerRequest) {
		r.UidMappings = []*api.IDMapping{{MachineId: 5000, Size: 10}}
		r.GidMappings = []*api.IDMapping{{MachineId: 5000, Size: 10}}
		r.Mounts = []*api.Mount{{Destination: "/mine", Type: "tmpfs"}, {Destination: "/dev/pts", Type: "devpts", Options: []string{"ptmxmode=0666"}}}
		r.Time = &api.TimeNamespace{BoottimeSeconds: 7_000_000}
		r.StartHooks = []*api.Hook{hook("id -u >/mine/hook; cut -c1 /proc/uptime >>/mine/hook; awk '{print $2}' /proc/self/uid_map >>/mine/hook; grep NoNewPrivs /proc/self/status | cut -f2 >>/mine/hook")}
	})
	if r.stdout != "0\n7\n5000\n1\n" {
		t.Errorf("with namespaces: %q %s", r.stdout, r.stderr)
	}
}
