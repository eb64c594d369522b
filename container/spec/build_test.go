package spec

import (
	"bytes"
	"fmt"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"manis/api/agent"
	"manis/container"
	"manis/network"
	"manis/seccomp"
)

// config is the least that can be built.
func config(change func(*container.Config)) *container.Config {
	c := &container.Config{
		ID: strings.Repeat("a", 64), Hostname: "box",
		Process: container.Process{Args: []string{"true"}},
	}
	if change != nil {
		change(c)
	}
	return c
}

func build(t *testing.T, env Environment, change func(*container.Config)) *agent.CreateContainerRequest {
	t.Helper()
	r, err := Build(config(change), env)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestBuildPassesOn(t *testing.T) {
	umask := uint32(0o27)
	env := Environment{RootDisk: "root", Verity: &agent.Verity{RootHash: "ab"}, ScratchDisk: "scratch", Rows: 24, Columns: 80}
	r := build(t, env, func(c *container.Config) {
		c.Domainname, c.Init, c.ReadOnly, c.TTY = "example", true, true, true
		c.Process = container.Process{Args: []string{"sh", "-c", ""}, Dir: "/srv/../tmp", User: "www:33", AddGroups: []string{"disk"}, Umask: &umask}
		c.Security.NoNewPrivileges = true
		c.Resources.OOMScore = 500
		c.Scratch.Bytes = 1 << 30
	})
	p := r.Process
	switch {
	case r.Id != strings.Repeat("a", 64), r.Hostname != "box", r.Domainname != "example", !r.Init, r.Privileged, !r.NoDefaultMounts:
		t.Errorf("request %v", r)
	case r.Rootfs.Disk != "root", r.Rootfs.Verity.RootHash != "ab", r.Rootfs.ScratchDisk != "scratch", !r.Rootfs.Readonly, r.Rootfs.TmpfsBytes != 0:
		t.Errorf("rootfs %v", r.Rootfs)
	case !slices.Equal(p.Args, []string{"sh", "-c", ""}), p.Cwd != "/tmp", p.User != "www:33", p.AdditionalGroups[0] != "disk", *p.Umask != 0o27:
		t.Errorf("process %v", p)
	case !p.NoNewPrivileges, !p.Terminal, p.Rows != 24, p.Columns != 80, p.OomScoreAdj != 500:
		t.Errorf("process %v", p)
	}
	if r := build(t, Environment{}, func(c *container.Config) { c.Scratch = container.Scratch{Memory: true, Bytes: 5 << 20} }); r.Rootfs.TmpfsBytes != 5<<20 {
		t.Errorf("rootfs %v", r.Rootfs)
	}
}

func TestBuildErrors(t *testing.T) {
	mount := func(m container.Mount) func(*container.Config) {
		return func(c *container.Config) { c.Mounts = []container.Mount{m} }
	}
	ulimit := func(name string, soft, hard int64) func(*container.Config) {
		return func(c *container.Config) {
			c.Resources.Ulimits = []container.Ulimit{{Name: name, Soft: soft, Hard: hard}}
		}
	}
	sysctl := func(key, value string) func(*container.Config) {
		return func(c *container.Config) { c.Sysctls = map[string]string{key: value} }
	}
	device := func(d container.Device) func(*container.Config) {
		return func(c *container.Config) { c.Resources.DeviceList = []container.Device{d} }
	}
	for name, c := range map[string]struct {
		change func(*container.Config)
		want   string
	}{
		"no command":       {func(c *container.Config) { c.Process.Args = nil }, "no command specified"},
		"empty command":    {func(c *container.Config) { c.Process.Args = []string{"", "x"} }, "no command specified"},
		"NUL in argument":  {func(c *container.Config) { c.Process.Args = []string{"a", "b\x00"} }, `argument "b\x00" holds a NUL byte`},
		"relative workdir": {func(c *container.Config) { c.Process.Dir = "tmp" }, `the working directory "tmp" is invalid, it needs to be an absolute path`},
		"variable":         {func(c *container.Config) { c.Process.Env = []string{"A"} }, `invalid environment variable: "A"`},
		"nameless":         {func(c *container.Config) { c.Process.Env = []string{"=x"} }, `invalid environment variable: "=x"`},
		"hostname":         {func(c *container.Config) { c.Hostname = "a\nb" }, `"a\nb" is not a host name`},
		"capability":       {func(c *container.Config) { c.Security.CapAdd = []string{"FLY"} }, `invalid capability: "FLY"`},
		"capability drop":  {func(c *container.Config) { c.Security.CapDrop = []string{"cap_fly"} }, `invalid capability: "cap_fly"`},
		"seccomp":          {func(c *container.Config) { c.Security.Seccomp = "{}" }, "parse seccomp profile: defaultAction is missing"},

		"mount type":         {mount(container.Mount{Type: "nfs", Destination: "/a"}), `mount /a: unknown type "nfs": there are bind, volume and tmpfs`},
		"mount on the root":  {mount(container.Mount{Type: "tmpfs", Destination: "/x/.."}), "mount /x/..: the destination can't be '/'"},
		"relative mount":     {mount(container.Mount{Type: "tmpfs", Destination: "a"}), "mount a: the mount path must be absolute"},
		"NUL in mount":       {mount(container.Mount{Type: "tmpfs", Destination: "/a\x00"}), "the destination holds a NUL byte"},
		"tmpfs option":       {mount(container.Mount{Type: "tmpfs", Destination: "/a", Options: []string{"size=1m,blue"}}), `mount /a: invalid tmpfs option ["blue"]`},
		"tmpfs size":         {mount(container.Mount{Type: "tmpfs", Destination: "/a", Options: []string{"size=1mm"}}), `invalid tmpfs option ["size=1mm"]`},
		"tmpfs mode":         {mount(container.Mount{Type: "tmpfs", Destination: "/a", Options: []string{"mode=99"}}), `invalid tmpfs option ["mode=99"]`},
		"tmpfs flag's value": {mount(container.Mount{Type: "tmpfs", Destination: "/a", Options: []string{"exec=1"}}), `invalid tmpfs option ["exec=1"]`},
		"two mounts": {func(c *container.Config) {
			c.Mounts = []container.Mount{{Type: "tmpfs", Destination: "/a"}, {Type: "tmpfs", Destination: "/b/../a/"}}
		}, "duplicate mount point: /a"},

		"ulimit name":       {ulimit("files", 1, 1), "invalid ulimit type: files"},
		"ulimit soft":       {ulimit("nofile", 10, 5), "ulimit soft limit must be less than or equal to hard limit: nofile=10:5"},
		"ulimit unlimited":  {ulimit("core", -1, 5), "ulimit soft limit must be less than or equal to hard limit: core=-1:5"},
		"ulimit negative":   {ulimit("core", -2, 5), "ulimit core=-2:5: a limit is a number, or -1 for unlimited"},
		"too many files":    {ulimit("nofile", 10, 2<<20), "ulimit nofile=10:2097152: the kernel takes at most 1048576"},
		"sysctl":            {sysctl("vm.swappiness", "1"), `sysctl "vm.swappiness" is not in a separate kernel namespace: a container may set kernel.msg*, kernel.sem, kernel.shm*, fs.mqueue.* and net.*`},
		"sysctl of kernel":  {sysctl("kernel.msgmax.x", "1"), "is not in a separate kernel namespace"},
		"sysctl climbing":   {sysctl("net/../kernel", "1"), `sysctl "net/../kernel" is not a name`},
		"sysctl climbing 2": {sysctl("net.//.kernel", "1"), `sysctl "net.//.kernel" is not a name`},
		"sysctl no name":    {sysctl("net", "1"), `sysctl "net" is not a name`},
		"sysctl empty part": {sysctl("net..x", "1"), `sysctl "net..x" is not a name`},
		"sysctl no value":   {sysctl("net.core.somaxconn", ""), `sysctl net.core.somaxconn="": this is no value`},
		"device":            {device(container.Device{Path: "/dev/kvm"}), "device /dev/kvm: the virtual machine has none of this name, and the host's are out of its reach (there are /dev/full, /dev/fuse,"},
		"device path":       {device(container.Device{Path: "/dev/fuse", PathInContainer: "/dev/../etc/fuse"}), `device /dev/fuse: its path in the container, "/dev/../etc/fuse", is not below /dev/`},
		"device access":     {device(container.Device{Path: "/dev/fuse", Access: "rx"}), "device /dev/fuse: bad mode specified: rx"},

		"swap":       {func(c *container.Config) { c.Resources.MemoryBytes, c.Resources.MemorySwapBytes = 9<<20, 8<<20 }, "minimum memoryswap limit should be larger than memory limit, see usage"},
		"shares":     {func(c *container.Config) { c.Resources.CPUShares = 1 }, "cpu shares 1 are out of range: 2 to 262144"},
		"few CPUs":   {func(c *container.Config) { c.Resources.MilliCPUs = 9 }, "9 thousandths of a CPU are too few (the least is 10, --cpus 0.01)"},
		"many CPUs":  {func(c *container.Config) { c.Resources.MilliCPUs = 1 << 40 }, "are more than any machine has"},
		"pids":       {func(c *container.Config) { c.Resources.PidsLimit = -2 }, "pids limit -2 is not one: -1 means unlimited"},
		"oom score":  {func(c *container.Config) { c.Resources.OOMScore = 1001 }, "invalid value 1001, range for oom score adj is [-1000, 1000]"},
		"add-host":   {func(c *container.Config) { c.Network.AddHosts = []string{"db"} }, `host "db": want NAME:IP`},
		"no gateway": {func(c *container.Config) { c.Network.AddHosts = []string{"h:host-gateway"} }, `host "h:host-gateway": without a network there is no gateway (use --network user)`},
		"dns search": {func(c *container.Config) { c.Network.DNSSearch = []string{"a b"} }, `dns search "a b": it has white space or is empty`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Build(config(c.change), Environment{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func TestCapabilities(t *testing.T) {
	def := ordered(func(c string) bool { return slices.Contains(defaultCapabilities, c) })
	without := func(list []string, drop ...string) []string {
		return slices.DeleteFunc(slices.Clone(list), func(c string) bool { return slices.Contains(drop, c) })
	}
	if len(def) != 14 || len(allCapabilities) != 41 {
		t.Fatalf("%d default and %d capabilities", len(def), len(allCapabilities))
	}
	for name, c := range map[string]struct {
		security container.Security
		want     []string
	}{
		"default":          {container.Security{}, def},
		"privileged":       {container.Security{Privileged: true, CapDrop: []string{"CHOWN"}}, allCapabilities},
		"drop one":         {container.Security{CapDrop: []string{"cap_net_raw"}}, without(def, "CAP_NET_RAW")},
		"drop all":         {container.Security{CapDrop: []string{"ALL"}}, nil},
		"drop all but one": {container.Security{CapDrop: []string{"all"}, CapAdd: []string{"NET_BIND_SERVICE"}}, []string{"CAP_NET_BIND_SERVICE"}},
		"add one":          {container.Security{CapAdd: []string{"SYS_ADMIN"}}, ordered(func(c string) bool { return slices.Contains(def, c) || c == "CAP_SYS_ADMIN" })},
		"add all":          {container.Security{CapAdd: []string{"ALL"}}, allCapabilities},
		"add all but one":  {container.Security{CapAdd: []string{"ALL"}, CapDrop: []string{"SYS_ADMIN", "BPF"}}, without(allCapabilities, "CAP_SYS_ADMIN", "CAP_BPF")},
		"add and drop":     {container.Security{CapAdd: []string{"SYS_TIME"}, CapDrop: []string{"SYS_TIME"}}, ordered(func(c string) bool { return slices.Contains(def, c) || c == "CAP_SYS_TIME" })},
		"add and drop all": {container.Security{CapAdd: []string{"ALL"}, CapDrop: []string{"ALL"}}, allCapabilities},
	} {
		t.Run(name, func(t *testing.T) {
			got := build(t, Environment{}, func(cfg *container.Config) { cfg.Security = c.security }).Process.Capabilities
			if !slices.Equal(got.Bounding, c.want) || !slices.Equal(got.Permitted, c.want) || !slices.Equal(got.Effective, c.want) {
				t.Errorf("%v, want %v", got, c.want)
			}
			if len(got.Inheritable)+len(got.Ambient) > 0 {
				t.Errorf("inheritable %v, ambient %v", got.Inheritable, got.Ambient)
			}
		})
	}
}

func TestCapabilitiesOfUsers(t *testing.T) {
	for user, root := range map[string]bool{
		"": true, "0": true, "0:33": true, "00": true, "root": true, "root:adm": true, ":5": true,
		"1000": false, "www-data": false, "www-data:root": false, "1000:0": false, "10": false,
	} {
		c := build(t, Environment{}, func(cfg *container.Config) { cfg.Process.User = user }).Process.Capabilities
		if (len(c.Effective) == 14) != root || (len(c.Permitted) == 14) != root || len(c.Bounding) != 14 {
			t.Errorf("user %q: %v", user, c)
		}
	}
}

func TestSeccomp(t *testing.T) {
	def := func(caps []string) []byte {
		rules, err := seccomp.Default().Resolve(seccomp.Target{GOARCH: runtime.GOARCH, Capabilities: caps})
		if err != nil {
			t.Fatal(err)
		}
		f, err := seccomp.Compile(rules, runtime.GOARCH)
		if err != nil {
			t.Fatal(err)
		}
		return f.Program
	}
	custom := `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}]}`
	for name, c := range map[string]struct {
		security container.Security
		want     func(program []byte) bool
	}{
		"default": {container.Security{}, func(p []byte) bool { return bytes.Equal(p, def(defaultCapabilities)) }},
		"more caps": {container.Security{CapAdd: []string{"SYS_ADMIN"}}, func(p []byte) bool {
			return bytes.Equal(p, def(append([]string{"CAP_SYS_ADMIN"}, defaultCapabilities...)))
		}},
		"unconfined": {container.Security{Seccomp: "unconfined"}, func(p []byte) bool { return len(p) == 0 }},
		"privileged": {container.Security{Privileged: true}, func(p []byte) bool { return len(p) == 0 }},
		"custom":     {container.Security{Seccomp: custom}, func(p []byte) bool { return len(p) > 0 && len(p) < 30*8 }},
		"privileged with a profile": {container.Security{Seccomp: custom, Privileged: true},
			func(p []byte) bool { return len(p) > 0 && len(p) < 30*8 }},
	} {
		t.Run(name, func(t *testing.T) {
			p := build(t, Environment{}, func(cfg *container.Config) { cfg.Security = c.security }).Process
			if !c.want(p.Seccomp) {
				t.Errorf("a program of %d instructions", len(p.Seccomp)/8)
			}
			if len(p.Seccomp) > 0 && p.SeccompFlags != 4 {
				t.Errorf("flags %d", p.SeccompFlags)
			}
		})
	}
}

func TestEnvironmentOfProcess(t *testing.T) {
	for name, c := range map[string]struct {
		own  []string
		tty  bool
		want []string
	}{
		"defaults": {nil, false, []string{"PATH=" + defaultPath, "HOSTNAME=box"}},
		"terminal": {nil, true, []string{"PATH=" + defaultPath, "HOSTNAME=box", "TERM=xterm"}},
		"own wins": {[]string{"A=1", "TERM=vt100", "PATH=/bin", "HOSTNAME=", "A=2"}, true,
			[]string{"PATH=/bin", "HOSTNAME=", "TERM=vt100", "A=2"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := build(t, Environment{}, func(cfg *container.Config) { cfg.Process.Env, cfg.TTY = c.own, c.tty }).Process.Env
			if !slices.Equal(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func TestBuildExec(t *testing.T) {
	cfg := config(func(c *container.Config) {
		c.Process = container.Process{Args: []string{"sleep"}, Env: []string{"A=1", "B=2"}, Dir: "/srv", User: "www", AddGroups: []string{"audio"}}
		c.Resources.Ulimits = []container.Ulimit{{Name: "core", Soft: 0, Hard: 0}}
		c.Security.NoNewPrivileges = true
	})
	p, err := BuildExec(cfg, ExecOptions{Args: []string{"id"}, Env: []string{"B=3", "C="}})
	if err != nil {
		t.Fatal(err)
	}
	if p.Args[0] != "id" || p.Cwd != "/srv" || p.User != "www" || p.AdditionalGroups[0] != "audio" || p.Terminal || !p.NoNewPrivileges ||
		!slices.Equal(p.Env[2:], []string{"A=1", "B=3", "C="}) || len(p.Capabilities.Effective) != 0 || p.Rlimits[0].Type != "RLIMIT_CORE" {
		t.Errorf("%v", p)
	}
	p, err = BuildExec(cfg, ExecOptions{Args: []string{"id"}, Dir: "/", User: "root", TTY: true, Privileged: true, Rows: 5, Columns: 6})
	if err != nil {
		t.Fatal(err)
	}
	if p.Cwd != "/" || p.User != "root" || !p.Terminal || p.Rows != 5 || p.Columns != 6 ||
		!slices.Equal(p.Capabilities.Effective, allCapabilities) || len(p.Seccomp) == 0 {
		t.Errorf("%v", p)
	}
	if cfg.Process.Args[0] != "sleep" || !slices.Equal(cfg.Process.Env, []string{"A=1", "B=2"}) {
		t.Errorf("the container's process was changed: %v", cfg.Process)
	}
	if _, err := BuildExec(cfg, ExecOptions{}); err == nil || err.Error() != "execute in container: no command specified" {
		t.Errorf("error %v", err)
	}
}

func TestMounts(t *testing.T) {
	show := func(r *agent.CreateContainerRequest) []string {
		var list []string
		for _, m := range r.Mounts {
			s := fmt.Sprintf("%s %s %s %s", m.Destination, m.Type, m.Source, strings.Join(m.Options, ","))
			if m.File {
				s += " file"
			}
			if m.Populate {
				s += " populate"
			}
			list = append(list, s)
		}
		return list
	}
	const (
		proc   = "/proc proc proc nosuid,noexec,nodev"
		dev    = "/dev tmpfs tmpfs nosuid,strictatime,mode=755,size=65536k"
		sys    = "/sys sysfs sysfs nosuid,noexec,nodev,"
		pts    = "/dev/pts devpts devpts nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"
		shm    = "/dev/shm tmpfs shm nosuid,noexec,nodev,mode=1777,size=67108864"
		mqueue = "/dev/mqueue mqueue mqueue nosuid,noexec,nodev"
		cgroup = "/sys/fs/cgroup cgroup2 cgroup nosuid,noexec,nodev,"
	)
	for name, c := range map[string]struct {
		change func(*container.Config)
		env    Environment
		want   []string
	}{
		"defaults":   {nil, Environment{}, []string{proc, dev, sys + "ro", pts, shm, mqueue, cgroup + "ro"}},
		"privileged": {func(c *container.Config) { c.Security.Privileged = true }, Environment{}, []string{proc, dev, sys + "rw", pts, shm, mqueue, cgroup + "rw"}},
		"of users, by depth": {func(c *container.Config) {
			c.Mounts = []container.Mount{
				{Type: "bind", Source: "/host", Destination: "/srv/www/a", ReadOnly: true},
				{Type: "volume", Source: "data", Destination: "/srv"},
				{Type: "bind", Source: "/host/file", Destination: "/srv/www/", File: true},
				{Type: "volume", Source: "kept", Destination: "/kept"},
				{Type: "volume", Source: "nocopy", Destination: "/nocopy", NoCopy: true},
				{Type: "volume", Source: "ro", Destination: "/ro", ReadOnly: true},
				{Type: "tmpfs", Destination: "/tmp"},
			}
		}, Environment{BindsTag: "b", VolumesTag: "v", Filled: map[int]bool{3: true}}, []string{proc, dev, sys + "ro",
			"/srv share v/1 rbind,rprivate populate", "/kept share v/3 rbind,rprivate", "/nocopy share v/4 rbind,rprivate",
			"/ro share v/5 rbind,rprivate,ro populate", "/tmp tmpfs tmpfs noexec,nosuid,nodev",
			pts, shm, mqueue, "/srv/www share b/2 rbind,rprivate file", cgroup + "ro", "/srv/www/a share b/0 rbind,rprivate,ro"}},
		"in place of defaults": {func(c *container.Config) {
			c.ShmBytes = 1 << 20
			c.Mounts = []container.Mount{
				{Type: "tmpfs", Destination: "/dev/mqueue", Options: []string{"exec,size=64m", "mode=700", "size=5%,rw"}, ReadOnly: true},
				{Type: "bind", Destination: "/sys/fs/cgroup/"},
			}
		}, Environment{}, []string{proc, dev, sys + "ro", pts, strings.Replace(shm, "67108864", "1048576", 1),
			"/dev/mqueue tmpfs tmpfs nosuid,nodev,exec,mode=700,size=5%,rw,ro", "/sys/fs/cgroup share binds/1 rbind,rprivate"}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := show(build(t, c.env, c.change)); !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

func TestHiddenPaths(t *testing.T) {
	for name, c := range map[string]struct {
		security         container.Security
		masked, readonly int
		has, hasNot      string
	}{
		"default":       {container.Security{}, 12, 5, "/proc/kcore", ""},
		"privileged":    {container.Security{Privileged: true}, 0, 0, "", "/proc/kcore"},
		"all unmasked":  {container.Security{UnmaskPaths: []string{"all"}}, 0, 0, "", "/proc/kcore"},
		"some unmasked": {container.Security{UnmaskPaths: []string{"/proc/sys", "/proc/s*"}}, 10, 3, "/proc/kcore", "/proc/sched_debug"},
		"one more":      {container.Security{MaskPaths: []string{"/etc/secret/"}}, 13, 5, "/etc/secret", ""},
		"only that":     {container.Security{MaskPaths: []string{"/x"}, UnmaskPaths: []string{"ALL"}}, 1, 0, "/x", "/proc/kcore"},
	} {
		t.Run(name, func(t *testing.T) {
			r := build(t, Environment{}, func(cfg *container.Config) { cfg.Security = c.security })
			if len(r.MaskedPaths) != c.masked || len(r.ReadonlyPaths) != c.readonly ||
				c.has != "" && !slices.Contains(r.MaskedPaths, c.has) || slices.Contains(r.MaskedPaths, c.hasNot) {
				t.Errorf("masked %v, read-only %v", r.MaskedPaths, r.ReadonlyPaths)
			}
		})
	}
}

func TestFiles(t *testing.T) {
	const local = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n" +
		"ff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
	gateway := netip.MustParseAddr("192.168.127.1")
	net4 := &network.Addresses{
		IPv4: netip.MustParsePrefix("192.168.127.2/30"), Gateway4: gateway,
		IPv6: netip.MustParsePrefix("fd6d::2/64"), DNS: []netip.Addr{gateway},
		Search: []string{"example.org", "."}, DNSOptions: []string{"ndots:2", "timeout:1"},
		Hosts: []network.Host{{Name: "db", Addr: netip.MustParseAddr("10.0.0.5")}, {Name: "host", Addr: gateway}},
	}
	for name, c := range map[string]struct {
		change func(*container.Config)
		env    Environment
		want   map[string]string
	}{
		"network": {nil, Environment{Network: net4}, map[string]string{
			"/etc/hosts":       local + "10.0.0.5\tdb\n192.168.127.1\thost\n192.168.127.2\tbox\nfd6d::2\tbox\n",
			"/etc/hostname":    "box\n",
			"/etc/resolv.conf": "nameserver 192.168.127.1\nsearch example.org\noptions ndots:2 timeout:1\n",
		}},
		"domain and a file of the user's": {func(c *container.Config) {
			c.Domainname = "example.net"
			c.Mounts = []container.Mount{{Type: "bind", Destination: "/etc/resolv.conf", File: true}}
		}, Environment{Network: net4}, map[string]string{
			"/etc/hosts":    local + "10.0.0.5\tdb\n192.168.127.1\thost\n192.168.127.2\tbox.example.net box\nfd6d::2\tbox.example.net box\n",
			"/etc/hostname": "box\n",
		}},
		"no network": {func(c *container.Config) {
			c.Network = container.Network{Mode: "none", AddHosts: []string{"a:1.2.3.4", "b=[::5]"}, DNS: []netip.Addr{netip.MustParseAddr("9.9.9.9")}, DNSSearch: []string{"."}}
		}, Environment{}, map[string]string{
			"/etc/hosts":       local + "1.2.3.4\ta\n::5\tb\n",
			"/etc/hostname":    "box\n",
			"/etc/resolv.conf": "nameserver 9.9.9.9\n",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			got := make(map[string]string)
			for _, f := range build(t, c.env, c.change).Files {
				got[f.Path] = string(f.Content)
				if f.Mode != 0o644 {
					t.Errorf("%s has mode %o", f.Path, f.Mode)
				}
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %q\nwant %q", got, c.want)
			}
		})
	}
}

func TestResources(t *testing.T) {
	for name, c := range map[string]struct {
		in   container.Resources
		want *agent.Resources
	}{
		"none": {container.Resources{}, &agent.Resources{}},
		"all": {container.Resources{MemoryBytes: 64 << 20, MemorySwapBytes: 128 << 20, MemoryReservationBytes: 32 << 20, MilliCPUs: 1500, CPUShares: 1024, CPUSet: "0-1", PidsLimit: 100},
			&agent.Resources{MemoryBytes: 64 << 20, MemorySwapBytes: 128 << 20, MemoryLowBytes: 32 << 20, CpuPeriodUs: 100000, CpuQuotaUs: 150000, CpuWeight: 39, Cpuset: "0-1", Pids: 100}},
		"least": {container.Resources{MilliCPUs: 10, CPUShares: 2, PidsLimit: -1, MemorySwapBytes: 1<<64 - 1},
			&agent.Resources{CpuPeriodUs: 100000, CpuQuotaUs: 1000, CpuWeight: 1}},
		"most shares": {container.Resources{CPUShares: 262144}, &agent.Resources{CpuWeight: 10000}},
	} {
		t.Run(name, func(t *testing.T) {
			got := build(t, Environment{}, func(cfg *container.Config) { cfg.Resources = c.in }).Resources
			if got.String() != c.want.String() {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}

func TestUlimits(t *testing.T) {
	const unlimited = 1<<64 - 1
	find := func(list []*agent.Rlimit, kind string) (uint64, uint64) {
		for _, l := range list {
			if l.Type == kind {
				return l.Soft, l.Hard
			}
		}
		return 77, 77
	}
	for name, c := range map[string]struct {
		in         container.Ulimit
		kind       string
		soft, hard uint64
	}{
		"default files":     {container.Ulimit{Name: "core", Soft: 1, Hard: 2}, "RLIMIT_NOFILE", 1024, 524288},
		"default processes": {container.Ulimit{Name: "core", Soft: 1, Hard: 2}, "RLIMIT_NPROC", unlimited, unlimited},
		"given":             {container.Ulimit{Name: "nofile", Soft: 100, Hard: 200}, "RLIMIT_NOFILE", 100, 200},
		"upper case":        {container.Ulimit{Name: "STACK", Soft: 100, Hard: -1}, "RLIMIT_STACK", 100, unlimited},
		"unlimited":         {container.Ulimit{Name: "memlock", Soft: -1, Hard: -1}, "RLIMIT_MEMLOCK", unlimited, unlimited},
		"unlimited files":   {container.Ulimit{Name: "nofile", Soft: -1, Hard: -1}, "RLIMIT_NOFILE", 1 << 20, 1 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			list := build(t, Environment{}, func(cfg *container.Config) { cfg.Resources.Ulimits = []container.Ulimit{c.in} }).Process.Rlimits
			if soft, hard := find(list, c.kind); soft != c.soft || hard != c.hard {
				t.Errorf("%d:%d, want %d:%d", soft, hard, c.soft, c.hard)
			}
		})
	}
	if len(ulimits) != 16 {
		t.Errorf("%d kinds of limits", len(ulimits))
	}
}

func TestDevices(t *testing.T) {
	r := build(t, Environment{}, func(c *container.Config) {
		c.Resources.DeviceList = []container.Device{
			{Path: "/dev/fuse"},
			{Path: "/dev/net/tun", PathInContainer: "/dev/tun", Access: "rw"},
		}
	})
	want := []*agent.Device{
		{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, Mode: 0o666, Access: "rwm"},
		{Path: "/dev/tun", Type: "c", Major: 10, Minor: 200, Mode: 0o666, Access: "rw"},
	}
	for i, d := range r.Devices {
		if len(r.Devices) != 2 || d.String() != want[i].String() {
			t.Errorf("%v", r.Devices)
		}
	}
}

func TestSysctls(t *testing.T) {
	got := build(t, Environment{}, func(c *container.Config) {
		c.Sysctls = map[string]string{
			"kernel.shmmax": "65536", "kernel.sem": "250 32000 100 128", "fs.mqueue.msg_max": "20",
			"net/ipv4/conf/eth0.1/forwarding": "1", "net.ipv4.ip_unprivileged_port_start": "80",
		}
	}).Sysctls
	want := map[string]string{
		"kernel.shmmax": "65536", "kernel.sem": "250 32000 100 128", "fs.mqueue.msg_max": "20",
		"net.ipv4.conf.eth0/1.forwarding": "1", "net.ipv4.ip_unprivileged_port_start": "80",
		"net.ipv4.ping_group_range": "0 2147483647",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func BenchmarkBuild(b *testing.B) {
	cfg := config(nil)
	for b.Loop() {
		if _, err := Build(cfg, Environment{}); err != nil {
			b.Fatal(err)
		}
	}
}
