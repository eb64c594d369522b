package podman

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"manis/test/stage"
)

// The exit code is the command's, or says why it never ran.
func TestExitCodes(t *testing.T) {
	p := podman(t)
	t.Parallel()
	for _, c := range []struct {
		name  string
		code  int
		words string
		args  []string
	}{
		{"nothing went wrong", 0, "", []string{"box", "true"}},
		{"the command's own", 7, "", []string{"box", "sh", "-c", "exit 7"}},
		{"a signal", 143, "", []string{"--init", "box", "sh", "-c", "kill -TERM $$; sleep 10"}},
		{"Podman's own failure", 125, "unknown flag", []string{"--no-such-flag", "box", "true"}},
		{"not executable", 126, "permission denied", []string{"box", "/etc/passwd"}},
		{"no such command", 127, "not found", []string{"box", "pangolin"}},
		{"no such path", 127, "no such file", []string{"box", "/bin/pangolin"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p.Fails(t, c.code, c.words, append([]string{"run", "--rm", "--network", "none"}, c.args...)...)
		})
	}
}

func TestStandardInput(t *testing.T) {
	p := podman(t)
	t.Parallel()
	input := strings.Repeat("a line of some length to fill a pipe\n", 20000)
	if r := p.Feed(t, input, "run", "--rm", "-i", "--network", "none", "box", "sh", "-c", "cat; echo end >&2"); r.Code != 0 || r.Out != input || r.Err != "end\n" {
		t.Errorf("%d bytes came back of %d: exit %d, stderr %q", len(r.Out), len(input), r.Code, clip(r.Err))
	}
}

func TestTerminal(t *testing.T) {
	p := podman(t)
	t.Parallel()
	term := p.Terminal(t, "run", "--rm", "-it", "--network", "none", "box", "sh")
	term.Await("#")
	term.Type("tty; stty size\n")
	term.Await("/dev/pts/0")
	term.Await("40 120")
	term.Resize(50, 90)
	term.Type("sleep 1; stty size\n")
	term.Await("50 90")
	term.Type("sh -c 'echo rea''dy; exec sleep 1000'\n")
	term.Await("ready")
	term.Type("\x03")
	term.Await("^C")
	term.Type("exit 5\n")
	if code := term.End(); code != 5 {
		t.Errorf("exit code %d; the terminal showed %q", code, term.Shown())
	}
}

// What run's flags ask for holds in the guest.
func TestRunFlags(t *testing.T) {
	p := podman(t)
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "shared")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(filepath.Dir(dir), "file")
	if err := os.WriteFile(file, []byte("one file\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p.OK(t, "volume", "create", "flags")
	t.Cleanup(func() { p.OK(t, "volume", "rm", "-f", "flags") })
	c := up(t, p, append([]string{"--hostname", "pangolin", "-e", "COLOUR=blue", "-w", "/var/log", "--tmpfs", "/scratch:size=1m",
		"-v", dir + ":/shared", "-v", file + ":/file:ro", "-v", "flags:/volume", "-m", "300m", "--cpus", "1.5", "--pids-limit", "77",
		"--sysctl", "net.ipv4.ip_forward=1", "--ulimit", "nofile=321:654", "--cap-add", "SYS_TIME", "--cap-drop", "CHOWN",
		"--label", "a=b", "--shm-size", "2m", "--add-host", "other:192.0.2.7", "--device", "/dev/zero:/dev/nought"}, idle...)...)
	for _, f := range []struct{ name, script, want string }{
		{"host name", "hostname", "pangolin"},
		{"environment", "echo $COLOUR $container", "blue podman"},
		{"working directory", "pwd", "/var/log"},
		{"tmpfs", "df -k /scratch | tail -1 | awk '{print $2}'", "1024"},
		{"memory limit", "cat /sys/fs/cgroup/memory.max", "314572800"},
		{"processors", "cat /sys/fs/cgroup/cpu.max", "150000 100000"},
		{"processes", "cat /sys/fs/cgroup/pids.max", "77"},
		{"sysctl", "cat /proc/sys/net/ipv4/ip_forward", "1"},
		{"ulimit", "ulimit -Sn; ulimit -Hn", "321\n654"},
		{"capabilities", "grep CapEff /proc/self/status | awk '{print $2}' | grep -q '^0000000082.*fa$' && echo right || grep CapEff /proc/self/status", "right"},
		{"a directory", "echo from the guest >/shared/new; cat /shared/new", "from the guest"},
		{"a file, read-only", "cat /file; echo x 2>/dev/null >/file || echo refused", "one file\nrefused"},
		{"shared memory", "df -k /dev/shm | tail -1 | awk '{print $2}'", "2048"},
		{"hosts", "grep other /etc/hosts | tr '\\t' ' '", "192.0.2.7 other"},
		{"device", "head -c 4 /dev/nought | od -An -tx1 | tr -d ' '", "00000000"},
	} {
		t.Run(f.name, func(t *testing.T) { p.Prints(t, f.want, "exec", c, "sh", "-c", f.script) })
	}
	if b, err := os.ReadFile(filepath.Join(dir, "new")); string(b) != "from the guest\n" {
		t.Errorf("the host finds %q in the volume, %v", b, err)
	}
	// The volume outlives its container, the limit of memory is kept.
	p.OK(t, "exec", c, "sh", "-c", "echo kept >/volume/file")
	p.Prints(t, "kept", "run", "--rm", "--network", "none", "-v", "flags:/v:ro", "box", "sh", "-c", "cat /v/file; (echo x >/v/file) 2>/dev/null && echo written || true")
	p.Fails(t, 137, "", "exec", c, "sh", "-c", "tail -c 320m /dev/zero >/dev/null")
}

// Containers of other kinds than the ordinary.
func TestRunKinds(t *testing.T) {
	p := podman(t)
	t.Parallel()
	for _, c := range []struct {
		name, want string
		args       []string
	}{
		{"user by number", "1234 77", []string{"-u", "1234:77", "box", "sh", "-c", "echo $(id -u) $(id -g)"}},
		{"user by name", "nobody", []string{"-u", "nobody", "box", "id", "-un"}},
		{"read-only", "refused", []string{"--read-only", "box", "sh", "-c", "touch /x 2>/dev/null || echo refused; touch /tmp/x /run/x"}},
		{"privileged", "mounted " + bounds(t), []string{"--privileged", "box", "sh", "-c", "mkdir /mnt && mount -t tmpfs none /mnt && umount /mnt && echo mounted $(grep CapEff /proc/self/status | awk '{print $2}')"}},
		{"init", "/run/podman-init", []string{"--init", "box", "sh", "-c", "tr '\\0' '\\n' </proc/1/cmdline | head -1"}},
		{"no new privileges", "1", []string{"--security-opt", "no-new-privileges", "box", "sh", "-c", "grep NoNewPrivs /proc/self/status | awk '{print $2}'"}},
		{"entry point", "a b", []string{"--entrypoint", "/bin/echo", "box", "a", "b"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p.Prints(t, c.want, append([]string{"run", "--rm", "--network", "none"}, c.args...)...)
		})
	}
}

// The kernel is the guest's.
func TestAMachineOfItsOwn(t *testing.T) {
	p := podman(t)
	t.Parallel()
	if kernel := p.OK(t, "run", "--rm", "--network", "none", "box", "uname", "-r"); !strings.HasSuffix(kernel, "-manis") {
		t.Errorf("the kernel is %s", kernel)
	}
}

func clip(s string) string { return s[:min(len(s), 500)] }

// The configuration that users are given makes Manis Podman's runtime.
func TestDropIn(t *testing.T) {
	p := *podman(t)
	t.Parallel()
	example, err := os.ReadFile(filepath.Join(stage.Top(), "deploy", "podman", "manis.conf"))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "manis.conf")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(string(example), "/usr/local/bin/manis", stage.Manis(t))), 0o644); err != nil {
		t.Fatal(err)
	}
	p.Args = p.Args[:len(p.Args)-2] // without --runtime
	p.Env = append(slices.Clone(p.Env), "CONTAINERS_CONF="+file)
	p.Prints(t, "manis "+stage.Manis(t), "info", "--format", "{{.Host.OCIRuntime.Name}} {{.Host.OCIRuntime.Path}}")
	if kernel := p.OK(t, "run", "--rm", "--network", "none", "box", "uname", "-r"); !strings.HasSuffix(kernel, "-manis") {
		t.Errorf("the kernel is %s", kernel)
	}
}

// bounds are the capabilities that Podman has to give.
func bounds(t testing.TB) string {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "CapBnd:")
	return strings.Fields(rest)[0]
}
