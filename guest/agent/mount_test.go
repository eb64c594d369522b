package agent_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	api "manis/api/agent"
)

// mountLine returns options and type of a mount point in a mountinfo.
func mountLine(mountinfo, point string) string {
	found := ""
	for line := range strings.Lines(mountinfo) {
		if f := strings.Fields(line); len(f) > 5 && f[4] == point {
			before, after, _ := strings.Cut(line, " - ")
			opts := strings.Fields(before)[5]
			found = opts + " " + strings.TrimSpace(after)
		}
	}
	return found
}

func TestDefaultMounts(t *testing.T) {
	m := theMachine(t)
	r := m.run(t, command("cat", "/proc/self/mountinfo"), nil)
	for point, want := range map[string][]string{
		"/":              {"rw", "overlay"},
		"/proc":          {"rw,nosuid,nodev,noexec", "proc"},
		"/dev":           {"rw,nosuid,noexec", "tmpfs", "size=65536k"},
		"/dev/pts":       {"devpts", "gid=5", "ptmxmode=666"},
		"/dev/shm":       {"nosuid,nodev,noexec", "size=65536k"},
		"/dev/mqueue":    {"mqueue"},
		"/sys":           {"ro,nosuid,nodev,noexec", "sysfs"},
		"/sys/fs/cgroup": {"ro,nosuid,nodev,noexec", "cgroup2"},
		"/proc/keys":     {"ro", "devtmpfs"},
		"/proc/sys":      {"ro", "proc"},
		"/sys/firmware":  {"ro", "tmpfs"},
		"/proc/acpi":     {"ro", "tmpfs"},
	} {
		line := mountLine(r.stdout, point)
		for _, w := range want {
			if !strings.Contains(line, w) {
				t.Errorf("%s: %q lacks %q", point, line, w)
			}
		}
	}
	// Nothing but these is there.
	for line := range strings.Lines(r.stdout) {
		if strings.Contains(line, "/run/") && !strings.Contains(line, "overlay") {
			t.Errorf("unexpected mount %s", line)
		}
	}
}

func TestMasksAndDevices(t *testing.T) {
	m := theMachine(t)
	script := `
echo x >/proc/sys/kernel/hostname || echo sys-ro
echo b >/proc/sysrq-trigger || echo sysrq-ro
head -c 1 /proc/keys | wc -c
ls /sys/firmware | wc -l
chmod 600 /proc/keys 2>/dev/null || echo mask-ro
mkdir /sys/fs/cgroup/x 2>/dev/null || echo cgroup-ro
echo hi >/dev/null && head -c 2 /dev/zero | wc -c
head -c 1 /dev/urandom | wc -c
readlink /dev/fd; readlink /dev/stdin; readlink /dev/ptmx
mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk 2>&1 | sed 's/.*: //'
mknod /tmp/port c $(cat /sys/class/virtio-ports/*/dev | tr : ' ') 2>&1 | sed 's/.*: //'
ls /dev/vda /dev/vport* /dev/mapper 2>&1 | grep -c 'No such'
`
	r := m.run(t, sh(script), nil)
	want := "sys-ro\nsysrq-ro\n0\n0\nmask-ro\ncgroup-ro\n2\n1\n/proc/self/fd\n/proc/self/fd/0\npts/ptmx\nOperation not permitted\nOperation not permitted\n3\n"
	if r.stdout != want {
		t.Errorf("got  %q\nwant %q\n%s", r.stdout, want, r.stderr)
	}
}

func TestDevices(t *testing.T) {
	m := theMachine(t)
	p := sh("ls -ln /dev/net/tun | awk '{print $1,$3,$4,$5,$6}'; cat </dev/net/tun 2>&1 | sed 's/.*: //'; : >/dev/full; echo x >/dev/full || echo full; stat -c %F /dev/apipe")
	r := m.run(t, p, func(r *api.CreateContainerRequest) {
		r.Devices = []*api.Device{
			{Path: "/dev/net/tun", Type: "c", Major: 10, Minor: 200, Mode: 0o620, Uid: 5, Gid: 6, Access: "rwm"},
			{Path: "/dev/apipe", Type: "p", Mode: 0o600},
		}
	})
	if got := strings.Split(r.stdout, "\n"); got[0] != "crw--w---- 5 6 10, 200" || !strings.Contains(r.stdout, "File descriptor in bad state") || !strings.Contains(r.stdout, "fifo") {
		t.Errorf("got %q %s", r.stdout, r.stderr)
	}
	// Without a rule the node is there but opens nothing.
	r = m.run(t, command("cat", "/dev/net/tun"), func(r *api.CreateContainerRequest) {
		r.Devices = []*api.Device{{Path: "/dev/net/tun", Type: "c", Major: 10, Minor: 200}}
	})
	if !strings.Contains(r.stderr, "not permitted") {
		t.Errorf("got %q", r.stderr)
	}
}

func TestDeviceRules(t *testing.T) {
	m := theMachine(t)
	p := sh("cat /dev/null && echo null; head -c 1 /dev/zero >/dev/null && echo zero; (echo >/dev/null) && echo write")
	r := m.run(t, p, func(r *api.CreateContainerRequest) {
		r.Resources = &api.Resources{DeviceRules: []*api.DeviceRule{
			{Allow: true, Type: "c", Major: 1, Minor: -1, Access: "rwm"},
			{Allow: false, Type: "c", Major: 1, Minor: 3, Access: "w"},
			{Allow: false, Type: "a", Major: 1, Minor: 5, Access: ""},
			{Allow: true, Type: "c", Major: 136, Minor: -1, Access: "rwm"},
		}}
		r.Process.Args = []string{"sh", "-c", "cat /dev/null && echo null; cat /dev/zero 2>&1 | head -c 80; (echo x >/dev/null) && echo write"}
	})
	if !strings.HasPrefix(r.stdout, "null\n") || !strings.Contains(r.stdout, "not permitted") || strings.Contains(r.stdout, "write") {
		t.Errorf("got %q %s", r.stdout, r.stderr)
	}
}

func TestPrivileged(t *testing.T) {
	m := theMachine(t)
	p := sh("ls /dev/vda /dev/kmsg; ls /dev/vport* 2>&1 | grep -c such; mkdir /sys/fs/cgroup/inner && echo cgroup; dd if=/dev/vda bs=512 count=1 2>/dev/null | wc -c; mknod /tmp/port c $(cat /sys/class/virtio-ports/*/dev | tr : ' ') 2>&1 | sed 's/.*: //'")
	r := m.run(t, p, func(r *api.CreateContainerRequest) {
		r.Privileged = true
		r.MaskedPaths, r.ReadonlyPaths = nil, nil
		r.Process.Capabilities = &api.Capabilities{Bounding: capabilityNames, Effective: capabilityNames, Permitted: capabilityNames}
	})
	want := "/dev/kmsg\n/dev/vda\n1\ncgroup\n512\nOperation not permitted\n"
	if r.stdout != want {
		t.Errorf("got %q %s, want %q", r.stdout, r.stderr, want)
	}
}

func TestMounts(t *testing.T) {
	m := theMachine(t)
	p := sh(`
cat /proc/self/mountinfo
echo ---
cat /single
ls /shared
echo new >/shared/made && echo shared-rw
echo x >/ro/made 2>/dev/null || echo shared-ro
df -k /mem | tail -1 | awk '{print $2}'
stat -c %a /mem
touch /up/here && echo /up is inside
readlink /up
ls -d /var/lib/later/*
cat /copied/file
ls /empty | wc -l
`)
	r := m.run(t, p, func(r *api.CreateContainerRequest) {
		r.Mounts = []*api.Mount{
			{Destination: "/mem", Type: "tmpfs", Options: []string{"size=1m", "mode=0711", "noexec", "nosuid", "nodev"}},
			{Destination: "/single", Type: "share", Source: "host/single", Options: []string{"ro"}},
			{Destination: "/shared", Type: "share", Source: "host/inner", Options: []string{"rbind", "rw"}},
			{Destination: "/ro", Type: "share", Source: "host/inner", Options: []string{"rbind", "ro"}},
			{Destination: "/up/../up", Type: "tmpfs"},
			{Destination: "/dangling/deep", Type: "tmpfs"},
			{Destination: "/data", Type: "tmpfs", Options: []string{"tmpcopyup"}},
			{Destination: "/copied", Type: "tmpfs"},
			{Destination: "/dev/shm", Type: "tmpfs", Options: []string{"size=2m", "nosuid", "nodev", "noexec"}},
		}
		r.Mounts = append(r.Mounts[:7:7], r.Mounts[8])
		r.Process.Args[2] = strings.Replace(r.Process.Args[2], "cat /copied/file\nls /empty | wc -l", "cat /data/file; ls -n /data/file | awk '{print $2,$3,$4}'", 1)
	})
	info, rest, _ := strings.Cut(r.stdout, "---\n")
	want := "one file\nshared-rw\nshared-ro\n1024\n711\n/up is inside\n../../../../../../run/manis\n/var/lib/later/deep\nfrom the image\n2 1000 29\n"
	if rest != want {
		t.Errorf("got  %q\nwant %q\n%s", rest, want, r.stderr)
	}
	for point, want := range map[string]string{
		"/mem":                "nosuid,nodev,noexec",
		"/single":             "ro,",
		"/shared":             "rw,",
		"/ro":                 "ro,",
		"/run/manis":          "tmpfs",
		"/var/lib/later/deep": "tmpfs",
		"/dev/shm":            "size=2048k",
	} {
		if line := mountLine(info, point); !strings.Contains(line, want) {
			t.Errorf("%s: %q lacks %q", point, line, want)
		}
	}
	if b, err := os.ReadFile(filepath.Join(shared.dir, "share/inner/made")); err != nil || string(b) != "new\n" {
		t.Errorf("on the host: %q, %v", b, err)
	}
}

func TestFiles(t *testing.T) {
	m := theMachine(t)
	files := func(r *api.CreateContainerRequest) {
		r.Files = []*api.File{
			{Path: "/etc/hosts", Content: []byte("127.0.0.1 localhost\n")},
			{Path: "/etc/resolv.conf", Content: []byte("nameserver 10.9.8.1\n"), Mode: 0o600},
			{Path: "/etc/passwd", Content: []byte("root:x:0:0::/other:/bin/sh\n")},
		}
	}
	r := m.run(t, sh("cat /etc/hosts /etc/resolv.conf; stat -c %a /etc/hosts /etc/resolv.conf; echo more >>/etc/hosts && tail -1 /etc/hosts; echo $HOME"), files)
	if r.stdout != "127.0.0.1 localhost\nnameserver 10.9.8.1\n644\n600\nmore\n/other\n" {
		t.Errorf("got %q %s", r.stdout, r.stderr)
	}
	// Not kept.
	if r := m.run(t, sh("cat /etc/hosts"), files); r.stdout != "127.0.0.1 localhost\n" {
		t.Errorf("got %q", r.stdout)
	}
}

func TestSharedVolume(t *testing.T) {
	m := theMachine(t)
	volume := func(r *api.CreateContainerRequest) {
		r.Mounts = []*api.Mount{{Destination: "/vol", Type: "bind", Source: "pod/one", Options: []string{"rbind"}}}
	}
	m.run(t, sh("echo kept >/vol/file; ln -s /etc/passwd /vol/out"), volume)
	if r := m.run(t, sh("cat /vol/file"), volume); r.stdout != "kept\n" {
		t.Errorf("got %q %s", r.stdout, r.stderr)
	}
	// A link that a container left in a volume leads nowhere outside.
	_, _, err := m.create(t, sh("true"), func(r *api.CreateContainerRequest) {
		r.Mounts = []*api.Mount{{Destination: "/x", Type: "bind", Source: "pod/one/out", Options: []string{"rbind"}}}
	})
	if err == nil {
		t.Error("a link was followed out of the volume")
	}
}

func TestNamedVolume(t *testing.T) {
	m := theMachine(t)
	volume := func(r *api.CreateContainerRequest) {
		r.Mounts = []*api.Mount{{Destination: "/data", Type: "disk", Source: "volume", Options: []string{"subdir=_data"}, Populate: true}}
	}
	r := m.run(t, sh("cat /data/file /data/sub/other; ls -n /data/file | awk '{print $2,$3,$4}'; stat -c '%a %h' /data/file /data/sub /data/hard; ls /data | grep -c lost; echo changed >/data/file; rm /data/sub/other"), volume)
	if r.stdout != "from the image\ndeeper\n2 1000 29\n640 2\n755 2\n640 2\n0\n" {
		t.Errorf("first use: %q %s", r.stdout, r.stderr)
	}
	// Kept, and not filled again.
	if r := m.run(t, sh("cat /data/hard; ls /data/sub | wc -l"), volume); r.stdout != "changed\n0\n" {
		t.Errorf("second use: %q %s", r.stdout, r.stderr)
	}
}

func TestScratchDisk(t *testing.T) {
	m := theMachine(t)
	scratch := func(r *api.CreateContainerRequest) { r.Rootfs.ScratchDisk = "scratch" }
	r := m.run(t, sh("echo disk >/file; rm /etc/group; mv /data /moved; df -k / | tail -1 | awk '{print ($2 < 70000)}'"), scratch)
	if r.stdout != "1\n" || r.ExitCode != 0 {
		t.Errorf("first: %q %s", r.stdout, r.stderr)
	}
	if r := m.run(t, sh("cat /file; ls /etc/group /data 2>&1 | grep -c No; cat /moved/file"), scratch); r.stdout != "disk\n2\nfrom the image\n" {
		t.Errorf("second: %q %s", r.stdout, r.stderr)
	}
	// Another container sees nothing of it.
	if r := m.run(t, sh("ls /file 2>&1 | grep -c No"), nil); r.stdout != "1\n" {
		t.Errorf("other: %q", r.stdout)
	}
}

func TestReadonlyRoot(t *testing.T) {
	m := theMachine(t)
	r := m.run(t, sh("touch /x 2>&1 | sed 's/.*: //'; touch /dev/shm/x && echo shm; touch /new/x && echo mounted; mount -o remount,rw / 2>/dev/null || echo refused"), func(r *api.CreateContainerRequest) {
		r.Rootfs.Readonly = true
		r.Mounts = []*api.Mount{{Destination: "/new", Type: "tmpfs"}}
	})
	if r.stdout != "Read-only file system\nshm\nmounted\nrefused\n" {
		t.Errorf("got %q %s", r.stdout, r.stderr)
	}
}

func TestTmpfsLimit(t *testing.T) {
	m := theMachine(t)
	r := m.run(t, sh("dd if=/dev/zero of=/big bs=64k count=64 2>&1 | grep -c 'No space'"), func(r *api.CreateContainerRequest) {
		r.Rootfs.TmpfsBytes = 1 << 20
	})
	if r.stdout != "1\n" {
		t.Errorf("got %q %s", r.stdout, r.stderr)
	}
}

func TestImageSurvivesIntact(t *testing.T) {
	m := theMachine(t)
	r := m.run(t, sh("stat -c '%a %u %g %h' /data/file /data/hard /tmp /; cat /data/hard; chown 5:6 /data/sub/other; chmod 4755 /data/sub/other; stat -c '%a %u %g' /data/sub/other; mv /data/sub /data/renamed && cat /data/renamed/other"), nil)
	want := "640 1000 29 2\n640 1000 29 2\n1777 0 0 2\n755 0 0 1\nfrom the image\n4755 5 6\ndeeper\n"
	if !strings.HasSuffix(r.stdout, "from the image\n4755 5 6\ndeeper\n") || !strings.HasPrefix(r.stdout, want[:30]) {
		t.Errorf("got %q %s", r.stdout, r.stderr)
	}
}

func TestNoDefaultMounts(t *testing.T) {
	m := theMachine(t)
	r := m.run(t, command("ls", "/proc", "/sys", "/dev"), func(r *api.CreateContainerRequest) {
		r.NoDefaultMounts = true
		r.MaskedPaths, r.ReadonlyPaths = nil, nil
	})
	if r.stdout != "" || strings.Count(r.stderr, "No such file") != 3 {
		t.Errorf("got %q %q", r.stdout, r.stderr)
	}
}

// Every option for a mount that the runtime specification names is taken.
func TestMountOptions(t *testing.T) {
	m := theMachine(t)
	options := strings.Fields(`ro rw nosuid suid nodev dev noexec exec nodiratime diratime noatime atime relatime norelatime
		strictatime nostrictatime nosymfollow symfollow rro rrw rnosuid rsuid rnodev rdev rnoexec rexec rnodiratime rdiratime
		rnoatime ratime rrelatime rnorelatime rstrictatime rnostrictatime rnosymfollow rsymfollow
		private rprivate slave rslave shared rshared unbindable runbindable`)
	r := m.run(t, command("cat", "/proc/self/mountinfo"), func(r *api.CreateContainerRequest) {
		for _, o := range options {
			r.Mounts = append(r.Mounts,
				&api.Mount{Destination: "/share/" + o, Type: "share", Source: "host/inner", Options: []string{"rbind", o}},
				&api.Mount{Destination: "/tmpfs/" + o, Type: "tmpfs", Options: []string{o}})
		}
		for _, o := range []string{"sync", "dirsync", "lazytime", "nolazytime"} {
			r.Mounts = append(r.Mounts, &api.Mount{Destination: "/tmpfs/" + o, Type: "tmpfs", Options: []string{o}})
		}
	})
	for point, want := range map[string]string{
		"/share/rro": "ro,relatime", "/tmpfs/ro": "ro,relatime", "/share/rnosuid": "rw,nosuid,", "/tmpfs/rnoexec": "rw,noexec,",
		"/share/noatime": "rw,noatime", "/share/rstrictatime": "rw ", "/tmpfs/nodiratime": "rw,nodiratime", "/share/nosymfollow": "nosymfollow",
		"/tmpfs/sync": "tmpfs tmpfs rw,sync",
	} {
		if line := mountLine(r.stdout, point); !strings.Contains(line, want) {
			t.Errorf("%s: %q lacks %q", point, line, want)
		}
	}
	for _, line := range strings.Split(r.stdout, "\n") {
		if strings.Contains(line, " /share/shared ") && !strings.Contains(line, "shared:") {
			t.Errorf("not shared: %s", line)
		}
	}
}
