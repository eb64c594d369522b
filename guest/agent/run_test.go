package agent_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	api "manis/api/agent"
)

// A machine is set up before everything else, and again only while it has no container.
func TestSetupComesFirst(t *testing.T) {
	m := theMachine(t)
	again := setupRequest()
	again.Network = theNetwork()
	if _, err := m.agent.Setup(deadline(t), again); err != nil {
		t.Errorf("second Setup: %v", err)
	}
	if r := m.run(t, sh("exit 7"), nil); r.ExitCode != 7 {
		t.Errorf("after the second Setup: %+v", r.WaitResponse)
	}
	sleeper(t, m, nil)
	if _, err := m.agent.Setup(deadline(t), setupRequest()); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("Setup beside a container: %v", err)
	}
	if _, err := m.agent.Stats(deadline(t), &api.ContainerRef{Id: "nobody"}); status.Code(err) != codes.NotFound {
		t.Errorf("unknown container: %v", err)
	}
}

func TestExitCodes(t *testing.T) {
	m := theMachine(t)
	for name, c := range map[string]struct {
		script string
		code   uint32
		signal uint32
	}{
		"success":  {"exit 0", 0, 0},
		"failure":  {"exit 7", 7, 0},
		"highest":  {"exit 255", 255, 0},
		"killed":   {"(sleep 0; kill -9 1) & sleep 0.1; exit 3", 3, 0}, // process 1 is safe from its own namespace
		"sigabort": {"exec sh -c 'kill -ABRT $$; sleep 0.1; exit 4'", 4, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := m.run(t, sh(c.script), nil)
			if r.ExitCode != c.code || r.Signal != c.signal {
				t.Errorf("exit code %d, signal %d; want %d, %d", r.ExitCode, r.Signal, c.code, c.signal)
			}
			if r.ExitedUnixNs == 0 || r.OomKilled || !r.Synced {
				t.Errorf("reply %+v", r.WaitResponse)
			}
		})
	}
}

func TestStartErrors(t *testing.T) {
	m := theMachine(t)
	for name, c := range map[string]struct {
		command []string
		code    codes.Code
		message string
	}{
		"not in PATH":       {[]string{"nonesuch"}, codes.NotFound, `exec: "nonesuch": executable file not found in $PATH`},
		"no such file":      {[]string{"/bin/nonesuch"}, codes.NotFound, `exec: "/bin/nonesuch": no such file or directory`},
		"not executable":    {[]string{"/etc/passwd"}, codes.PermissionDenied, `exec: "/etc/passwd": permission denied`},
		"refused in PATH":   {[]string{"notexec"}, codes.PermissionDenied, `exec: "notexec": permission denied`},
		"directory":         {[]string{"/etc"}, codes.PermissionDenied, `exec: "/etc": is a directory`},
		"bad interpreter":   {[]string{"badinterp"}, codes.PermissionDenied, `bad interpreter`},
		"bad format":        {[]string{"/bin/badformat"}, codes.PermissionDenied, `exec format error`},
		"file as directory": {[]string{"/etc/passwd/x"}, codes.NotFound, `no such file or directory`},
		"empty":             {[]string{""}, codes.NotFound, `exec: "": executable file not found in $PATH`},
	} {
		t.Run(name, func(t *testing.T) {
			box, proc, err := m.create(t, command(c.command...), nil)
			if err != nil {
				t.Fatal(err)
			}
			_, err = m.agent.StartContainer(deadline(t), &api.StartContainerRequest{Id: box.id})
			proc.stdin.Close()
			if status.Code(err) != c.code || !strings.Contains(err.Error(), c.message) {
				t.Errorf("error %v, want %v with %q", err, c.code, c.message)
			}
			// The streams of a process that did not start are closed.
			if got := proc.stdout.String(); got != "" {
				t.Errorf("output %q", got)
			}
		})
	}
}

func TestIdentity(t *testing.T) {
	m := theMachine(t)
	const show = `echo "$(id -u) $(id -g) $(grep ^Groups: /proc/self/status | cut -f2) $HOME $(pwd)"`
	for name, c := range map[string]struct {
		change func(p *api.Process)
		want   string
	}{
		"root by default":       {func(p *api.Process) {}, "0 0 /root /"},
		"name":                  {func(p *api.Process) { p.User = "user" }, "1000 1000 10 29 /home/user /"},
		"name and group":        {func(p *api.Process) { p.User = "user:audio" }, "1000 29 /home/user /"},
		"numbers":               {func(p *api.Process) { p.User = "4242:4343" }, "4242 4343 / /"},
		"known number":          {func(p *api.Process) { p.User = "1000" }, "1000 1000 10 29 /home/user /"},
		"unknown number":        {func(p *api.Process) { p.User = "4242" }, "4242 0 / /"},
		"ids of the OCI config": {func(p *api.Process) { p.Uid, p.Gid, p.AdditionalGids = 7, 8, []uint32{9} }, "7 8 9 / /"},
		"added groups":          {func(p *api.Process) { p.AdditionalGroups = []string{"audio", "777"} }, "0 0 29 777 /root /"},
		"home kept":             {func(p *api.Process) { p.Env = append(p.Env, "HOME=/else") }, "0 0 /else /"},
		"directory made":        {func(p *api.Process) { p.Cwd = "/new/deep" }, "0 0 /root /new/deep"},
		"directory by link":     {func(p *api.Process) { p.Cwd = "/escape/etc" }, "0 0 /root /etc"},
	} {
		t.Run(name, func(t *testing.T) {
			p := sh(show)
			c.change(p)
			r := m.run(t, p, nil)
			if got := strings.Join(strings.Fields(r.stdout), " "); got != c.want {
				t.Errorf("got %q %s, want %q", got, r.stderr, c.want)
			}
		})
	}
	t.Run("hidden users", func(t *testing.T) {
		r := m.run(t, sh(show), func(r *api.CreateContainerRequest) { r.MaskedPaths = append(r.MaskedPaths, "/etc/passwd") })
		if got := strings.Join(strings.Fields(r.stdout), " "); got != "0 0 / /" {
			t.Errorf("got %q %s", got, r.stderr)
		}
	})
	for _, user := range []string{"nobody-here", "user:nothing", "-1", "4294967295"} {
		t.Run("unknown "+user, func(t *testing.T) {
			p := sh("true")
			p.User = user
			box, _, err := m.create(t, p, nil)
			if err == nil {
				_, err = m.agent.StartContainer(deadline(t), &api.StartContainerRequest{Id: box.id})
			}
			if err == nil || !strings.Contains(err.Error(), "unable to find") {
				t.Errorf("error %v", err)
			}
		})
	}
}

// statusField is a field of /proc/self/status.
func statusField(text, name string) string {
	for line := range strings.Lines(text) {
		if key, value, _ := strings.Cut(line, ":"); key == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func TestCapabilities(t *testing.T) {
	m := theMachine(t)
	const docker = "00000000a80425fb"
	t.Run("docker's for root", func(t *testing.T) {
		r := m.run(t, command("cat", "/proc/self/status"), nil)
		for field, want := range map[string]string{"CapInh": "0000000000000000", "CapPrm": docker, "CapEff": docker, "CapBnd": docker, "CapAmb": "0000000000000000", "NoNewPrivs": "0"} {
			if got := statusField(r.stdout, field); got != want {
				t.Errorf("%s: %s, want %s", field, got, want)
			}
		}
	})
	t.Run("none for a user", func(t *testing.T) {
		p := command("cat", "/proc/self/status")
		p.User, p.NoNewPrivileges = "user", true
		r := m.run(t, p, nil)
		for field, want := range map[string]string{"CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapBnd": docker, "NoNewPrivs": "1"} {
			if got := statusField(r.stdout, field); got != want {
				t.Errorf("%s: %s, want %s", field, got, want)
			}
		}
	})
	t.Run("ambient for a user", func(t *testing.T) {
		p := command("cat", "/proc/self/status")
		p.User = "user"
		one := []string{"CAP_NET_BIND_SERVICE"}
		p.Capabilities = &api.Capabilities{Bounding: one, Effective: one, Permitted: one, Inheritable: one, Ambient: one}
		r := m.run(t, p, nil)
		for _, field := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
			if got := statusField(r.stdout, field); got != "0000000000000400" {
				t.Errorf("%s: %s", field, got)
			}
		}
	})
	t.Run("all", func(t *testing.T) {
		p := command("cat", "/proc/self/status")
		var all []string
		for i := range 41 {
			all = append(all, capabilityNames[i])
		}
		p.Capabilities = &api.Capabilities{Bounding: all, Effective: all, Permitted: all, Inheritable: all}
		if got := statusField(m.run(t, p, nil).stdout, "CapEff"); got != "000001ffffffffff" {
			t.Errorf("CapEff: %s", got)
		}
	})
	t.Run("unknown", func(t *testing.T) {
		p := sh("true")
		p.Capabilities.Bounding = []string{"CAP_NONSENSE"}
		box, _, err := m.create(t, p, nil)
		if err == nil {
			_, err = m.agent.StartContainer(deadline(t), &api.StartContainerRequest{Id: box.id})
		}
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("error %v", err)
		}
	})
}

var capabilityNames = strings.Fields("CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE")

func TestProcessAttributes(t *testing.T) {
	m := theMachine(t)
	p := sh("umask; ulimit -n; ulimit -Hn; ulimit -c; cat /proc/self/oom_score_adj; ls /proc/self/fd | tr '\\n' ' '; echo")
	umask := uint32(0o27)
	p.Umask, p.OomScoreAdj = &umask, 500
	p.Rlimits = []*api.Rlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}, {Type: "RLIMIT_CORE"}}
	r := m.run(t, p, nil)
	// ls has its own descriptor, 3.
	want := "0027\n100\n200\n0\n500\n0 1 2 3 \n"
	if r.stdout != want {
		t.Errorf("got %q %s, want %q", r.stdout, r.stderr, want)
	}
	signals := m.run(t, command("cat", "/proc/self/status"), nil).stdout
	for _, field := range []string{"SigBlk", "SigIgn", "SigCgt"} {
		if got := statusField(signals, field); got != "0000000000000000" {
			t.Errorf("%s: %s", field, got)
		}
	}
	if r := m.run(t, sh("umask; ulimit -n; ulimit -u; cat /proc/self/oom_score_adj"), nil); r.stdout != "0022\n1024\nunlimited\n0\n" {
		t.Errorf("defaults: %q", r.stdout)
	}
}

// filter assembles a seccomp program that answers one system call with action and allows the
// rest. x86-64.
func filter(number, action uint32) []byte {
	var b []byte
	add := func(code uint16, jt, jf uint8, k uint32) {
		b = append(b, byte(code), byte(code>>8), jt, jf, byte(k), byte(k>>8), byte(k>>16), byte(k>>24))
	}
	add(0x20, 0, 0, 0)          // load the number
	add(0x15, 0, 1, number)     // equal?
	add(0x06, 0, 0, action)     // return action
	add(0x06, 0, 0, 0x7fff0000) // allow
	return b
}

func TestSeccomp(t *testing.T) {
	m := theMachine(t)
	const mkdir, killProcess, errnoEPERM = 83, 0x80000000, 0x00050001
	for name, c := range map[string]struct {
		action uint32
		nnp    bool
		want   uint32
	}{
		"error":                  {errnoEPERM, true, 1},
		"error with privileges":  {errnoEPERM, false, 1},
		"killed":                 {killProcess, true, 128 + 31},
		"killed with privileges": {killProcess, false, 128 + 31},
	} {
		t.Run(name, func(t *testing.T) {
			p := command("mkdir", "/tmp/x")
			p.Seccomp, p.NoNewPrivileges = filter(mkdir, c.action), c.nnp
			if c.nnp {
				p.User = "user"
			}
			if r := m.run(t, p, nil); r.ExitCode != c.want {
				t.Errorf("exit code %d, want %d: %s", r.ExitCode, c.want, r.stderr)
			}
		})
	}
	p := sh("true")
	p.Seccomp = []byte("odd")
	box, _, err := m.create(t, p, nil)
	if err == nil {
		_, err = m.agent.StartContainer(deadline(t), &api.StartContainerRequest{Id: box.id})
	}
	if err == nil {
		t.Error("a damaged filter was accepted")
	}
}

func TestNamespaces(t *testing.T) {
	m := theMachine(t)
	r := m.run(t, sh("hostname; echo $$; ls /proc | grep -c '^[0-9]'; cat /proc/self/cgroup; grep -c . /proc/self/mountinfo; ls / | tr '\\n' ' '"), nil)
	lines := strings.Split(r.stdout, "\n")
	if lines[0] != "box" || lines[1] != "1" || lines[3] != "0::/" {
		t.Errorf("got %q", r.stdout)
	}
	if strings.Contains(r.stdout, "manis") {
		t.Errorf("the agent's root shows: %q", r.stdout)
	}
	// Only its own processes show, and the agent's root is not to be had through them.
	if n, err := strconv.Atoi(lines[2]); err != nil || n > 4 {
		t.Errorf("%s processes show in /proc", lines[2])
	}
}

func TestInit(t *testing.T) {
	m := theMachine(t)
	script := `tr '\0' '\n' </proc/1/cmdline; echo $$; (sleep 0.1 & ) ; sleep 0.5; ps | grep -c '\[sleep\]'; trap 'echo term; exit 9' TERM; kill -TERM 1; sleep 5 & wait`
	r := m.run(t, sh(script), func(r *api.CreateContainerRequest) { r.Init = true })
	// The orphan is reaped, and what process 1 is sent reaches the command.
	if r.ExitCode != 9 || !strings.HasPrefix(r.stdout, "manis-init\n2\n0\n") || !strings.HasSuffix(r.stdout, "term\n") {
		t.Errorf("exit code %d, output %q %s", r.ExitCode, r.stdout, r.stderr)
	}
}

func TestSharedPids(t *testing.T) {
	m := theMachine(t)
	share := func(r *api.CreateContainerRequest) { r.SharePid = true }
	_, first := m.start(t, sh("echo up; sleep 1000"), share)
	first.stdout.await(t, "up")
	p := sh("ps -o pid,args; ls /proc/1/root/ 2>&1; kill -9 $(pidof sleep)")
	r := m.run(t, p, share)
	if !strings.Contains(r.stdout, "sleep 1000") || !strings.Contains(r.stdout, "manis-init") || strings.Contains(r.stdout, "manis-agent") {
		t.Errorf("processes of the sandbox: %q %s", r.stdout, r.stderr)
	}
	first.stdin.Close()
	if r := first.wait(); r.ExitCode != 137 && r.ExitCode != 143 {
		t.Errorf("exit code of the other container: %d", r.ExitCode)
	}
}

func TestSysctls(t *testing.T) {
	m := theMachine(t)
	r := m.run(t, sh("cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_unprivileged_port_start"), func(r *api.CreateContainerRequest) {
		r.Sysctls = map[string]string{"kernel.msgmax": "12345"}
	})
	if r.stdout != "12345\n0\n" {
		t.Errorf("got %q %s", r.stdout, r.stderr)
	}
	for key, want := range map[string]string{"kernel.nonesuch": "kernel.nonesuch", "../../etc/passwd": "not a name", "": "not a name"} {
		_, _, err := m.create(t, sh("true"), func(r *api.CreateContainerRequest) { r.Sysctls = map[string]string{key: "1"} })
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v", key, err)
		}
	}
}

func TestCreateErrors(t *testing.T) {
	m := theMachine(t)
	for name, c := range map[string]struct {
		change func(r *api.CreateContainerRequest)
		want   string
	}{
		"bad id":        {func(r *api.CreateContainerRequest) { r.Id = "../x" }, "not a name"},
		"hidden id":     {func(r *api.CreateContainerRequest) { r.Id = ".sandbox" }, "not a name"},
		"no command":    {func(r *api.CreateContainerRequest) { r.Process.Args = nil }, "no command"},
		"no root":       {func(r *api.CreateContainerRequest) { r.Rootfs = nil }, "no root disk"},
		"not a root":    {func(r *api.CreateContainerRequest) { r.Rootfs.Disk = "scratch" }, "no EROFS filesystem"},
		"long serial":   {func(r *api.CreateContainerRequest) { r.Rootfs.Disk = strings.Repeat("x", 21) }, "longer than 20"},
		"mount on root": {func(r *api.CreateContainerRequest) { r.Mounts = []*api.Mount{{Destination: "/", Type: "tmpfs"}} }, "cannot replace the root"},
		"unknown type":  {func(r *api.CreateContainerRequest) { r.Mounts = []*api.Mount{{Destination: "/x", Type: "ext2"}} }, "not offered"},
		"unknown option": {func(r *api.CreateContainerRequest) {
			r.Mounts = []*api.Mount{{Destination: "/x", Type: "tmpfs", Options: []string{"bogus=1"}}}
		}, "bogus"},
		"unknown share": {func(r *api.CreateContainerRequest) {
			r.Mounts = []*api.Mount{{Destination: "/x", Type: "share", Source: "nope/x"}}
		}, "nope"},
		"unknown entry": {func(r *api.CreateContainerRequest) {
			r.Mounts = []*api.Mount{{Destination: "/x", Type: "share", Source: "host/nope"}}
		}, "does not exist"},
		"escaping entry": {func(r *api.CreateContainerRequest) {
			r.Mounts = []*api.Mount{{Destination: "/x", Type: "share", Source: "host/escape"}}
		}, "does not exist"},
		"file on dir": {func(r *api.CreateContainerRequest) {
			r.Mounts = []*api.Mount{{Destination: "/etc", Type: "share", Source: "host/single"}}
		}, "destination a directory"},
		"small memory": {func(r *api.CreateContainerRequest) { r.Resources = &api.Resources{MemoryBytes: 4096} }, "too small"},
		"unknown control": {func(r *api.CreateContainerRequest) {
			r.Resources = &api.Resources{Unified: map[string]string{"memory.nope": "1"}}
		}, "memory.nope"},
		"cgroup escape": {func(r *api.CreateContainerRequest) {
			r.Resources = &api.Resources{Unified: map[string]string{"../memory.max": "1"}}
		}, "not one of a controller"},
		"bad device rule": {func(r *api.CreateContainerRequest) {
			r.Resources = &api.Resources{DeviceRules: []*api.DeviceRule{{Type: "x"}}}
		}, "want a, b or c"},
		"bad propagation": {func(r *api.CreateContainerRequest) { r.RootPropagation = "sideways" }, "sideways"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := m.create(t, sh("true"), c.change)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
	// Nothing of all that is left.
	r := m.run(t, sh("cut -d' ' -f5 /proc/self/mountinfo; ls /sys/fs/cgroup"), nil)
	if r.ExitCode != 0 || strings.Contains(r.stdout, "/run/manis") {
		t.Errorf("left behind: %s", r.stdout)
	}
}

func TestManyContainersOneAfterTheOther(t *testing.T) {
	m := theMachine(t)
	for i := range 20 {
		if r := m.run(t, sh(fmt.Sprintf("echo %d", i)), nil); r.stdout != fmt.Sprintf("%d\n", i) {
			t.Fatalf("container %d: %q", i, r.stdout)
		}
	}
}
