package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// node is a file of a fake host.
type node struct {
	mode fs.FileMode
	rdev uint64
	// kind and size are of its filesystem.
	kind int64
	size uint64
}

func (n node) Name() string       { return "" }
func (n node) Size() int64        { return 0 }
func (n node) Mode() fs.FileMode  { return n.mode }
func (n node) ModTime() time.Time { return time.Time{} }
func (n node) IsDir() bool        { return n.mode.IsDir() }
func (n node) Sys() any           { return &unixStat{Rdev: n.rdev} }

// fakeHost has the given files besides /rootfs, and four CPUs.
func fakeHost(files map[string]node) host {
	find := func(name string) (node, error) {
		n, ok := files[name]
		if name == "/b/rootfs" {
			n, ok = node{mode: fs.ModeDir}, true
		}
		if !ok {
			return n, &fs.PathError{Op: "stat", Path: name, Err: unix.ENOENT}
		}
		return n, nil
	}
	return host{
		cpus:        4,
		name:        func() (string, error) { return "outside", nil },
		mountsBelow: func(name string) (bool, error) { return name == "/mounts", nil },
		capable:     func(capability int) bool { return capability != unix.CAP_SYS_RESOURCE },
		stat:        func(name string) (os.FileInfo, error) { return find(name) },
		filesystem: func(name string) (int64, uint64, error) {
			n, err := find(name)
			return n.kind, n.size, err
		},
	}
}

const minimal = `{"ociVersion":"1.2.0","process":{"args":["sh"],"cwd":"/"},"root":{"path":"rootfs"},
	"linux":{"namespaces":[{"type":"pid"},{"type":"ipc"},{"type":"uts"},{"type":"mount"}]}}`

// with lays members over the minimal configuration: those of process, root and linux one by one.
func with(t testing.TB, over string) []byte {
	t.Helper()
	var base, add map[string]any
	if err := json.Unmarshal([]byte(minimal), &base); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(over), &add); err != nil {
		t.Fatalf("%v in %s", err, over)
	}
	for key, value := range add {
		into, isObject := base[key].(map[string]any)
		from, _ := value.(map[string]any)
		if !isObject || from == nil {
			base[key] = value
			continue
		}
		for k, v := range from {
			into[k] = v
		}
	}
	b, err := json.Marshal(base)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func parse(t testing.TB, config []byte) *Bundle {
	t.Helper()
	b, err := Parse("/b", config)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// plan makes one of the minimal configuration with changes.
func plan(t testing.TB, over string, files map[string]node) *Plan {
	t.Helper()
	p, err := parse(t, with(t, over)).plan(Environment{}, fakeHost(files))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(dir); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "config.json") {
		t.Errorf("without a file: %v", err)
	}
	name := filepath.Join(dir, "config.json")
	if err := unix.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a FIFO: %v", err)
	}
	os.Remove(name)
	if err := os.WriteFile(name, []byte(minimal), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "rootfs"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	b, err := Load(".")
	if err != nil {
		t.Fatal(err)
	}
	p, err := b.Plan(Environment{})
	if err != nil || b.Dir != dir || p.Root != filepath.Join(dir, "rootfs") {
		t.Errorf("%v, directory %s, root %v", err, b.Dir, p)
	}
	if err := os.Truncate(name, maxConfig+1); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "16 MiB") {
		t.Errorf("too large: %v", err)
	}
}

func TestParseErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                                     "config.json: it is empty",
		"{":                                    "line 1, column 1: it ends in the middle",
		"{\n  \"ociVersion\": 1.0\n}":          "line 2, column 19: ociVersion: must be a JSON value for string, is a number",
		"{\n\"process\": {\"cwd\": [}}":        "line 2, column 21: invalid character",
		`{"process":{"args":["a",7]}}`:         "process.args",
		`{}`:                                   "ociVersion: is missing",
		`{"ociVersion":"2.0.0"}`:               "ociVersion: version 2.0.0 is not understood",
		`{"ociVersion":"1.0"}`:                 "not of the form",
		`{"ociVersion":"1.0.x"}`:               "not of the form",
		`{"ociVersion":"1.0.0"} {}`:            "text after the end",
		`[]`:                                   "the whole",
		strings.Repeat("[", 100000):            "config.json: line 1",
		`{"ociVersion":"1.0.0","ociVersion":}`: "invalid character",
	} {
		if _, err := Parse("/b", []byte(text)); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "config.json: ") {
			t.Errorf("%.60s: error %v, want %q", text, err, want)
		}
	}
	for _, v := range []string{"1.0.0", "1.0.2-dev", "1.3.0+build.1", "1.0.0-rc5"} {
		if b, err := Parse("/b", fmt.Appendf(nil, `{"ociVersion":%q,"unknown":[1]}`, v)); err != nil || b.Spec.Version != v {
			t.Errorf("%s: %v", v, err)
		}
	}
}

// What cannot hold, and what contradicts itself, is an error that names the member.
func TestPlanErrors(t *testing.T) {
	for over, want := range map[string]string{
		`{"root":null}`:                                                     "root.path: is missing",
		`{"root":{"path":"gone"}}`:                                          "root.path: stat /b/gone: no such file or directory",
		`{"root":{"path":"/file"}}`:                                         "root.path: /file is not a directory",
		`{"process":null}`:                                                  "process: is missing",
		`{"process":{"args":[]}}`:                                           "process.args: must have",
		`{"process":{"args":["a\u0000"]}}`:                                  "process.args[0]",
		`{"process":{"cwd":"tmp"}}`:                                         `process.cwd: must be an absolute path, is "tmp"`,
		`{"process":{"cwd":""}}`:                                            "process.cwd: must be an absolute path, is empty",
		`{"process":{"env":["A=b","C"]}}`:                                   `process.env[1]: must be of the form NAME=VALUE, is "C"`,
		`{"process":{"env":["=b"]}}`:                                        "process.env[0]",
		`{"process":{"commandLine":"x"}}`:                                   "process.commandLine",
		`{"process":{"oomScoreAdj":1001}}`:                                  "process.oomScoreAdj: must be -1000 to 1000",
		`{"process":{"user":{"umask":4096}}}`:                               "process.user.umask",
		`{"process":{"user":{"uid":4294967295}}}`:                           "process.user",
		`{"process":{"rlimits":[{"type":"RLIMIT_X"}]}}`:                     `process.rlimits[0].type: there is no limit "RLIMIT_X"`,
		`{"process":{"rlimits":[{"type":"RLIMIT_CPU","soft":2,"hard":1}]}}`: "soft limit",
		`{"process":{"rlimits":[{"type":"RLIMIT_CPU","soft":1,"hard":1},{"type":"RLIMIT_CPU"}]}}`: "rlimits[1].type: RLIMIT_CPU is there already",
		`{"process":{"scheduler":{"policy":"SCHED_ISO"}}}`:                                        "process.scheduler.policy",
		`{"process":{"scheduler":{"policy":"SCHED_OTHER","priority":1}}}`:                         "process.scheduler.priority: goes with",
		`{"process":{"scheduler":{"policy":"SCHED_FIFO"}}}`:                                       "must be 1 to 99",
		`{"process":{"scheduler":{"policy":"SCHED_FIFO","priority":5,"nice":1}}}`:                 "process.scheduler.nice: goes with",
		`{"process":{"scheduler":{"policy":"SCHED_RR","priority":5,"period":9}}}`:                 "SCHED_DEADLINE only",
		`{"process":{"scheduler":{"policy":"SCHED_OTHER","flags":["SCHED_FLAG_X"]}}}`:             "scheduler.flags[0]",
		`{"process":{"ioPriority":{"class":"IOPRIO_CLASS_BE","priority":8}}}`:                     "must be 0 to 7",
		`{"process":{"ioPriority":{"class":"BE"}}}`:                                               "process.ioPriority.class",
		`{"process":{"execCPUAffinity":{"final":"3-1"}}}`:                                         "process.execCPUAffinity",
		`{"hostname":"` + strings.Repeat("x", 65) + `"}`:                                          "hostname: has 65 bytes",
		`{"hostname":"x","linux":{"namespaces":[]}}`:                                              "no uts namespace",
		`{"mounts":[{"destination":"/"}]}`:                                                        "mounts[0] (/): destination",
		`{"mounts":[{"destination":"/x","type":"nfs","source":"y"}]}`:                             `filesystem type "nfs"`,
		`{"mounts":[{"destination":"/x","type":"overlay"}]}`:                                      "bound into the container",
		`{"mounts":[{"destination":"/x"}]}`:                                                       "type: is missing",
		`{"mounts":[{"destination":"/x","type":"bind","source":"/gone"}]}`:                        "mounts[0] (/x): source: stat /gone: no such file or directory",
		`{"mounts":[{"destination":"/x","type":"bind"}]}`:                                         "source: must be a path",
		`{"mounts":[{"destination":"/x","type":"bind","source":"/sock"}]}`:                        "is a socket of the host",
		`{"mounts":[{"destination":"/x","type":"bind","source":"/fifo"}]}`:                        "neither a directory nor a regular file",
		`{"mounts":[{"destination":"/x","type":"bind","source":"/dev/sda"}]}`:                     "device of the host (b 8:0)",
		`{"mounts":[{"destination":"/x","type":"bind","source":"/dev/fuse"}]}`:                    "passed through",
		`{"mounts":[{"destination":"/x","type":"tmpfs","options":["idmap"]}]}`:                    "mapped ids",
		`{"mounts":[{"destination":"/x","type":"tmpfs","options":["remount"]}]}`:                  "remount",
		`{"mounts":[{"destination":"/x","type":"tmpfs","options":["subdir=a"]}]}`:                 "not a mount option",
		`{"mounts":[{"destination":"/x","type":"bind","source":"/dir","options":["tmpcopyup"]}]}`: "tmpcopyup goes with",
		`{"mounts":[{"destination":"/x","type":"tmpfs","uidMappings":[{"size":1}]}]}`:             "mapped ids",
		`{"windows":{"layerFolders":[]}}`:                                                         "windows: this is a container for another system",
		`{"vm":{"kernel":{"path":"/k"}}}`:                                                         "vm: ",
		`{"linux":{"intelRdt":{}}}`:                                                               "linux.intelRdt",
		`{"linux":{"netDevices":{"eth1":{}}}}`:                                                    "linux.netDevices",
		`{"linux":{"memoryPolicy":{"mode":"MPOL_BIND","nodes":"1"}}}`:                             "linux.memoryPolicy.nodes",
		`{"linux":{"rootfsPropagation":"wide"}}`:                                                  "linux.rootfsPropagation",
		`{"linux":{"maskedPaths":["proc"]}}`:                                                      "linux.maskedPaths[0]: must be an absolute path",
		`{"linux":{"namespaces":[{"type":"pid"},{"type":"pid"}]}}`:                                "linux.namespaces[1]: there is a pid namespace already",
		`{"linux":{"namespaces":[{"type":"mount","path":"/proc/1/ns/mnt"}]}}`:                     "a mount namespace of the host cannot be joined",
		`{"linux":{"namespaces":[{"type":"user","path":"/proc/1/ns/user"}]}}`:                     "cannot be joined",
		`{"linux":{"namespaces":[{"type":"fun"}]}}`:                                               `linux.namespaces[0].type: "fun"`,
		`{"linux":{"namespaces":[{"type":"pid","path":"x"}]}}`:                                    "linux.namespaces[0].path: must be an absolute path",
		`{"linux":{"namespaces":[{"type":"user"}]}}`:                                              "linux.uidMappings: must be set",
		`{"linux":{"uidMappings":[{"size":1}]}}`:                                                  "no user namespace",
		`{"linux":{"namespaces":[{"type":"user"}],"uidMappings":[{"size":9},{"containerID":8,"hostID":20,"size":1}],"gidMappings":[{"size":1}]}}`: "linux.uidMappings[1]: overlaps",
		`{"linux":{"timeOffsets":{"monotonic":{"secs":1}}}}`:                                                 "no time namespace",
		`{"linux":{"namespaces":[{"type":"time"}],"timeOffsets":{"realtime":{"secs":1}}}}`:                   `no clock "realtime"`,
		`{"linux":{"personality":{"domain":"BSD"}}}`:                                                         "linux.personality.domain",
		`{"linux":{"sysctl":{"kernel.panic":"1"}}}`:                                                          "kernel.panic does not belong to a namespace",
		`{"linux":{"sysctl":{"net..x":"1"}}}`:                                                                "not the name",
		`{"linux":{"devices":[{"path":"/dev/sda","type":"b","major":8,"minor":0}]}}`:                         "linux.devices[0]: /dev/sda (b 8:0) is a device of the host",
		`{"linux":{"devices":[{"path":"/dev/unloaded","type":"c","major":10,"minor":238}]}}`:                 "is a device of the host",
		`{"linux":{"devices":[{"path":"/dev/x","type":"q"}]}}`:                                               "linux.devices[0].type",
		`{"linux":{"devices":[{"path":"dev/x","type":"c"}]}}`:                                                "linux.devices[0].path",
		`{"linux":{"resources":{"devices":[{"type":"p"}]}}}`:                                                 "linux.resources.devices[0].type",
		`{"linux":{"resources":{"devices":[{"access":"rx"}]}}}`:                                              "linux.resources.devices[0].access",
		`{"linux":{"resources":{"rdma":{"mlx5_1":{}}}}}`:                                                     "linux.resources.rdma",
		`{"linux":{"resources":{"memory":{"limit":1000}}}}`:                                                  "linux.resources.memory.limit: 1000 bytes are too few",
		`{"linux":{"resources":{"memory":{"swap":1000000}}}}`:                                                "memory.swap: limits memory and swap together",
		`{"linux":{"resources":{"memory":{"limit":9000000,"swap":1000000}}}}`:                                "less than the limit",
		`{"linux":{"resources":{"cpu":{"period":5}}}}`:                                                       "cpu.period: must be 1000",
		`{"linux":{"resources":{"cpu":{"cpus":"0-4"}}}}`:                                                     "cpu.cpus: CPU 4 is not there: the host has 0-3",
		`{"linux":{"resources":{"cpu":{"mems":"0-1"}}}}`:                                                     "cpu.mems: the virtual machine has one memory node",
		`{"linux":{"resources":{"cpu":{"burst":5}}}}`:                                                        "cpu.burst",
		`{"linux":{"resources":{"cpu":{"realtimeRuntime":950000}}}}`:                                         "real-time",
		`{"linux":{"resources":{"blockIO":{"weight":9}}}}`:                                                   "blockIO.weight: must be 10 to 1000, is 9",
		`{"linux":{"resources":{"blockIO":{"leafWeight":10}}}}`:                                              "blockIO.leafWeight: no kernel has had it",
		`{"linux":{"resources":{"blockIO":{"weightDevice":[{"major":8,"minor":0,"weight":1001}]}}}}`:         "blockIO.weightDevice[0].weight: must be 10 to 1000",
		`{"linux":{"resources":{"blockIO":{"throttleReadBpsDevice":[{"major":-8,"minor":0,"rate":1000}]}}}}`: "blockIO.throttleReadBpsDevice[0]: -8:0 is no device",
		`{"linux":{"resources":{"hugepageLimits":[{"pageSize":"64KB","limit":9}]}}}`:                         "hugepageLimits[0].pageSize",
		`{"linux":{"resources":{"unified":{"cgroup.kill":"1"}}}}`:                                            "linux.resources.unified",
		`{"linux":{"resources":{"unified":{"../memory.max":"1"}}}}`:                                          "linux.resources.unified",
		`{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_NOTIFY"}}}`:                                          "linux.seccomp: ",
		`{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/run/l"}}}`:                   "listenerPath",
		`{"hooks":{"poststop":[{"path":"bin/x"}]}}`:                                                          "hooks.poststop[0].path: must be an absolute path",
		`{"hooks":{"startContainer":[{"path":"/x","timeout":0}]}}`:                                           "hooks.startContainer[0].timeout",
	} {
		_, err := parse(t, with(t, over)).plan(Environment{}, fakeHost(hostFiles))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s:\nerror %v\nwant  %s", over, err, want)
		}
	}
	b := parse(t, with(t, `{"process":{"cwd":"tmp"}}`))
	b.Dir = t.TempDir()
	os.Mkdir(filepath.Join(b.Dir, "rootfs"), 0o700)
	if _, err := b.Plan(Environment{}); err == nil || err.Error() != `config.json: process.cwd: must be an absolute path, is "tmp"` {
		t.Errorf("error %v", err)
	}
}

var hostFiles = map[string]node{
	"/file":                  {mode: 0o644},
	"/dir":                   {mode: fs.ModeDir | 0o755, kind: unix.EXT4_SUPER_MAGIC},
	"/b/rel":                 {mode: fs.ModeDir | 0o755},
	"/mounts":                {mode: fs.ModeDir | 0o755},
	"/sock":                  {mode: fs.ModeSocket},
	"/fifo":                  {mode: fs.ModeNamedPipe},
	"/dev/null":              {mode: fs.ModeDevice | fs.ModeCharDevice | 0o666, rdev: unix.Mkdev(1, 3)},
	"/dev/fuse":              {mode: fs.ModeDevice | fs.ModeCharDevice | 0o660, rdev: unix.Mkdev(10, 229)},
	"/dev/sda":               {mode: fs.ModeDevice | 0o660, rdev: unix.Mkdev(8, 0)},
	"/dev/unloaded":          {mode: fs.ModeDevice | fs.ModeCharDevice | 0o660, rdev: unix.Mkdev(10, 238)},
	"/sys/dev/char":          {mode: fs.ModeDir},
	"/sys/dev/block":         {mode: fs.ModeDir},
	"/sys/dev/block/8:0":     {mode: fs.ModeDir},
	"/shm":                   {mode: fs.ModeDir | 0o777, kind: unix.TMPFS_MAGIC, size: 1 << 20},
	"/sys/fs/cgroup/systemd": {mode: fs.ModeDir, kind: unix.CGROUP_SUPER_MAGIC},
	"/cg":                    {mode: fs.ModeDir, kind: unix.CGROUP2_SUPER_MAGIC},
	"/sys":                   {mode: fs.ModeDir, kind: unix.SYSFS_MAGIC},
	"/proc":                  {mode: fs.ModeDir, kind: unix.PROC_SUPER_MAGIC},
	"/dev/mqueue":            {mode: fs.ModeDir, kind: mqueueMagic},
}

// The configuration that Podman makes of a container needs no change.
func TestPodman(t *testing.T) {
	text, err := os.ReadFile("testdata/podman.json")
	if err != nil {
		t.Fatal(err)
	}
	b, err := Parse("/b", text)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]node{b.Spec.Root.Path: {mode: fs.ModeDir}}
	for _, m := range b.Spec.Mounts {
		if m.Type == "bind" {
			files[m.Source] = node{mode: 0o644}
		}
	}
	files["/var/lib/containers/storage/overlay-containers/1/userdata/shm"] = node{mode: fs.ModeDir | 0o777, kind: unix.TMPFS_MAGIC, size: 65536000}
	p, err := b.plan(Environment{BindsTag: "tag"}, fakeHost(files))
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Warnings) != 0 {
		t.Errorf("warnings %q", p.Warnings)
	}
	if p.Root != "/var/lib/containers/storage/overlay/1/merged" || p.Net != (Namespace{Path: "/run/netns/netns-1"}) || len(p.Namespaces) != 5 {
		t.Errorf("root %s, network %+v, namespaces %v", p.Root, p.Net, p.Namespaces)
	}
	if len(p.Binds) != 4 || p.Binds[3].Name != "3" || !p.Binds[3].File || p.Binds[3].HostPath != "/run/containers/storage/overlay-containers/1/userdata/.containerenv" {
		t.Errorf("binds %+v", p.Binds)
	}
	var got []string
	for _, m := range p.Create.Mounts {
		got = append(got, m.Type+" "+m.Source+" "+m.Destination+" "+strings.Join(m.Options, ","))
	}
	want := []string{
		"proc proc /proc nosuid,noexec,nodev",
		"tmpfs tmpfs /dev nosuid,noexec,strictatime,mode=755,size=65536k",
		"sysfs sysfs /sys nosuid,noexec,nodev,ro",
		"devpts devpts /dev/pts nosuid,noexec,ptmxmode=0666,mode=0620,gid=5",
		"mqueue mqueue /dev/mqueue nosuid,noexec,nodev",
		"share tag/0 /etc/hostname bind,rprivate",
		"share tag/1 /etc/resolv.conf bind,rprivate",
		"share tag/2 /etc/hosts bind,rprivate",
		"bind shm-eb54525d7e4d8a678bda8a12b23b836a /dev/shm rprivate,nosuid,noexec,nodev,mode=1777,size=65536000",
		"share tag/3 /run/.containerenv bind,rprivate",
		"cgroup2 cgroup /sys/fs/cgroup rprivate,nosuid,noexec,nodev,relatime,ro",
	}
	for i := range want {
		if i >= len(got) || got[i] != want[i] {
			t.Errorf("mounts:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			break
		}
	}
	c := p.Create
	if !c.NoDefaultMounts || c.Hostname != "pp" || len(c.MaskedPaths) != 11 || len(c.ReadonlyPaths) != 6 || c.Sysctls["net.ipv4.ping_group_range"] != "0 0" {
		t.Errorf("request %v", c)
	}
	r := c.Resources.DeviceRules
	if r[0].Allow || r[0].Type != "a" || r[0].Major != -1 || len(r) != 12 || !r[3].Allow {
		t.Errorf("device rules %v", r)
	}
	pr := c.Process
	if pr.Args[0] != "/catatonit" || *pr.Umask != 18 || len(pr.Seccomp) == 0 || len(pr.Capabilities.Bounding) != 11 || len(pr.Rlimits) != 2 {
		t.Errorf("process %v", pr)
	}
	// A process of `podman exec` leaves out what the container has.
	further, err := b.Process(&specs.Process{Args: []string{"tty"}, Cwd: "/", Terminal: true, Env: []string{"TERM=xterm"}, ConsoleSize: &specs.Box{Height: 24, Width: 80}})
	if err != nil {
		t.Fatal(err)
	}
	if !further.Terminal || further.Rows != 24 || further.Columns != 80 || len(further.Capabilities.Bounding) != 11 || len(further.Rlimits) != 2 || len(further.Seccomp) == 0 {
		t.Errorf("further process %v", further)
	}
}

// The configurations of an engine on this host, if there are any.
func TestRealConfigurations(t *testing.T) {
	names, _ := filepath.Glob(os.Getenv("MANIS_OCI_CONFIGS"))
	if len(names) == 0 {
		t.Skip("MANIS_OCI_CONFIGS names no config.json files")
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		b, err := Parse(filepath.Dir(name), text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		h := thisHost
		// What the engine has removed since was a directory in memory.
		h.stat = func(name string) (os.FileInfo, error) {
			if info, err := os.Stat(name); err == nil {
				return info, nil
			}
			return node{mode: fs.ModeDir}, nil
		}
		h.filesystem = func(name string) (int64, uint64, error) {
			if kind, size, err := statfs(name); err == nil {
				return kind, size, nil
			}
			return unix.TMPFS_MAGIC, 1 << 20, nil
		}
		p, err := b.plan(Environment{}, h)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		t.Logf("%s: %v\ndevices %v\nwarnings %q", name, p.Create.Mounts, p.Create.Devices, p.Warnings)
	}
}
