package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// seen is a check of what a process in a container sees.
type seen struct{ name, script, want string }

// sees runs scripts in a running container and compares what they print.
func (w *world) sees(container string, checks []seen) {
	for _, c := range checks {
		w.t.(*testing.T).Run(c.name, func(t *testing.T) {
			w := w.in(t)
			r := w.manis("exec", container, "sh", "-c", c.script)
			if got := strings.TrimSpace(r.stdout); got != c.want {
				t.Errorf("%s\nprinted %q, want %q (%s)", c.script, got, c.want, r)
			}
		})
	}
}

func TestKernelIsTheGuests(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	host, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	if got := w.ok("run", "--rm", "box", "uname", "-r"); got == "" || got == strings.TrimSpace(string(host)) {
		t.Errorf("the container's kernel is %q, the host's %q", got, host)
	}
}

// What a container is without flags: docker's defaults.
func TestDefaultAttributes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	id := w.up("--name", "c", "box", "sleep", "1000")
	w.sees("c", []seen{
		{"user", "id -u; id -g", "0\n0"},
		{"host name", "hostname", id[:12]},
		{"environment", "tr '\\0' '\\n' </proc/1/environ | sort", "HOME=/root\nHOSTNAME=" + id[:12] + "\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		{"working directory", "readlink /proc/1/cwd", "/"},
		{"first process", "cat /proc/1/comm", "sleep"},
		{"effective capabilities", "grep CapEff /proc/1/status | cut -f2", "00000000a80425fb"},
		{"seccomp filter", "grep Seccomp: /proc/1/status | cut -f2", "2"},
		{"may gain privileges", "grep NoNewPrivs /proc/1/status | cut -f2", "0"},
		{"may not mount", "mount -t tmpfs x /mnt 2>/dev/null || mount -t tmpfs x /tmp 2>&1 | grep -c -e denied -e permitted", "1"},
		{"may not change the network", "ip link add dummy0 type dummy 2>&1 | grep -c permitted", "1"},
		{"may not set the clock", "date -s 2001-01-01 2>&1 >/dev/null | grep -c permitted", "1"},
		{"masked", "cat /proc/timer_list /proc/keys 2>/dev/null | wc -c; ls -A /sys/firmware | wc -l", "0\n0"},
		{"read-only kernel files", "echo 1 2>/dev/null >/proc/sys/kernel/panic || echo refused", "refused"},
		{"devices", "ls /dev | sort | tr '\\n' ' '", "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"},
		{"no other devices", "mknod /tmp/disk b 254 0 && dd if=/tmp/disk of=/dev/null count=1 2>&1 | grep -c -e permitted -e denied", "1"},
		{"umask", "sh -c umask", "0022"},
		{"descriptors", "ulimit -n", "1024"},
		{"loopback is up", "ip -o addr show lo | grep -c 127.0.0.1", "1"},
		{"localhost has a name", "grep -c -w localhost /etc/hosts", "2"},
		{"own name resolves", "test $(grep -c " + id[:12] + " /etc/hosts) -ge 1 && echo yes", "yes"},
		{"cgroup shows itself as root", "cat /proc/1/cgroup", "0::/"},
		{"writable root", "touch /x && echo yes", "yes"},
		{"stdin of exec without -i", "wc -c", "0"},
	})
}

// What flags of run change.
func TestAttributeFlags(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	envFile := filepath.Join(w.dir, "env")
	if err := os.WriteFile(envFile, []byte("# comment\nFROM_FILE=yes\nHOME=/from/file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.setenv("FROM_OUTSIDE", "passed")
	w.up("--name", "c",
		"-u", "1000:1001", "--group-add", "50", "-w", "/some/new/dir", "--umask", "027",
		"-e", "A=b", "-e", "FROM_OUTSIDE", "--env-file", envFile,
		"--hostname", "name", "--domainname", "example.org",
		"--ulimit", "nofile=99:100", "--sysctl", "net.ipv4.ip_forward=1", "--shm-size", "2m", "--pids-limit", "50",
		"-m", "64m", "--cpus", "0.5", "--cpu-shares", "512", "--oom-score-adj", "500",
		"--read-only", "--tmpfs", "/scratch:size=1m,mode=1777", "--security-opt", "no-new-privileges",
		"--cap-drop", "ALL", "--cap-add", "NET_BIND_SERVICE", "--label", "colour=blue", "--cpuset-cpus", "0",
		"box", "sleep", "1000")
	w.sees("c", []seen{
		{"user and groups", "id -u; id -g; id -G", "1000\n1001\n1001 50"},
		{"working directory is made", "pwd", "/some/new/dir"},
		{"umask", "cat /proc/1/status | grep Umask | cut -f2", "0027"},
		{"environment", "echo $A $FROM_OUTSIDE $FROM_FILE $HOME", "b passed yes /from/file"},
		{"host name", "cat /proc/sys/kernel/hostname /proc/sys/kernel/domainname", "name\nexample.org"},
		{"hosts", "grep -c 'name.example.org' /etc/hosts", "2"},
		{"descriptors", "ulimit -Sn; ulimit -Hn", "99\n100"},
		{"sysctl", "cat /proc/sys/net/ipv4/ip_forward", "1"},
		{"shm size", "df -k /dev/shm | tail -1 | awk '{print $2}'", "2048"},
		{"pids", "cat /sys/fs/cgroup/pids.max", "50"},
		{"memory", "cat /sys/fs/cgroup/memory.max", fmt.Sprint(64 << 20)},
		{"cpu quota", "cat /sys/fs/cgroup/cpu.max", "50000 100000"},
		{"cpu weight", "cat /sys/fs/cgroup/cpu.weight", "20"},
		{"cpu set", "cat /sys/fs/cgroup/cpuset.cpus.effective", "0"},
		{"oom score", "cat /proc/1/oom_score_adj", "500"},
		{"read-only root", "touch /x 2>&1", "touch: /x: Read-only file system"},
		{"tmpfs", "touch /scratch/x && df -k /scratch | tail -1 | awk '{print $2}'", "1024"},
		{"tmpfs is limited", "dd if=/dev/zero of=/scratch/y bs=1M count=2 2>&1 | grep -c 'No space left'", "1"},
		{"no new privileges", "grep NoNewPrivs /proc/1/status | cut -f2", "1"},
		{"no capabilities but one", "grep CapBnd /proc/1/status | cut -f2", "0000000000000400"},
	})
	t.Run("inspect says so", func(t *testing.T) {
		w := w.in(t)
		got := w.field("c", "{{.Config.Hostname}} {{.Config.User}} {{.Config.Labels.colour}} {{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.PidsLimit}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapAdd}} {{.HostConfig.CapDrop}}")
		if want := "name 1000:1001 blue 67108864 500000000 50 true [NET_BIND_SERVICE] [ALL]"; got != want {
			t.Errorf("inspect says %q, want %q", got, want)
		}
	})
}

func TestExecFlags(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	envFile := filepath.Join(w.dir, "env")
	if err := os.WriteFile(envFile, []byte("FROM_FILE=yes\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.up("--name", "c", "-e", "OWN=1", "-w", "/tmp", "-u", "www-data", "box", "sleep", "1000")
	for _, c := range []struct{ name, flags, script, want string }{
		{"inherits", "", "id -un; pwd; echo $OWN", "www-data\n/tmp\n1"},
		{"user", "-u nobody", "id -un", "nobody"},
		{"root", "-u 0", "id -u; echo $HOME", "0\n/root"},
		{"numbers", "-u 7:8", "id -u; id -g", "7\n8"},
		{"working directory", "-w /etc", "pwd", "/etc"},
		{"environment", "-e OWN=2 --env-file " + envFile, "echo $OWN $FROM_FILE", "2 yes"},
		{"privileged", "--privileged -u 0", "grep CapEff /proc/self/status | cut -f2", "000001ffffffffff"},
		{"not privileged", "-u 0", "grep CapEff /proc/self/status | cut -f2", "00000000a80425fb"},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := append([]string{"exec"}, strings.Fields(c.flags)...)
			if got := w.in(t).ok(append(args, "c", "sh", "-c", c.script)...); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
	t.Run("stdin", func(t *testing.T) {
		w := w.in(t)
		if r := w.manisIn("one\ntwo\n", "exec", "-i", "c", "cat"); r.stdout != "one\ntwo\n" || r.code != 0 {
			t.Error(r)
		}
		if r := w.manisIn("one\n", "exec", "c", "cat"); r.stdout != "" || r.code != 0 {
			t.Errorf("without -i: %s", r)
		}
	})
	t.Run("two streams", func(t *testing.T) {
		if r := w.in(t).manis("exec", "c", "sh", "-c", "echo out; echo err >&2"); r.stdout != "out\n" || r.stderr != "err\n" {
			t.Error(r)
		}
	})
	t.Run("detached", func(t *testing.T) {
		w := w.in(t)
		if r := w.manis("exec", "-d", "c", "sh", "-c", "echo done >/tmp/detached; sleep 1000"); r.code != 0 || r.stdout != "" {
			t.Error(r)
		}
		eventually(t, "the detached process", func() bool {
			r := w.manis("exec", "c", "cat", "/tmp/detached")
			return r.stdout == "done\n"
		})
	})
}

// A privileged container has everything of its own machine, which is none of the host's.
func TestPrivileged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	w.up("--name", "c", "--privileged", "box", "sleep", "1000")
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	w.sees("c", []seen{
		{"all capabilities", "grep CapEff /proc/self/status | cut -f2", "000001ffffffffff"},
		{"no seccomp filter", "grep Seccomp: /proc/self/status | cut -f2", "0"},
		{"may mount", "mount -t tmpfs x /mnt 2>/dev/null || { mkdir -p /m; mount -t tmpfs x /m; }; grep -c '^x ' /proc/mounts", "1"},
		{"may change sysctls", "echo 7 >/proc/sys/kernel/panic_on_oops; cat /proc/sys/kernel/panic_on_oops", "7"},
		{"may change the network", "ip link add dummy7 type dummy && ip -o link show dummy7 | wc -l", "1"},
		{"sees its own machine's name", "test \"$(hostname)\" != " + host + " && echo other", "other"},
		{"no modules", "test -e /proc/modules && echo modules || echo none", "none"},
	})
}

func TestEntrypointInitAndNamespaces(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.load("box")
	t.Run("entrypoint", func(t *testing.T) {
		t.Parallel()
		if got := w.in(t).ok("run", "--rm", "--entrypoint", "echo", "box", "-n", "word"); got != "word" {
			t.Errorf("%q", got)
		}
	})
	t.Run("init reaps and forwards", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		// An orphan that ends must not stay a zombie; the process is not the first.
		w.up("--name", "init", "--init", "box", "sh", "-c", "trap 'echo told; exit 5' TERM; (sleep 0.1 & ) ; echo $$; while :; do sleep 0.1; done")
		eventually(t, "the orphan to be reaped", func() bool {
			return w.sh("init", "ps -o stat,comm | grep -c -e '^Z' -e 'sleep 0.1$'; true") == "0"
		})
		if pid := w.ok("logs", "init"); pid == "1" {
			t.Errorf("the process is the first in spite of --init")
		}
		w.ok("stop", "init")
		if got := w.field("init", "{{.State.ExitCode}}"); got != "5" {
			t.Errorf("exit code %s, want 5", got)
		}
	})
}
