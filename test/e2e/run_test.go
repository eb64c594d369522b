package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestExitCodes(t *testing.T) {
	w := newWorld(t)
	w.loadBusybox()
	for _, c := range []struct {
		name  string
		args  []string
		code  int
		words string
	}{
		{"success", []string{"true"}, 0, ""},
		{"the container's own", []string{"sh", "-c", "exit 7"}, 7, ""},
		{"highest", []string{"sh", "-c", "exit 255"}, 255, ""},
		{"by signal", []string{"sh", "-c", "kill -9 $$"}, 137, ""},
		{"not found", []string{"no-such-command"}, 127, `"no-such-command": executable file not found in $PATH`},
		{"not found by path", []string{"/no/such"}, 127, "/no/such"},
		{"not executable", []string{"/etc/passwd"}, 126, "permission denied"},
		{"a directory", []string{"/etc"}, 126, "/etc"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := w.manis(append([]string{"run", "--rm", "busybox"}, c.args...)...)
			if r.code != c.code || !strings.Contains(r.stderr, c.words) {
				t.Errorf("want exit %d and %q, got %s", c.code, c.words, r)
			}
		})
	}
}

func TestKernelIsTheGuests(t *testing.T) {
	w := newWorld(t)
	w.loadBusybox()
	host, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	if got := w.ok("run", "--rm", "busybox", "uname", "-r"); got == "" || got == strings.TrimSpace(string(host)) {
		t.Errorf("the container's kernel is %q, the host's %q", got, host)
	}
}

func TestBadFlags(t *testing.T) {
	w := newWorld(t)
	w.loadBusybox()
	for _, c := range []struct{ args, words string }{
		{"run --no-such-flag busybox", "unknown flag: --no-such-flag"},
		{"run -m 1m busybox", "memory"},
		{"run -m lots busybox", "lots"},
		{"run --cpus 0.001 busybox", "cpus"},
		{"run --cpus 4000 busybox", "CPUs"},
		{"run -p 70000:80 busybox", "70000"},
		{"run -p 80:80/sctp busybox", "sctp"},
		{"run -v relative:: busybox", "relative"},
		{"run -v /x:/a -v /y:/a busybox", "/a"},
		{"run --mount type=bind,source=/no/such,target=/x busybox", "/no/such"},
		{"run --network nowhere busybox", "nowhere"},
		{"run --restart sometimes busybox", "sometimes"},
		{"run --rm --restart always busybox", "--rm"},
		{"run --ulimit nofile=9:1 busybox", "nofile"},
		{"run --cap-add FLY busybox", "FLY"},
		{"run --stop-signal SIGNOPE busybox", "SIGNOPE"},
		{"run --accel warp busybox", "warp"},
		{"run -e =x busybox", "=x"},
		{"run --name -bad- busybox", "-bad-"},
		{"run --user no-such-user busybox id", "no-such-user"},
		{"run --sysctl kernel.panic=1 busybox", "kernel.panic"},
		{"run --pull never no-such-image", "no-such-image"},
		{"run 127.0.0.1:1/no/such:tag", "127.0.0.1:1"},
		{"run UPPER", "lowercase"},
		{"run", "requires at least 1 argument"},
	} {
		t.Run(c.args, func(t *testing.T) {
			w.t = t
			defer func() { w.t = t }()
			w.fails(125, c.words, strings.Fields(c.args)...)
		})
	}
	if ids := w.ok("ps", "-aq"); ids != "" {
		// As docker: a container whose process could not start stays, created.
		for _, id := range strings.Fields(ids) {
			if status := w.ok("inspect", "-f", "{{.State.Status}}", id); status != "created" {
				t.Errorf("container %s left %s by a bad flag", id, status)
			}
		}
	}
}

func TestStdio(t *testing.T) {
	w := newWorld(t)
	w.loadBusybox()
	t.Run("stdin to its end", func(t *testing.T) {
		if r := w.manisIn("one\ntwo\n", "run", "--rm", "-i", "busybox", "cat"); r.stdout != "one\ntwo\n" || r.code != 0 {
			t.Error(r)
		}
	})
	t.Run("no stdin without -i", func(t *testing.T) {
		if r := w.manisIn("one\n", "run", "--rm", "busybox", "cat"); r.stdout != "" || r.code != 0 {
			t.Error(r)
		}
	})
	t.Run("two streams", func(t *testing.T) {
		if r := w.manis("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2"); r.stdout != "out\n" || r.stderr != "err\n" {
			t.Error(r)
		}
	})
	t.Run("bytes arrive as they were", func(t *testing.T) {
		r := w.manis("run", "--rm", "busybox", "sh", "-c", "dd if=/dev/urandom of=/tmp/x bs=1M count=20 2>/dev/null; md5sum </tmp/x >&2; cat /tmp/x")
		sum, _, _ := strings.Cut(r.stderr, " ")
		if got := md5sum(r.stdout); got != sum || len(r.stdout) != 20<<20 {
			t.Errorf("%d bytes with sum %s, sent with %s", len(r.stdout), got, sum)
		}
	})
	t.Run("terminal", func(t *testing.T) {
		r := w.pty("\x04", "run", "--rm", "-it", "busybox", "sh", "-c", "tty; stty size; cat; echo bye")
		for _, want := range []string{"/dev/pts/0", "40 120", "bye"} {
			if !strings.Contains(r.stdout, want) {
				t.Errorf("want %q in %s", want, r)
			}
		}
	})
	t.Run("terminal without one", func(t *testing.T) {
		w.fails(125, "not a TTY", "run", "--rm", "-it", "busybox", "true")
	})
}

func TestProcessAttributes(t *testing.T) {
	w := newWorld(t)
	w.loadBusybox()
	envFile := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(envFile, []byte("# comment\nFROM_FILE=yes\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		flags   string
		command string
		want    string
	}{
		{"-u 1000:1001", "id", "uid=1000 gid=1001"},
		{"-u daemon", "id -un", "daemon"},
		{"--group-add 50 -u 1000", "id -G", "50"},
		{"-w /some/new/dir", "pwd", "/some/new/dir"},
		{"-e A=b --env-file " + envFile, "echo $A $FROM_FILE", "b yes"},
		{"--hostname box --domainname example.org", "cat /proc/sys/kernel/hostname /etc/hosts", "box.example.org"},
		{"--read-only", "touch /x 2>&1; echo $?", "Read-only file system"},
		{"--read-only --tmpfs /scratch:size=1m", "touch /scratch/x && df /scratch | tail -1", "1024"},
		{"--cap-drop ALL", "grep CapEff /proc/self/status", "0000000000000000"},
		{"--cap-add NET_ADMIN", "ip link add dummy0 type dummy && ip link show dummy0", "dummy0"},
		{"", "ip link add dummy0 type dummy 2>&1", "not permitted"},
		{"--security-opt no-new-privileges", "grep NoNewPrivs /proc/self/status", "1"},
		{"", "grep Seccomp: /proc/self/status", "2"},
		{"--security-opt seccomp=unconfined", "grep Seccomp: /proc/self/status", "0"},
		{"--ulimit nofile=99:100", "ulimit -n; ulimit -Hn", "99\n100"},
		{"--init", "cat /proc/1/comm; ps | head -3", "init"},
		{"--sysctl net.ipv4.ip_forward=1", "cat /proc/sys/net/ipv4/ip_forward", "1"},
		{"--shm-size 2m", "df /dev/shm | tail -1", "2048"},
		{"--pids-limit 50", "cat /sys/fs/cgroup/pids.max", "50"},
		{"-m 64m", "cat /sys/fs/cgroup/memory.max", fmt.Sprint(64 << 20)},
		{"--cpus 0.5", "cat /sys/fs/cgroup/cpu.max", "50000 100000"},
		{"--entrypoint echo", "", "-c"},
		{"--add-host peer:10.1.2.3", "cat /etc/hosts", "10.1.2.3"},
		{"--dns 10.9.8.7 --dns-search corp.example", "cat /etc/resolv.conf", "corp.example"},
		{"--network none", "ip -o link | wc -l", "1"},
		{"--privileged", "mount -t tmpfs x /mnt && echo mounted", "mounted"},
		{"", "mount -t tmpfs x /mnt 2>&1", "denied"},
		{"--oom-score-adj 500", "cat /proc/self/oom_score_adj", "500"},
	} {
		t.Run(c.flags+" "+c.command, func(t *testing.T) {
			args := append([]string{"run", "--rm"}, strings.Fields(c.flags)...)
			args = append(args, "busybox")
			if c.command == "" {
				args = append(args, "-c")
			} else {
				args = append(args, "sh", "-c", c.command)
			}
			if r := w.manis(args...); !strings.Contains(r.stdout, c.want) {
				t.Errorf("want %q, got %s", c.want, r)
			}
		})
	}
	t.Run("more CPUs than the host has", func(t *testing.T) {
		w.fails(125, "CPUs", "run", "--cpus", fmt.Sprint(runtime.NumCPU()+1), "busybox")
	})
}
